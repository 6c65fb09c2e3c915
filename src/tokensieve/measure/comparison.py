"""Differences between two outputs: class scores, embeddings, tokens, and maps of classes, features or depth.

Every comparison of a sieved model with its dense one is made here: `kind_of` gives the kind of an output, and the kind
computes `divergence`, `agreement` and `cosine` of each image and creates the scorer that compares it with labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError, nearest
from .scores import DepthErrors, PixelClasses, Scorer, TopK

ROWS = 1024
"""Rows of a similarity matrix that are held in memory at a time."""


class OutputKind(ABC):
    """One kind of output. All methods take a batch of dense and of sieved outputs of equal shape, in any precision."""

    name: ClassVar[str]
    """Its name, for `kind=` of `fidelity` and others."""
    divergence_name: ClassVar[str]
    """Name of the quantity that `divergence` computes."""
    agreement_name: ClassVar[str | None] = None
    """Name of the quantity that `agreement` compares; None if `agreement` returns None."""
    classes: ClassVar[bool] = False
    """Whether the output has a score for each class, so that `divergence` is a KL divergence."""
    across_images: ClassVar[bool] = False
    """Whether `agreement` compares images with each other, so that it needs all of them at once."""

    @abstractmethod
    def divergence(self, dense: Tensor, sieved: Tensor) -> Tensor:
        """Distance of each image's sieved output from its dense one: (B,) float64, 0 if they are equal."""

    def agreement(self, dense: Tensor, sieved: Tensor) -> Tensor | None:
        """Share of each image's predictions that are equal, (B,) float64 from 0 to 1; None if the kind has none."""
        return None

    @abstractmethod
    def cosine(self, dense: Tensor, sieved: Tensor) -> Tensor:
        """Cosine similarity of both outputs, (B,) float64; of token or pixel outputs the mean over tokens or pixels."""

    def scorer(self, k: int | Sequence[int], ignore_index: int | None) -> Scorer:
        """A new scorer that compares outputs with labels.

        Raises:
            InputError: outputs of this kind cannot be compared with labels.
        """
        raise InputError(f"Labels cannot score outputs of the kind {self.name!r}: use fidelity, which needs none.")

    def labelled(self, labels: Tensor | None) -> bool:
        """Whether `scorer` can use these labels."""
        return False


class ClassScores(OutputKind):
    """Scores before the softmax, (B, K)."""

    name, divergence_name, agreement_name, classes = "classes", "kl", "class", True

    def divergence(self, dense: Tensor, sieved: Tensor) -> Tensor:
        """KL(dense || sieved) of the class probabilities, in nats."""
        return kl_divergence(dense.double(), sieved.double())

    def agreement(self, dense: Tensor, sieved: Tensor) -> Tensor:
        """1 if both have the same top-1 class, else 0."""
        return (dense.argmax(1) == sieved.argmax(1)).double()

    def cosine(self, dense: Tensor, sieved: Tensor) -> Tensor:
        return _cosine(dense, sieved, 1)

    def scorer(self, k: int | Sequence[int], ignore_index: int | None) -> TopK:
        return TopK(k)

    def labelled(self, labels: Tensor | None) -> bool:
        return labels is not None and labels.ndim == 1 and not labels.is_floating_point() and bool((labels >= 0).all())


class Embeddings(OutputKind):
    """One vector for each image, (B, D)."""

    name, divergence_name, agreement_name, across_images = "embeddings", "1 - cosine", "nearest neighbour", True

    def divergence(self, dense: Tensor, sieved: Tensor) -> Tensor:
        """1 - cosine."""
        return 1 - _cosine(dense, sieved, 1)

    def agreement(self, dense: Tensor, sieved: Tensor) -> Tensor | None:
        """1 if the nearest other image, by cosine, is the same in both, else 0; None for fewer than three images."""
        if len(dense) < 3:
            return None
        return (nearest_neighbours(dense) == nearest_neighbours(sieved)).double()

    def cosine(self, dense: Tensor, sieved: Tensor) -> Tensor:
        return _cosine(dense, sieved, 1)


class TokenMaps(OutputKind):
    """One vector for each token, (B, N, D)."""

    name, divergence_name = "tokens", "1 - cosine per token"

    def divergence(self, dense: Tensor, sieved: Tensor) -> Tensor:
        """1 - cosine, averaged over the tokens."""
        return 1 - self.cosine(dense, sieved)

    def cosine(self, dense: Tensor, sieved: Tensor) -> Tensor:
        return _cosine(dense, sieved, -1).mean(1)


class _Maps(OutputKind):
    """Maps with channels for each pixel: (B, C, H, W), or with more axes after the channels."""

    def cosine(self, dense: Tensor, sieved: Tensor) -> Tensor:
        return _per_image(lambda a, b: _cosine(a, b, 0).mean(), dense, sieved)


class ClassMaps(_Maps):
    """Scores of K classes for each pixel, (B, K, H, W): the output of segmenters."""

    name, divergence_name, agreement_name, classes = "class-map", "kl per pixel", "class of a pixel", True

    def divergence(self, dense: Tensor, sieved: Tensor) -> Tensor:
        """KL(dense || sieved) of each pixel's class probabilities in nats, averaged over the pixels."""
        return _per_image(lambda a, b: kl_divergence(a, b, dim=0).mean(), dense, sieved)

    def agreement(self, dense: Tensor, sieved: Tensor) -> Tensor:
        """Share of the pixels that have the same class in both."""
        return (dense.argmax(1) == sieved.argmax(1)).flatten(1).double().mean(1)

    def scorer(self, k: int | Sequence[int], ignore_index: int | None) -> PixelClasses:
        return PixelClasses(ignore_index)

    def labelled(self, labels: Tensor | None) -> bool:
        return labels is not None and labels.ndim > 2 and not labels.is_floating_point()


class FeatureMaps(_Maps):
    """A vector of features for each pixel, (B, C, H, W), of a model without classes."""

    name, divergence_name = "feature-map", "1 - cosine per pixel"

    def divergence(self, dense: Tensor, sieved: Tensor) -> Tensor:
        """1 - cosine, averaged over the pixels."""
        return 1 - self.cosine(dense, sieved)


class DepthMaps(OutputKind):
    """One number for each pixel, (B, H, W) or (B, 1, H, W): depth, or its inverse."""

    name, divergence_name, agreement_name = "depth", "relative error", "depth of a pixel within a factor of 1.25"

    def divergence(self, dense: Tensor, sieved: Tensor) -> Tensor:
        """Sum over the pixels of |sieved - dense|, divided by that of |dense|."""
        a, b = dense.flatten(1).double(), sieved.flatten(1).double()
        error, size = (a - b).abs().sum(1), a.abs().sum(1)
        return torch.where(error == 0, error, error / size)  # for a map of zeros any change is infinite

    def agreement(self, dense: Tensor, sieved: Tensor) -> Tensor:
        """Share of the pixels whose depths differ by less than a factor of 1.25, the usual metric of depth models."""
        a, b = dense.flatten(1).double(), sieved.flatten(1).double()
        low, high = torch.minimum(a.abs(), b.abs()), torch.maximum(a.abs(), b.abs())
        within = (a.sign() == b.sign()) & (high < 1.25 * low)
        return (within | (a == b)).double().mean(1)

    def cosine(self, dense: Tensor, sieved: Tensor) -> Tensor:
        return _cosine(dense.flatten(1), sieved.flatten(1), 1)

    def scorer(self, k: int | Sequence[int], ignore_index: int | None) -> DepthErrors:
        return DepthErrors()

    def labelled(self, labels: Tensor | None) -> bool:
        return labels is not None and labels.ndim > 2 and labels.is_floating_point()


KINDS: dict[str, OutputKind] = {
    kind.name: kind for kind in (ClassScores(), Embeddings(), TokenMaps(), ClassMaps(), FeatureMaps(), DepthMaps())
}
"""All kinds, by name."""


def kind_of(output: Tensor, classes: bool, field: str | None = None, kind: str | None = None) -> OutputKind:
    """The kind of an output.

    Args:
        output: (B, ...).
        classes: whether the model has a classifier, see `outputs.classifies`.
        field: the field of transformers' `ModelOutput` that the output was taken from, if any.
        kind: a name in `KINDS`, to set the kind explicitly: a tensor (B, H, W) counts as tokens unless told "depth".

    Raises:
        InputError: the kind is unknown, or the output does not have its shape.
    """
    if kind is not None:
        if kind not in KINDS:
            raise InputError(f"There is no kind of output {kind!r}{nearest(kind, KINDS)}. Known: {', '.join(KINDS)}.")
        if output.ndim not in _AXES[kind]:
            raise InputError(f"An output of shape {tuple(output.shape)} is not of the kind {kind!r}.")
        return KINDS[kind]
    if field == "predicted_depth":
        return KINDS["depth"]
    if output.ndim == 2:  # with a single class the prediction is always the same, so agreement means nothing
        return KINDS["classes" if classes and output.shape[1] > 1 else "embeddings"]
    if output.ndim == 3:
        return KINDS["tokens"]
    if output.shape[1] == 1:
        return KINDS["depth"]
    return KINDS["class-map" if classes else "feature-map"]


_AXES = {
    "classes": (2,), "embeddings": (2,), "tokens": (3,), "class-map": (4, 5), "feature-map": (4, 5), "depth": (3, 4),
}  # fmt: skip


def divergence_title(name: str) -> str:
    """A `divergence_name` as it is written in sentences and table headers."""
    return name.replace("kl", "KL")


def check_shapes(dense: Tensor, sieved: Tensor) -> None:
    """Check that two outputs can be compared.

    Raises:
        InputError: their shapes differ.
    """
    if sieved.ndim == dense.ndim == 3 and sieved.shape[1] != dense.shape[1] and sieved.shape[2] == dense.shape[2]:
        raise InputError(
            f"The sieved model returns {sieved.shape[1]} tokens and the dense one {dense.shape[1]}: compare pooled "
            "features, or restore the grid first (trace.restore)."
        )
    if sieved.shape != dense.shape:
        raise InputError(
            f"Outputs of shape {tuple(sieved.shape)} and {tuple(dense.shape)} cannot be compared: "
            "scores, features, tokens or maps of equal shape are needed."
        )


def kl_divergence(dense: Tensor, sieved: Tensor, dim: int = -1) -> Tensor:
    """KL(dense || sieved) in nats of the softmax of scores along `dim`; classes at -inf in `dense` add nothing."""
    log_p, log_q = dense.log_softmax(dim), sieved.log_softmax(dim)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0).sum(dim)


def nearest_neighbours(embeddings: Tensor) -> Tensor:
    """(N, D) -> (N,) int64: for each row the other row with the largest cosine; the first if several are equal."""
    rows = F.normalize(embeddings.double(), dim=1)
    neighbours = []
    for start in range(0, len(rows), ROWS):
        similarity = rows[start : start + ROWS] @ rows.T
        similarity[torch.arange(len(similarity)), torch.arange(start, start + len(similarity))] = -torch.inf
        neighbours.append(similarity.argmax(1))
    return torch.cat(neighbours)


def relative_difference(outputs: Tensor, reference: Tensor) -> float:
    """Largest absolute difference of two outputs, divided by the largest absolute value of the reference."""
    return float((outputs - reference).abs().max() / reference.abs().max())


def _cosine(dense: Tensor, sieved: Tensor, dim: int) -> Tensor:
    return F.cosine_similarity(sieved.double(), dense.double(), dim=dim).clamp(-1, 1)


def _per_image(measure: Callable[[Tensor, Tensor], Tensor], dense: Tensor, sieved: Tensor) -> Tensor:
    """Apply `measure` to one image after the other, so that only one is held in float64."""
    values = [measure(a.double(), b.double()) for a, b in zip(dense, sieved, strict=True)]
    return torch.stack(values)

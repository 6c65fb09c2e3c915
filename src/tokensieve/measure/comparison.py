"""How far two outputs of one kind are apart: class scores, embeddings, tokens, and maps of classes, features or depth.

Every comparison of a sieved model with its dense one comes from here: `kind_of` says what an output is, and its kind
computes `divergence`, `agreement` and `cosine` of each image, and gives the counter that scores it against labels.
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
"""Rows of a matrix of similarities that are held at a time."""


class OutputKind(ABC):
    """One kind of output. All methods take a batch of dense and of sieved outputs of one shape, in any precision."""

    name: ClassVar[str]
    """Its name, for `kind=` of `fidelity` and others."""
    divergence_name: ClassVar[str]
    """The name of what `divergence` computes."""
    agreement_name: ClassVar[str | None] = None
    """What is the same where both agree; None where `agreement` is None."""
    classes: ClassVar[bool] = False
    """Whether the output has a score for each class, so that `divergence` is a KL divergence."""
    across_images: ClassVar[bool] = False
    """Whether `agreement` compares images with each other, so that it needs all of them at once."""

    @abstractmethod
    def divergence(self, dense: Tensor, sieved: Tensor) -> Tensor:
        """How far each image's sieved output is from its dense one: (B,) float64, 0 where they are the same."""

    def agreement(self, dense: Tensor, sieved: Tensor) -> Tensor | None:
        """The share of each image's answers that are the same, (B,) float64 from 0 to 1; None where there are none."""
        return None

    @abstractmethod
    def cosine(self, dense: Tensor, sieved: Tensor) -> Tensor:
        """Cosine of both outputs, (B,) float64: of each token or pixel, and then their mean over the image."""

    def scorer(self, k: int | Sequence[int], ignore_index: int | None) -> Scorer:
        """An empty counter of how right outputs are.

        Raises:
            InputError: labels say nothing about outputs of this kind.
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
        """1 where both have the same first class."""
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
        """1 where the nearest other image, by cosine, is the same one; None of fewer than three images."""
        if len(dense) < 3:
            return None
        return (nearest_neighbours(dense) == nearest_neighbours(sieved)).double()

    def cosine(self, dense: Tensor, sieved: Tensor) -> Tensor:
        return _cosine(dense, sieved, 1)


class TokenMaps(OutputKind):
    """One vector for each token, (B, N, D)."""

    name, divergence_name = "tokens", "1 - cosine per token"

    def divergence(self, dense: Tensor, sieved: Tensor) -> Tensor:
        """1 - cosine, the mean over the tokens."""
        return 1 - self.cosine(dense, sieved)

    def cosine(self, dense: Tensor, sieved: Tensor) -> Tensor:
        return _cosine(dense, sieved, -1).mean(1)


class _Maps(OutputKind):
    """Something for each pixel: (B, C, H, W), or with more axes behind the channels."""

    def cosine(self, dense: Tensor, sieved: Tensor) -> Tensor:
        return _each_image(lambda a, b: _cosine(a, b, 0).mean(), dense, sieved)


class ClassMaps(_Maps):
    """Scores of K classes for each pixel, (B, K, H, W), as segmenters give them."""

    name, divergence_name, agreement_name, classes = "class-map", "kl per pixel", "class of a pixel", True

    def divergence(self, dense: Tensor, sieved: Tensor) -> Tensor:
        """KL(dense || sieved) of each pixel's class probabilities in nats, the mean over the pixels."""
        return _each_image(lambda a, b: kl_divergence(a, b, dim=0).mean(), dense, sieved)

    def agreement(self, dense: Tensor, sieved: Tensor) -> Tensor:
        """The share of pixels to which both give the same class."""
        return (dense.argmax(1) == sieved.argmax(1)).flatten(1).double().mean(1)

    def scorer(self, k: int | Sequence[int], ignore_index: int | None) -> PixelClasses:
        return PixelClasses(ignore_index)

    def labelled(self, labels: Tensor | None) -> bool:
        return labels is not None and labels.ndim > 2 and not labels.is_floating_point()


class FeatureMaps(_Maps):
    """A vector of features for each pixel, (B, C, H, W), of a model without classes."""

    name, divergence_name = "feature-map", "1 - cosine per pixel"

    def divergence(self, dense: Tensor, sieved: Tensor) -> Tensor:
        """1 - cosine, the mean over the pixels."""
        return 1 - self.cosine(dense, sieved)


class DepthMaps(OutputKind):
    """One number for each pixel, (B, H, W) or (B, 1, H, W): depth, or its inverse."""

    name, divergence_name, agreement_name = "depth", "relative error", "depth of a pixel within a factor of 1.25"

    def divergence(self, dense: Tensor, sieved: Tensor) -> Tensor:
        """Sum over the pixels of |sieved - dense|, over that of |dense|."""
        a, b = dense.flatten(1).double(), sieved.flatten(1).double()
        error, size = (a - b).abs().sum(1), a.abs().sum(1)
        return torch.where(error == 0, error, error / size)  # of a map that is 0 everywhere any change is infinite

    def agreement(self, dense: Tensor, sieved: Tensor) -> Tensor:
        """The share of pixels whose depths differ by less than a factor of 1.25, as depth estimators are scored."""
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
        field: the field of transformers' `ModelOutput` that it was, if it was one.
        kind: a name of `KINDS` that says it instead: a tensor (B, H, W) is taken for tokens where nothing tells depth.

    Raises:
        InputError: there is no such kind, or the output has not its shape.
    """
    if kind is not None:
        if kind not in KINDS:
            raise InputError(f"There is no kind of output {kind!r}{nearest(kind, KINDS)}. Known: {', '.join(KINDS)}.")
        if output.ndim not in _AXES[kind]:
            raise InputError(f"An output of shape {tuple(output.shape)} is not of the kind {kind!r}.")
        return KINDS[kind]
    if field == "predicted_depth":
        return KINDS["depth"]
    if output.ndim == 2:  # one class alone always agrees: that is no agreement
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
    """A `divergence_name` in a sentence or above a column."""
    return name.replace("kl", "KL")


def check_shapes(dense: Tensor, sieved: Tensor) -> None:
    """Refuse outputs that cannot be compared.

    Raises:
        InputError: they are of two shapes.
    """
    if sieved.ndim == dense.ndim == 3 and sieved.shape[1] != dense.shape[1] and sieved.shape[2] == dense.shape[2]:
        raise InputError(
            f"The sieved model returns {sieved.shape[1]} tokens and the dense one {dense.shape[1]}: compare pooled "
            "features, or restore the grid first (trace.restore)."
        )
    if sieved.shape != dense.shape:
        raise InputError(
            f"Outputs of shape {tuple(sieved.shape)} and {tuple(dense.shape)} cannot be compared: "
            "scores, features, tokens or maps of one shape are needed."
        )


def kl_divergence(dense: Tensor, sieved: Tensor, dim: int = -1) -> Tensor:
    """KL(dense || sieved) in nats of the softmax of scores along `dim`; what dense excludes (-inf) adds nothing."""
    log_p, log_q = dense.log_softmax(dim), sieved.log_softmax(dim)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0).sum(dim)


def nearest_neighbours(embeddings: Tensor) -> Tensor:
    """(N, D) -> (N,) int64: the other row of the largest cosine; of equal ones the first."""
    rows = F.normalize(embeddings.double(), dim=1)
    neighbours = []
    for start in range(0, len(rows), ROWS):
        similarity = rows[start : start + ROWS] @ rows.T
        similarity[torch.arange(len(similarity)), torch.arange(start, start + len(similarity))] = -torch.inf
        neighbours.append(similarity.argmax(1))
    return torch.cat(neighbours)


def relative_difference(outputs: Tensor, reference: Tensor) -> float:
    """The largest absolute difference of two outputs, over the largest absolute number in the reference."""
    return float((outputs - reference).abs().max() / reference.abs().max())


def _cosine(dense: Tensor, sieved: Tensor, dim: int) -> Tensor:
    return F.cosine_similarity(sieved.double(), dense.double(), dim=dim).clamp(-1, 1)


def _each_image(measure: Callable[[Tensor, Tensor], Tensor], dense: Tensor, sieved: Tensor) -> Tensor:
    """Image by image, so that a batch of maps is not held in float64."""
    values = [measure(a.double(), b.double()) for a, b in zip(dense, sieved, strict=True)]
    return torch.stack(values)

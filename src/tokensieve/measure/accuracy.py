"""How often the right class is among a model's first k."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Failure
from ..errors import InputError, RecipeError
from .intervals import Interval, percent_interval
from .outputs import evaluating, failures_of, forward_batches, nothing_read


@dataclass(frozen=True)
class Accuracy:
    """Top-k accuracy.

    Attributes:
        top: k -> percent of the images whose label is among the k highest scores.
        count: images scored.
        classes: how many classes the model tells apart.
        failures: pictures that could not be read; they count nowhere.
    """

    top: dict[int, float]
    count: int
    classes: int
    failures: tuple[Failure, ...] = ()

    @property
    def intervals(self) -> dict[int, Interval]:
        """k -> Wilson's 95 % interval of `top`, in percent."""
        found = {k: percent_interval(percent, self.count) for k, percent in self.top.items()}
        return {k: interval for k, interval in found.items() if interval is not None}


def accuracy(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    k: int | Sequence[int] = (1, 5),
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Accuracy:
    """Score a classifier on labelled images, in evaluation mode and without gradients; its modes are restored.

    Args:
        model: images (B, 3, H, W) to scores (B, K), or to an object with `.logits`.
        batches: of `load_batches`, or any tuples that begin with images and labels (B,) int.
        k: one or several; each from 1 to K.
        device: where the images go (not the model); by default where the model is.
        dtype: of the images (not the model); by default the model's.

    Raises:
        RecipeError: a k below 1 or above K.
        InputError: images without labels, labels beyond K, a model without a classifier, nothing to read.
    """
    counter = TopK(k)
    with evaluating(model):
        for answers in forward_batches([model], batches, device=device, dtype=dtype):
            if not answers.classes:
                raise InputError(f"{type(model).__name__} has no classifier, its outputs are features: use fidelity.")
            counter.update(answers.outputs[0], answers.labels)
    if not counter.count:
        raise nothing_read(batches)
    return counter.result(failures_of(batches))


class TopK:
    """Counts, batch by batch, how often the label is among the first k; of equal scores the lower class comes first."""

    def __init__(self, k: int | Sequence[int] = (1, 5)) -> None:
        self.ks = sorted({k} if isinstance(k, int) else set(k))
        if not self.ks or self.ks[0] < 1:
            raise RecipeError(f"Top-k accuracy needs a k of at least 1, not {k}.")
        self._right: dict[int, list[Tensor]] = {k: [] for k in self.ks}
        self.count = 0
        self.classes = 0

    def update(self, scores: Tensor, labels: Tensor | None) -> None:
        """Add scores (B, K) and labels (B,)."""
        if scores.ndim != 2:
            raise InputError(f"Accuracy needs scores (images, classes), not an output of shape {tuple(scores.shape)}.")
        if labels is None or bool((labels < 0).any()):
            raise InputError("The image set has no labels; use fidelity, or put the pictures in class folders.")
        self.classes = scores.shape[1]
        if self.ks[-1] > self.classes:
            raise RecipeError(f"Top-{self.ks[-1]} makes no sense for a model with {self.classes} classes.")
        if int(labels.max()) >= self.classes:
            raise InputError(
                f"Label {int(labels.max())} is beyond the {self.classes} classes of the model: "
                "give the class index that it was trained with."
            )
        rank = rank_of(scores, labels)
        for k in self.ks:
            self._right[k].append(rank < k)
        self.count += len(scores)

    def right(self, k: int) -> Tensor:
        """(N,) of bool: whether each image's label is among its first k."""
        return torch.cat(self._right[k])

    def result(self, failures: tuple[Failure, ...] = ()) -> Accuracy:
        """Accuracy so far, in percent; needs at least one image."""
        top = {k: 100 * int(self.right(k).sum()) / self.count for k in self.ks}
        return Accuracy(top, self.count, self.classes, failures)


def rank_of(scores: Tensor, labels: Tensor) -> Tensor:
    """Position (B,) of each label in a stable descending sort of its scores (B, K), from 0, without sorting."""
    of_label = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1])[None] < labels[:, None]
    return ((scores > of_label) | ((scores == of_label) & earlier)).sum(1)

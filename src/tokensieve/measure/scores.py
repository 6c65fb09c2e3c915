"""Accuracy against labels: top-k accuracy, mean IoU of class maps, errors of depth maps.

A scorer accumulates batches and keeps a few numbers for each image, from which confidence intervals are computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..data import Failure
from ..errors import InputError, RecipeError
from .intervals import Interval, change_interval, mean_interval, percent_interval, resampled_interval

IGNORE_INDEX = 255
"""The usual label of pixels that are not scored."""
DELTA = 1.25
"""Depths within this factor of the label count as correct in the metric delta1."""


class Score(Protocol):
    """A result: its figures by name, and their 95 % intervals."""

    @property
    def count(self) -> int: ...
    @property
    def figures(self) -> Mapping[str, float]: ...
    @property
    def figure_intervals(self) -> Mapping[str, Interval]: ...


class Scorer(Protocol):
    """Accumulates a score over batches."""

    count: int

    def update(self, outputs: Tensor, labels: Tensor | None) -> None: ...
    def result(self, failures: tuple[Failure, ...] = ()) -> Any: ...
    def change_intervals(self, before: Any) -> dict[Any, Interval]:
        """Figure -> the interval of its difference to that of `before`, a scorer of the same images."""
        ...


@dataclass(frozen=True)
class Accuracy:
    """Top-k accuracy.

    Attributes:
        top: k -> percent of the images whose label is among the k highest scores.
        count: images scored.
        classes: number of the model's classes.
        failures: pictures that could not be read; they are not scored.
    """

    top: dict[int, float]
    count: int
    classes: int
    failures: tuple[Failure, ...] = ()

    @property
    def intervals(self) -> dict[int, Interval]:
        """k -> Wilson's 95 % interval of `top`, in percent."""
        intervals = {k: percent_interval(percent, self.count) for k, percent in self.top.items()}
        return {k: interval for k, interval in intervals.items() if interval is not None}

    @property
    def figures(self) -> dict[str, float]:
        """`top` by name: top1, top5."""
        return {f"top{k}": percent for k, percent in self.top.items()}

    @property
    def figure_intervals(self) -> dict[str, Interval]:
        """`intervals` by name."""
        return {f"top{k}": interval for k, interval in self.intervals.items()}


@dataclass(frozen=True)
class MapScore:
    """The score of class maps or depth maps.

    Attributes:
        figures: of class maps `miou`, the mean over the classes that occur of intersection over union, both summed over
            all images, and `pixel_accuracy`, both in percent; of depth maps `abs_rel`, the mean of |depth - label| over
            label, `rmse` in the labels' unit, and `delta1`, percent of pixels within a factor of 1.25, each the mean
            over the images.
        figure_intervals: 95 % interval of each figure, by bootstrap over the images; empty for one image.
        count: images scored; those without a labelled pixel are left out.
        iou: of class maps, each class's intersection over union in percent; None for a class that never occurs.
        failures: pictures that could not be read; they are not scored.
    """

    figures: dict[str, float]
    count: int
    figure_intervals: dict[str, Interval] = field(default_factory=dict)
    iou: tuple[float | None, ...] = ()
    failures: tuple[Failure, ...] = ()


class TopK:
    """Top-k accuracy over batches; of equal scores the lower class index ranks first."""

    def __init__(self, k: int | Sequence[int] = (1, 5)) -> None:
        self.ks = sorted({k} if isinstance(k, int) else set(k))
        if not self.ks or self.ks[0] < 1:
            raise RecipeError(f"Top-k accuracy needs a k of at least 1, not {k}.")
        self._correct: dict[int, list[Tensor]] = {k: [] for k in self.ks}
        self.count = 0
        self.classes = 0

    def update(self, outputs: Tensor, labels: Tensor | None) -> None:
        """Add scores (B, K) and labels (B,)."""
        if outputs.ndim != 2:
            raise InputError(f"Accuracy needs scores (images, classes), not an output of shape {tuple(outputs.shape)}.")
        if labels is None or bool((labels < 0).any()):
            raise InputError("The image set has no labels; use fidelity, or put the pictures in class folders.")
        if labels.shape != outputs.shape[:1]:
            raise InputError(
                f"Labels of shape {tuple(labels.shape)} are not one class for each of {len(outputs)} images."
            )
        self.classes = outputs.shape[1]
        if self.ks[-1] > self.classes:
            raise RecipeError(f"Top-{self.ks[-1]} makes no sense for a model with {self.classes} classes.")
        if int(labels.max()) >= self.classes:
            raise InputError(
                f"Label {int(labels.max())} is beyond the {self.classes} classes of the model: "
                "give the class index that it was trained with."
            )
        rank = rank_of(outputs, labels)
        for k in self.ks:
            self._correct[k].append(rank < k)
        self.count += len(outputs)

    def right(self, k: int) -> Tensor:
        """Whether the label is among the top k, (N,) bool."""
        return torch.cat(self._correct[k])

    def result(self, failures: tuple[Failure, ...] = ()) -> Accuracy:
        """Accuracy so far, in percent; needs at least one image."""
        top = {k: 100 * int(self.right(k).sum()) / self.count for k in self.ks}
        return Accuracy(top, self.count, self.classes, failures)

    def change_intervals(self, before: TopK) -> dict[int, Interval]:
        """k -> the interval of the difference in accuracy to `before`, in percentage points, by paired bootstrap."""
        return {k: change_interval(before.right(k), self.right(k)) for k in self.ks}


def rank_of(scores: Tensor, labels: Tensor) -> Tensor:
    """Rank (B,) of each label in a stable descending sort of its scores (B, K), from 0, computed without sorting.

    torchmetrics' top-k breaks ties arbitrarily, and ties are common in bf16; nor does it give a result for each image.
    """
    of_label = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1])[None] < labels[:, None]
    return ((scores > of_label) | ((scores == of_label) & earlier)).sum(1)


class PixelClasses:
    """Mean IoU and pixel accuracy over batches, from the intersection and union of each class in each image.

    Args:
        ignore_index: the label of pixels that are not scored, as negative labels are; None for none.
    """

    def __init__(self, ignore_index: int | None = IGNORE_INDEX) -> None:
        self.ignore_index, self.count, self.classes = ignore_index, 0, 0
        self._overlaps: list[NDArray[np.float64]] = []
        """For each image (2, K): intersection and union."""
        self._correct: list[tuple[int, int]] = []
        """For each image: numbers of correct and of labelled pixels."""

    def update(self, outputs: Tensor, labels: Tensor | None) -> None:
        """Add scores (B, K, h, w) and labels (B, H, W) int; scores are resized bilinearly to the labels' size."""
        from torchmetrics.functional.classification import multiclass_confusion_matrix  # takes seconds to import

        labels = _labels_of_pixels(outputs, labels)
        if labels.is_floating_point():
            raise InputError("Labels of a class map are whole numbers, one class for each pixel, not floating-point.")
        self.classes = outputs.shape[1]
        labelled_pixels = labels >= 0
        if self.ignore_index is not None:
            labelled_pixels &= labels != self.ignore_index
        highest = int(labels[labelled_pixels].max()) if bool(labelled_pixels.any()) else -1
        if highest >= self.classes:
            raise InputError(
                f"Label {highest} is beyond the {self.classes} classes of the model: give the class index that it was "
                "trained with, or set ignore_index to the label of pixels that are not scored."
            )
        for scores, truth, labelled in zip(outputs, labels, labelled_pixels, strict=True):
            if not bool(labelled.any()):
                continue
            predicted = _resized(scores[None].float(), truth.shape)[0].argmax(0)
            matrix = multiclass_confusion_matrix(
                predicted[labelled], truth[labelled], self.classes, validate_args=False
            )
            hits = matrix.diagonal()
            self._overlaps.append(torch.stack([hits, matrix.sum(0) + matrix.sum(1) - hits]).double().numpy())
            self._correct.append((int(hits.sum()), int(matrix.sum())))
            self.count += 1

    def result(self, failures: tuple[Failure, ...] = ()) -> MapScore:
        """The figures so far; needs at least one image."""
        overlaps, correct = self._arrays()
        all_images = np.arange(self.count)[None]
        figures = {
            name: float(statistic(all_images)[0]) for name, statistic in self._statistics(overlaps, correct).items()
        }
        total = overlaps.sum(0)
        iou = tuple(100 * float(hits / union) if union else None for hits, union in total.T)
        intervals = _intervals(self._statistics(overlaps, correct), self.count, self.classes)
        return MapScore(figures, self.count, intervals, iou, failures)

    def change_intervals(self, before: PixelClasses) -> dict[str, Interval]:
        """Figure -> the interval of its difference to `before`, in percentage points, by paired bootstrap."""
        statistics, statistics_before = self._statistics(*self._arrays()), self._statistics(*before._arrays())
        changes = {
            name: lambda resampled, name=name: statistics[name](resampled) - statistics_before[name](resampled)
            for name in statistics
        }
        return _intervals(changes, self.count, self.classes)

    def _arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if not self.count:
            raise InputError("No pixel is labelled: all have the label ignore_index.")
        return np.stack(self._overlaps), np.asarray(self._correct, dtype=np.float64)

    @staticmethod
    def _statistics(overlaps: NDArray[np.float64], correct: NDArray[np.float64]) -> dict[str, Any]:
        """Figure -> a function from R resamples of the images, as indices (R, N), to its values (R,)."""

        def miou(resampled: NDArray[np.intp]) -> NDArray[np.float64]:
            hits, unions = np.moveaxis(overlaps[resampled].sum(-3), -2, 0)
            occurs = unions > 0
            shares = np.divide(hits, unions, out=np.zeros_like(hits), where=occurs)
            return 100 * shares.sum(-1) / occurs.sum(-1)

        def pixels(resampled: NDArray[np.intp]) -> NDArray[np.float64]:
            hits, total = np.moveaxis(correct[resampled].sum(-2), -1, 0)
            return 100 * hits / total

        return {"miou": miou, "pixel_accuracy": pixels}


class DepthErrors:
    """Errors of depth maps, as means over each image's labelled pixels: those with a finite label above 0."""

    def __init__(self) -> None:
        self.count = 0
        self._errors: list[tuple[float, float, float]] = []

    def update(self, outputs: Tensor, labels: Tensor | None) -> None:
        """Add depths (B, h, w) or (B, 1, h, w) and labels (B, H, W) or (B, 1, H, W) in the same unit.

        Depths of another size are resized, bilinearly, to that of the labels.
        """
        from torchmetrics.functional.regression import mean_absolute_percentage_error, mean_squared_error

        outputs = outputs if outputs.ndim == 4 else outputs[:, None]
        labels = _labels_of_pixels(outputs, labels)
        for depth, truth in zip(outputs, labels, strict=True):
            predicted, labelled = _resized(depth[None].double(), truth.shape)[0, 0], truth.isfinite() & (truth > 0)
            if not bool(labelled.any()):
                continue
            predicted, truth = predicted[labelled], truth[labelled].double()
            ratio = torch.maximum(predicted / truth, truth / predicted)
            close = (predicted > 0) & (ratio < DELTA)
            self._errors.append(
                (
                    float(mean_absolute_percentage_error(predicted, truth)),
                    float(mean_squared_error(predicted, truth, squared=False)),
                    100 * float(close.double().mean()),
                )
            )
            self.count += 1

    def result(self, failures: tuple[Failure, ...] = ()) -> MapScore:
        """The figures so far; needs at least one image."""
        errors = self._array()
        means = {name: float(errors[:, i].mean()) for i, name in enumerate(self.NAMES)}
        intervals = {name: mean_interval(errors[:, i]) for i, name in enumerate(self.NAMES)}
        return MapScore(means, self.count, _known(intervals), (), failures)

    def change_intervals(self, before: DepthErrors) -> dict[str, Interval]:
        """Figure -> the interval of its difference to `before`, by paired bootstrap."""
        change = self._array() - before._array()
        return _known({name: mean_interval(change[:, i]) for i, name in enumerate(self.NAMES)})

    NAMES = ("abs_rel", "rmse", "delta1")

    def _array(self) -> NDArray[np.float64]:
        if not self.count:
            raise InputError("No pixel is labelled: a depth is scored where its label is finite and above 0.")
        return np.asarray(self._errors)


def _labels_of_pixels(outputs: Tensor, labels: Tensor | None) -> Tensor:
    """Labels as (B, H, W) for maps (B, C, h, w); raises `InputError` where they do not fit."""
    if labels is not None and labels.ndim == 4 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels is None or labels.ndim != 3 or len(labels) != len(outputs):
        description = "no labels" if labels is None else f"labels of shape {tuple(labels.shape)}"
        raise InputError(
            f"Maps of {len(outputs)} images are scored against labels (images, height, width), and there are "
            f"{description}."
        )
    return labels


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (1, C, h, w) bilinearly with align_corners=False, as segmenters are scored."""
    if maps.shape[2:] == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def _intervals(statistics: Mapping[str, Any], count: int, width: int) -> dict[str, Interval]:
    return _known({name: resampled_interval(statistic, count, 2 * width) for name, statistic in statistics.items()})


def _known(intervals: Mapping[str, Interval | None]) -> dict[str, Interval]:
    return {name: interval for name, interval in intervals.items() if interval is not None}

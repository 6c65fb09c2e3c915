"""Fidelity: how close a sieved model's outputs are to the dense model's, on any images, without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Failure
from ..errors import InputError
from .comparison import OutputKind, check_shapes
from .intervals import Interval, agreement_interval, mean_interval
from .outputs import evaluating, failures_of, forward_batches, nothing_read
from .pair import check_pair
from .scores import IGNORE_INDEX, Accuracy, MapScore, Scorer


@dataclass(frozen=True)
class Fidelity:
    """Agreement of a sieved model with its dense one. All intervals are 95 % confidence intervals.

    Attributes:
        agreement: percent of the images for which both predict the same class; for class maps percent of the pixels,
            for depth maps percent of the pixels whose depths differ by less than a factor of 1.25. None for embeddings,
            tokens and feature maps.
        agreement_stderr: standard error of `agreement` in percentage points: binomial for classes, of the mean over the
            images for maps. It is 0 if all agree, so report the interval instead.
        kl: mean KL(dense || sieved) of the class probabilities in nats, for class maps also averaged over the pixels;
            None without classes.
        cosine: mean cosine similarity of the two outputs; for tokens and maps averaged over tokens or pixels, for depth
            the cosine of the whole maps.
        count: number of images compared.
        failures: pictures that could not be read; they are not counted.
        accuracy: score of the sieved model, if requested: an `Accuracy`, or a `MapScore` for maps.
        dense_accuracy: score of the dense model, if requested.
        agreement_interval: in percent; Wilson's for classes, else by bootstrap over the images.
        kl_interval, cosine_interval: by bootstrap over the images; None for one image.
        changes: sieved score minus dense score, if accuracy was requested: by k in percentage points for top-k
            accuracy, by the names of `MapScore.figures` for maps.
        change_intervals: intervals of `changes`, by paired bootstrap over the images.
        kind: kind of the outputs: "classes", "embeddings", "tokens", "class-map", "feature-map" or "depth".
        divergence: mean of the loss that `tune` minimises: `kl` with classes, the relative error for depth, else
            1 - cosine.
        divergence_interval: by bootstrap over the images; None for one image.
        neighbours: for embeddings, percent of the images whose nearest other image is the same in both; None for fewer
            than three images and for other outputs.
        neighbours_interval: Wilson's, in percent.
    """

    agreement: float | None
    agreement_stderr: float | None
    kl: float | None
    cosine: float
    count: int
    failures: tuple[Failure, ...] = ()
    accuracy: Accuracy | MapScore | None = None
    dense_accuracy: Accuracy | MapScore | None = None
    agreement_interval: Interval | None = None
    kl_interval: Interval | None = None
    cosine_interval: Interval | None = None
    changes: Mapping[Any, float] = field(default_factory=dict)
    change_intervals: Mapping[Any, Interval] = field(default_factory=dict)
    kind: str = "classes"
    divergence: float = 0.0
    divergence_interval: Interval | None = None
    neighbours: float | None = None
    neighbours_interval: Interval | None = None


def fidelity(
    fast: nn.Module,
    dense: nn.Module | Tensor,
    loader: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    k: int | Sequence[int] | None = None,
    labels: bool = False,
    ignore_index: int | None = IGNORE_INDEX,
    kind: str | None = None,
    each: Callable[[Any, Tensor, Tensor], object] | None = None,
) -> Fidelity:
    """Compare a sieved model with the dense one, in evaluation mode and without gradients; modes are restored.

    Any two modules with outputs of equal shape can be compared, such as a segmenter and the same segmenter on a sieved
    backbone.

    Args:
        fast: maps images (B, 3, H, W) to scores (B, K), embeddings (B, D), tokens (B, N, D), maps of class scores or
            features (B, C, H, W) or of depths (B, 1, H, W); or to transformers' `ModelOutput`.
        dense: the dense model, or its outputs for all images in order (`collect_outputs`), on any device.
        loader: a loader of `load_batches`, or any iterable of image tensors or of tuples that begin with images.
        device: the device that images are moved to (the models are not moved); by default each model's.
        dtype: the dtype that images are converted to (the models are not); by default each model's.
        k: also score both models by top-k accuracy in the same pass; the images then need labels.
        labels: also score both models against the labels, as `measure.score` does; `k` implies it.
        ignore_index: as for `measure.score`.
        kind: "depth" if outputs (B, H, W) are depths; see `measure.comparison.KINDS`.
        each: called with each batch of the loader, the dense output and the sieved output.

    Raises:
        InputError: the two models are swapped, their outputs cannot be compared, cached outputs are of other images,
            or there are no images.
    """
    check_pair(fast, dense, "fidelity", sieved=False)
    models = [fast] if isinstance(dense, Tensor) else [fast, dense]
    sums: _Sums | None = None
    with evaluating(*models):
        for batch_outputs in forward_batches(models, loader, device=device, dtype=dtype):
            sieved_output, *dense_outputs = batch_outputs.outputs
            sums = sums or _Sums(batch_outputs.kind(kind))
            reference = dense_outputs[0] if dense_outputs else _cached(dense, sums.count, len(sieved_output))
            if not sums.count and (labels or k is not None):
                sums.scorers = [sums.kind.scorer((1, 5) if k is None else k, ignore_index) for _ in range(2)]
            sums.add(reference, sieved_output, batch_outputs.labels)
            if each is not None:
                each(batch_outputs.batch, reference, sieved_output)
    if sums is None:
        raise nothing_read(loader)
    if isinstance(dense, Tensor) and len(dense) != sums.count:
        raise _other_images(len(dense), sums.count)
    return sums.result(failures_of(loader))


class _Sums:
    """Collects every compared quantity, one number per image."""

    def __init__(self, kind: OutputKind) -> None:
        self.kind, self.count = kind, 0
        self.scorers: list[Scorer] = []
        """Scorers of the dense and of the sieved model, if there are labels."""
        self.divergence: list[Tensor] = []
        self.cosine: list[Tensor] = []
        self.shares: list[Tensor] = []
        self.outputs: list[tuple[Tensor, Tensor]] = []
        """Stored for a kind whose agreement needs all images at once."""

    def add(self, dense: Tensor, sieved: Tensor, labels: Tensor | None) -> None:
        check_shapes(dense, sieved)
        self.count += len(dense)
        self.divergence.append(self.kind.divergence(dense, sieved))
        self.cosine.append(self.kind.cosine(dense, sieved))
        if self.kind.across_images:
            self.outputs.append((dense, sieved))
        elif (shares := self.kind.agreement(dense, sieved)) is not None:
            self.shares.append(shares)
        for scorer, outputs in zip(self.scorers, (dense, sieved), strict=False):
            scorer.update(outputs, labels)

    def result(self, failures: tuple[Failure, ...]) -> Fidelity:
        divergence, cosine = torch.cat(self.divergence), torch.cat(self.cosine)
        mean, interval = float(divergence.mean()), mean_interval(divergence)
        classes = self.kind.classes
        agreement = torch.cat(self.shares) if self.shares else None
        neighbours = None
        if self.outputs:
            dense, sieved = zip(*self.outputs, strict=True)
            neighbours = self.kind.agreement(torch.cat(dense), torch.cat(sieved))
        score_fields: dict[str, Any] = {}
        if self.scorers:
            dense_score, sieved_score = (scorer.result(failures) for scorer in self.scorers)
            values = [
                score.top if isinstance(score, Accuracy) else score.figures for score in (dense_score, sieved_score)
            ]
            score_fields = {
                "accuracy": sieved_score,
                "dense_accuracy": dense_score,
                "changes": {name: values[1][name] - values[0][name] for name in values[1]},
                "change_intervals": self.scorers[1].change_intervals(self.scorers[0]),
            }
        return Fidelity(
            agreement=_percent(agreement),
            agreement_stderr=None if agreement is None else _stderr(agreement),
            kl=mean if classes else None,
            cosine=float(cosine.mean()),
            count=self.count,
            failures=failures,
            agreement_interval=None if agreement is None else agreement_interval(agreement),
            kl_interval=interval if classes else None,
            cosine_interval=mean_interval(cosine),
            kind=self.kind.name,
            divergence=mean,
            divergence_interval=interval,
            neighbours=_percent(neighbours),
            neighbours_interval=None if neighbours is None else agreement_interval(neighbours),
            **score_fields,
        )


def _percent(shares: Tensor | None) -> float | None:
    return None if shares is None else 100 * float(shares.mean())


def _stderr(shares: Tensor) -> float:
    """Standard error of the mean share in percentage points; for shares of 0 or 1 this is the binomial one."""
    return 100 * math.sqrt(float(shares.var(correction=0)) / len(shares))


def _cached(dense: nn.Module | Tensor, start: int, count: int) -> Tensor:
    assert isinstance(dense, Tensor)
    if start + count > len(dense):
        raise _other_images(len(dense), start + count)
    return dense[start : start + count].detach().cpu()


def _other_images(cached: int, read: int) -> InputError:
    return InputError(
        f"The dense outputs are of {cached} images, but the loader gives {'at least ' if read > cached else ''}{read}: "
        "compute both from the same loader."
    )

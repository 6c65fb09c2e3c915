"""How far a sieved model's outputs are from the dense one's, on any images, without labels."""

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
    """Agreement of a sieved model with its dense one. Every interval is one of 95 %.

    Attributes:
        agreement: percent of the images to which both give the same class; of class maps percent of the pixels, of
            depth maps percent of the pixels whose depths differ by less than a factor of 1.25. None for embeddings,
            tokens and maps of features.
        agreement_stderr: standard error of it, in percentage points, of classes the binomial one, of maps that of the
            mean over the images. It is 0 where all agree: the interval is what to print.
        kl: mean KL(dense || sieved) of the class probabilities, in nats, of class maps of each pixel's; None without
            classes.
        cosine: mean cosine of the two outputs; of tokens and maps the mean over tokens or pixels, of depths the cosine
            of the whole maps.
        count: images compared.
        failures: pictures that could not be read; they count nowhere.
        accuracy: of the sieved model, where it was requested: an `Accuracy`, or of maps a `MapScore`.
        dense_accuracy: of the dense model, where it was requested.
        agreement_interval: of classes Wilson's, else by bootstrap over the images; in percent.
        kl_interval, cosine_interval: by bootstrap over the images; None for one image.
        changes: figure -> by how much the sieved model's is higher, where accuracy was requested: of top-k accuracy
            k -> percentage points, of maps by the names of `MapScore.figures`.
        change_intervals: of the same, by paired bootstrap over the images.
        kind: what the outputs are: "classes", "embeddings", "tokens", "class-map", "feature-map" or "depth".
        divergence: the mean of what `tune` makes small: `kl` with classes, of depths the relative error, else
            1 - cosine.
        divergence_interval: by bootstrap over the images; None for one image.
        neighbours: of embeddings, percent of the images whose nearest other image is the same; None of fewer than
            three images, and of other outputs.
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

    Any two modules with outputs of one shape can be compared, such as a segmenter and the same one on a sieved
    backbone.

    Args:
        fast: images (B, 3, H, W) to scores (B, K), embeddings (B, D), tokens (B, N, D), maps of class scores or
            features (B, C, H, W) or of depths (B, 1, H, W); or to transformers' `ModelOutput`.
        dense: the same, or its outputs for all images in order (`collect_outputs`), on any device.
        loader: of `load_batches`, or any tensors of images, or tuples that begin with images.
        device: where the images go (not the models); by default where each model is.
        dtype: of the images (not the models); by default each model's.
        k: also score both models by top-k accuracy in the same pass; the images then need labels.
        labels: also score both models against the labels, as `measure.score` does; `k` implies it.
        ignore_index: as of `measure.score`.
        kind: "depth" where tensors (B, H, W) are meant as that; see `measure.comparison.KINDS`.
        each: called with each batch as it came, and with both models' outputs for it, the dense one's first.

    Raises:
        InputError: the two models in each other's place, outputs that cannot be compared, cached outputs of other
            images, nothing to read.
    """
    check_pair(fast, dense, "fidelity", sieved=False)
    models = [fast] if isinstance(dense, Tensor) else [fast, dense]
    sums: _Sums | None = None
    with evaluating(*models):
        for answers in forward_batches(models, loader, device=device, dtype=dtype):
            sieved_output, *dense_outputs = answers.outputs
            sums = sums or _Sums(answers.kind(kind))
            reference = dense_outputs[0] if dense_outputs else _cached(dense, sums.count, len(sieved_output))
            if not sums.count and (labels or k is not None):
                sums.scorers = [sums.kind.scorer((1, 5) if k is None else k, ignore_index) for _ in range(2)]
            sums.add(reference, sieved_output, answers.labels)
            if each is not None:
                each(answers.batch, reference, sieved_output)
    if sums is None:
        raise nothing_read(loader)
    if isinstance(dense, Tensor) and len(dense) != sums.count:
        raise _other_images(len(dense), sums.count)
    return sums.result(failures_of(loader))


class _Sums:
    """One number for each image of everything that is compared."""

    def __init__(self, kind: OutputKind) -> None:
        self.kind, self.count = kind, 0
        self.scorers: list[Scorer] = []
        """Scorers of the dense and of the sieved model, where there are labels."""
        self.divergence: list[Tensor] = []
        self.cosine: list[Tensor] = []
        self.shares: list[Tensor] = []
        self.outputs: list[tuple[Tensor, Tensor]] = []
        """Kept for a kind whose agreement needs all images at once."""

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
        mean, ends = float(divergence.mean()), mean_interval(divergence)
        classes = self.kind.classes
        agreement = torch.cat(self.shares) if self.shares else None
        near = None
        if self.outputs:
            dense, sieved = zip(*self.outputs, strict=True)
            near = self.kind.agreement(torch.cat(dense), torch.cat(sieved))
        scored: dict[str, Any] = {}
        if self.scorers:
            dense_score, sieved_score = (scorer.result(failures) for scorer in self.scorers)
            values = [
                score.top if isinstance(score, Accuracy) else score.figures for score in (dense_score, sieved_score)
            ]
            scored = {
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
            kl_interval=ends if classes else None,
            cosine_interval=mean_interval(cosine),
            kind=self.kind.name,
            divergence=mean,
            divergence_interval=ends,
            neighbours=_percent(near),
            neighbours_interval=None if near is None else agreement_interval(near),
            **scored,
        )


def _percent(shares: Tensor | None) -> float | None:
    return None if shares is None else 100 * float(shares.mean())


def _stderr(shares: Tensor) -> float:
    """Standard error of the mean share in percentage points; of shares that are 0 or 1 the binomial one."""
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

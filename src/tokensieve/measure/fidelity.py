"""How far a sieved model says what the dense one says, on any images, without labels."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Failure
from ..errors import InputError
from .accuracy import Accuracy, TopK
from .intervals import Interval, change_interval, mean_interval, percent_interval
from .outputs import evaluating, failures_of, forward_batches, nothing_read
from .pair import check_pair


@dataclass(frozen=True)
class Fidelity:
    """Agreement of a sieved model with its dense one. Every interval is one of 95 %.

    Attributes:
        agreement: percent of the images to which both give the same class; None for embeddings.
        agreement_stderr: binomial standard error of it, in percentage points, which is 0 where all agree: the interval
            is what to print. None for embeddings.
        kl: mean KL(dense || sieved) of the class probabilities, in nats; None for embeddings.
        cosine: mean cosine of the two outputs; of token outputs (B, N, C) the mean over the tokens.
        count: images compared.
        failures: pictures that could not be read; they count nowhere.
        accuracy: of the sieved model, when it was asked for.
        dense_accuracy: of the dense model, when it was asked for.
        agreement_interval: Wilson's, in percent; None for embeddings.
        kl_interval, cosine_interval: by bootstrap over the images; None for one image.
        changes: k -> percentage points by which the sieved top-k accuracy is higher, where accuracy was asked for.
        change_intervals: k -> of that, by paired bootstrap over the images.
    """

    agreement: float | None
    agreement_stderr: float | None
    kl: float | None
    cosine: float
    count: int
    failures: tuple[Failure, ...] = ()
    accuracy: Accuracy | None = None
    dense_accuracy: Accuracy | None = None
    agreement_interval: Interval | None = None
    kl_interval: Interval | None = None
    cosine_interval: Interval | None = None
    changes: Mapping[int, float] = field(default_factory=dict)
    change_intervals: Mapping[int, Interval] = field(default_factory=dict)


def fidelity(
    fast: nn.Module,
    dense: nn.Module | Tensor,
    loader: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    k: int | Sequence[int] | None = None,
) -> Fidelity:
    """Compare a sieved model with the dense one, in evaluation mode and without gradients; modes are restored.

    Args:
        fast: images (B, 3, H, W) to scores (B, K), features (B, C) or tokens (B, N, C), or an object with `.logits`.
        dense: the same, or its outputs for all images in order (`collect_outputs`), on any device.
        loader: of `load_batches`, or any tensors of images, or tuples that begin with images.
        device: where the images go (not the models); by default where each model is.
        dtype: of the images (not the models); by default each model's.
        k: also score both models in the same pass, as `accuracy` does; the images then need labels.

    Raises:
        InputError: the two models in each other's place, outputs that cannot be compared, cached outputs of other
            images, nothing to read.
    """
    check_pair(fast, dense, "fidelity", sieved=False)
    models = [fast] if isinstance(dense, Tensor) else [fast, dense]
    scored = None if k is None else (TopK(k), TopK(k))
    sums = _Sums()
    with evaluating(*models):
        for labels, (ours, *theirs), classes in forward_batches(models, loader, device=device, dtype=dtype):
            reference = theirs[0] if theirs else _cached(dense, sums.count, len(ours))
            sums.add(ours, reference, classes)
            if scored is not None:
                for counter, scores in zip(scored, (ours, reference), strict=True):
                    counter.update(scores, labels)
    if not sums.count:
        raise nothing_read(loader)
    if isinstance(dense, Tensor) and len(dense) != sums.count:
        raise _other_images(len(dense), sums.count)
    failures = failures_of(loader)
    return sums.result(failures, scored)


class _Sums:
    def __init__(self) -> None:
        self.classes = True
        self.count = self.same = 0
        self.kl: list[Tensor] = []
        self.cosine: list[Tensor] = []

    def add(self, ours: Tensor, theirs: Tensor, classes: bool) -> None:
        if ours.ndim == theirs.ndim == 3 and ours.shape[1] != theirs.shape[1]:
            raise InputError(
                f"The sieved model returns {ours.shape[1]} tokens and the dense one {theirs.shape[1]}: compare pooled "
                "features, or restore the grid first (trace.restore)."
            )
        if ours.shape != theirs.shape or ours.ndim > 3:
            raise InputError(
                f"Outputs of shape {tuple(ours.shape)} and {tuple(theirs.shape)} cannot be compared: "
                "scores, features or tokens of one shape are needed."
            )
        # One class alone always agrees: that is no agreement.
        self.classes = classes and ours.ndim == 2 and ours.shape[1] > 1
        ours, theirs = ours.double(), theirs.double()
        self.count += len(ours)
        cosine = F.cosine_similarity(ours, theirs, dim=-1).clamp(-1, 1)
        self.cosine.append(cosine.reshape(len(ours), -1).mean(1))
        if self.classes:
            self.same += int((ours.argmax(1) == theirs.argmax(1)).sum())
            self.kl.append(kl_divergence(theirs, ours))

    def result(self, failures: tuple[Failure, ...], scored: tuple[TopK, TopK] | None) -> Fidelity:
        """Everything, from counters of the sieved and the dense model where accuracy was asked for."""
        share, cosine = self.same / self.count, torch.cat(self.cosine)
        kl = torch.cat(self.kl) if self.classes else None
        agreement = 100 * share if self.classes else None
        ours, theirs = (None, None) if scored is None else (counter.result(failures) for counter in scored)
        changes, intervals = dict[int, float](), dict[int, Interval]()
        if scored is not None and ours is not None and theirs is not None:
            changes = {k: ours.top[k] - theirs.top[k] for k in ours.top}
            intervals = {k: change_interval(scored[1].right(k), scored[0].right(k)) for k in ours.top}
        return Fidelity(
            agreement=agreement,
            agreement_stderr=100 * math.sqrt(share * (1 - share) / self.count) if self.classes else None,
            kl=None if kl is None else float(kl.mean()),
            cosine=float(cosine.mean()),
            count=self.count,
            failures=failures,
            accuracy=ours,
            dense_accuracy=theirs,
            agreement_interval=percent_interval(agreement, self.count),
            kl_interval=None if kl is None else mean_interval(kl),
            cosine_interval=mean_interval(cosine),
            changes=changes,
            change_intervals=intervals,
        )


def kl_divergence(dense: Tensor, sieved: Tensor) -> Tensor:
    """KL(dense || sieved) in nats, (B,), of the softmax of scores (B, K); what dense excludes (-inf) adds nothing."""
    log_p, log_q = dense.log_softmax(-1), sieved.log_softmax(-1)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0).sum(-1)


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

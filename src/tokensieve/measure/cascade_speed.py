"""Speed of a cascade relative to the dense model, with its mean and its slowest batches, which differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles

import torch
from torch import Tensor, nn

from ..cascades.cascade import Cascade
from ..data.inputs import InputSpec, check_images, reading
from ..errors import InputError
from .pair import check_pair, eager
from .speed import clock, spread


@dataclass(frozen=True)
class Latency:
    """Seconds per batch, over batches of different images: mean, median and 99th percentile."""

    mean: float
    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """The latency from the seconds of at least two batches."""
        cuts = quantiles(seconds, n=100, method="inclusive")
        return cls(fmean(seconds), cuts[49], cuts[98])


@dataclass(frozen=True)
class CascadeSpeed:
    """Time of a cascade and of the dense model, measured in turn on each batch."""

    ratio: float
    """Dense time divided by the cascade's, summed over all batches."""
    low: float
    """10th percentile of the ratio over batches."""
    high: float
    """90th percentile."""
    dense: Latency
    cascade: Latency
    shares: tuple[float, ...]
    """The share of the images that each member read."""
    batch: int
    """Images per batch."""
    images: int
    """Number of different images."""
    batches: int
    """Number of timed batches."""
    threads: int


@torch.no_grad()
def cascade_speed(
    cascade: Cascade, dense: nn.Module, images: Tensor, batch: int, *, seconds: float = 10.0, max_passes: int = 20
) -> CascadeSpeed:
    """Time a cascade and the dense model on all images, the two in turn on each batch.

    Args:
        cascade: the cascade, or its compiled module.
        dense: the dense model.
        images: (N, C, H, W), on the device and in the precision of both models. The time depends on how many images go
            on to the next member, so give many, like those in use; batches are taken from them in order.
        batch: images per batch; N must be at least twice that. An incomplete last batch is not timed.
        seconds: time to spend; at least one pass over the images is made.
        max_passes: passes over the images at most.

    Raises:
        InputError: not a cascade, or too few images.
    """
    check_pair(cascade, dense, "cascade_speed")
    eager_cascade = eager(cascade)
    if not isinstance(eager_cascade, Cascade):
        raise InputError("cascade_speed times a cascade; use speed(fast, dense, images) for a single recipe.")
    chunks = [chunk for chunk in check_images(images, InputSpec.of(dense).layout).split(batch) if len(chunk) == batch]
    if len(chunks) < 2:
        raise InputError(f"{len(images)} images are fewer than two batches of {batch}: give more.")
    models = {"dense": dense, "cascade": eager_cascade.unwatched() if cascade is eager_cascade else cascade}
    times: dict[str, list[float]] = {name: [] for name in models}
    order, shares = list(models), torch.zeros(len(eager_cascade.members))
    with reading(dense, images):
        for chunk in chunks:
            shares += torch.tensor(eager_cascade.trace(chunk).shares) / len(chunks)  # also warms up
        dense(chunks[0])
        start = clock()
        for turn in range(max_passes):
            if turn and clock() - start > seconds:
                break
            for chunk in chunks:
                for name in order:
                    began = clock()
                    models[name](chunk)
                    times[name].append(clock() - began)
                order.reverse()
    low, _, high = spread([d / c for d, c in zip(times["dense"], times["cascade"], strict=True)])
    return CascadeSpeed(
        ratio=sum(times["dense"]) / sum(times["cascade"]),
        low=low,
        high=high,
        dense=Latency.of(times["dense"]),
        cascade=Latency.of(times["cascade"]),
        shares=tuple(shares.tolist()),
        batch=batch,
        images=len(chunks) * batch,
        batches=len(times["dense"]),
        threads=torch.get_num_threads(),
    )

"""Speed of a cascade relative to the dense model, over many batches of different images.

The time of a batch depends on how many of its images need further members of the cascade, so the slowest batches are
reported beside the mean.
"""

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
        """The latency from the seconds of each batch, at least two."""
        percentiles = quantiles(seconds, n=100, method="inclusive")  # the 1st to the 99th
        return cls(fmean(seconds), percentiles[49], percentiles[98])


@dataclass(frozen=True)
class CascadeSpeed:
    """Time of a cascade and of the dense model, measured in turn on each batch."""

    ratio: float
    """Dense time divided by the cascade's, summed over all batches."""
    low: float
    """10th percentile of the ratio of a batch, over batches."""
    high: float
    """90th percentile of the same."""
    dense: Latency
    cascade: Latency
    shares: tuple[float, ...]
    """For each member of the cascade, the share of the images that it was run on; 1 for the first that runs."""
    batch: int
    """Images per batch."""
    images: int
    """Number of different images."""
    batches: int
    """Number of timed batches; in several passes each image is in several."""
    threads: int
    """Number of torch's CPU threads."""


@torch.no_grad()
def cascade_speed(
    cascade: Cascade, dense: nn.Module, images: Tensor, batch: int, *, seconds: float = 10.0, max_passes: int = 20
) -> CascadeSpeed:
    """Time a cascade and the dense model on batches of images, the two in turn on each batch.

    Args:
        cascade: the cascade, from `sieve`, or the result of `torch.compile(cascade)`.
        dense: the dense model.
        images: (N, C, H, W), on the device and in the precision of both models. The time depends on how many images
            need a further member, so give many, like those of the application; batches are taken from them in order.
        batch: images per batch; N must be at least twice that. An incomplete last batch is not timed.
        seconds: no further pass over the images begins after this time; one pass is always made.
        max_passes: largest number of passes over the images.

    Raises:
        InputError: not a cascade, images that the model cannot read, or too few of them.
    """
    check_pair(cascade, dense, "cascade_speed")
    eager_cascade = eager(cascade)
    if not isinstance(eager_cascade, Cascade):
        raise InputError("cascade_speed times a cascade; use speed(fast, dense, images) for a single recipe.")
    chunks = [chunk for chunk in check_images(images, InputSpec.of(dense).layout).split(batch) if len(chunk) == batch]
    if len(chunks) < 2:
        raise InputError(f"{len(images)} images are fewer than two batches of {batch}: give more.")
    # `unwatched`: measuring must not trigger the cascade's warning of drift, which a compiled cascade never gives.
    models = {"dense": dense, "cascade": eager_cascade.unwatched() if cascade is eager_cascade else cascade}
    times: dict[str, list[float]] = {name: [] for name in models}
    order, shares = list(models), torch.zeros(len(eager_cascade.members))
    with reading(dense, images):
        for chunk in chunks:
            shares += torch.tensor(eager_cascade.trace(chunk).shares) / len(chunks)  # also warms up
        dense(chunks[0])
        start = clock()
        for pass_index in range(max_passes):
            if pass_index and clock() - start > seconds:
                break
            for chunk in chunks:
                for name in order:
                    began = clock()
                    models[name](chunk)
                    times[name].append(clock() - began)
                order.reverse()  # so that each model is as often first as second
    low, _, high = spread(
        [dense_s / cascade_s for dense_s, cascade_s in zip(times["dense"], times["cascade"], strict=True)]
    )
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

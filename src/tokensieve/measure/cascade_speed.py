"""Speed of a cascade, beside the dense model: what it takes on average, and in the worst cases, differ."""

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
    """Seconds a batch: the mean over batches of other images, the median, and what 99 of 100 stay within."""

    mean: float
    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Of at least two batches."""
        cuts = quantiles(seconds, n=100, method="inclusive")
        return cls(fmean(seconds), cuts[49], cuts[98])


@dataclass(frozen=True)
class CascadeSpeed:
    """How long a cascade takes beside the dense model, batch for batch in turn."""

    ratio: float
    """Dense time over the cascade's, of all batches together."""
    low: float
    """10th percentile of the ratio over batches."""
    high: float
    """90th percentile."""
    dense: Latency
    cascade: Latency
    shares: tuple[float, ...]
    """The share of the images that each member read."""
    batch: int
    images: int
    """How many different ones."""
    batches: int
    """How many were timed."""
    threads: int


@torch.no_grad()
def cascade_speed(
    cascade: Cascade, dense: nn.Module, images: Tensor, batch: int, *, seconds: float = 10.0, max_passes: int = 20
) -> CascadeSpeed:
    """Time a cascade and the dense model on all images, batch for batch, the two taking turns.

    Args:
        images: (N, C, H, W), as they are: device and precision are the images'. What is read again depends on them, so
            give many, and such as those in use; batches are cut from them in their order.
        batch: how many go through together; N is at least twice that, and what is left over is not timed.
        seconds: time to spend; one pass over the images is made however long it takes.

    Raises:
        InputError: no cascade, or too few images.
    """
    check_pair(cascade, dense, "cascade_speed")
    itself = eager(cascade)
    if not isinstance(itself, Cascade):
        raise InputError("cascade_speed is of a cascade; of one recipe speed(fast, dense, images) is.")
    chunks = [chunk for chunk in check_images(images, InputSpec.of(dense).layout).split(batch) if len(chunk) == batch]
    if len(chunks) < 2:
        raise InputError(f"{len(images)} images are no two batches of {batch}: give more.")
    models = {"dense": dense, "cascade": itself.unwatched() if cascade is itself else cascade}
    times: dict[str, list[float]] = {name: [] for name in models}
    order, reads = list(models), torch.zeros(len(itself.members))
    with reading(dense, images):
        for chunk in chunks:
            reads += torch.tensor(itself.trace(chunk).shares) / len(chunks)  # and warms up
        dense(chunks[0])
        start = clock()
        for turn in range(max_passes):
            if turn and clock() - start > seconds:
                break
            for chunk in chunks:
                for name in order:
                    begun = clock()
                    models[name](chunk)
                    times[name].append(clock() - begun)
                order.reverse()
    low, _, high = spread([d / c for d, c in zip(times["dense"], times["cascade"], strict=True)])
    return CascadeSpeed(
        ratio=sum(times["dense"]) / sum(times["cascade"]),
        low=low,
        high=high,
        dense=Latency.of(times["dense"]),
        cascade=Latency.of(times["cascade"]),
        shares=tuple(reads.tolist()),
        batch=batch,
        images=len(chunks) * batch,
        batches=len(times["dense"]),
        threads=torch.get_num_threads(),
    )

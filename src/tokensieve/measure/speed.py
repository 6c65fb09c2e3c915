"""Speed as a ratio: dense model, sieved model and slicing limit, interleaved in one process."""

from __future__ import annotations

import timeit
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from ..data.inputs import InputSpec, check_images, reading
from ..stream import Sieved
from .limit import SlicingLimit
from .pair import check_pair, eager


@dataclass(frozen=True)
class Speed:
    """How many times faster than the dense model, everything included.

    Each figure is the median over rounds; in a round every contestant runs once, so that a machine that slows down
    slows all of them.
    """

    ratio: float
    """Dense time over sieved time."""
    low: float
    """10th percentile of the ratio over rounds."""
    high: float
    """90th percentile."""
    limit: float
    """Dense time over the slicing limit's time: what the ratio would be if choosing tokens cost nothing."""
    of_limit: float
    """Limit time over sieved time: 1 means that nothing is lost to selection, merging, size bias and proposal."""
    of_limit_low: float
    of_limit_high: float
    proposal_share: float
    """Time of the significance map over dense time; 0 where the recipe has none."""
    seconds: dict[str, float]
    """Median seconds a batch of `dense`, `sieved`, `limit` and `proposal`. Comparable within one run alone."""
    batch: int
    threads: int
    rounds: int
    times: dict[str, list[float]] = field(repr=False, default_factory=dict)
    """All measured seconds, a value for each round."""

    def without_proposal(self) -> float:
        """Limit time over sieved time less the proposal's: the overhead of selection alone."""
        sieved, limit = self.times["sieved"], self.times["limit"]
        proposal = self.times.get("proposal", [0.0] * len(sieved))
        return median(n / (s - p) for n, s, p in zip(limit, sieved, proposal, strict=True))


@torch.no_grad()
def speed(
    fast: Sieved,
    dense: nn.Module,
    images: Tensor,
    *,
    seconds: float = 10.0,
    min_rounds: int = 7,
    max_rounds: int = 200,
    limit: nn.Module | None = None,
) -> Speed:
    """Measure `fast` against `dense` on `images` (B, 3, H, W), as they are: device, dtype and batch are the images'.

    Args:
        seconds: time to spend after warm-up; at least `min_rounds` rounds run however long they take.
        limit: what to take as the limit; by default `SlicingLimit.on` these images. A compiled `fast` needs one too.

    Runs in as many threads as torch is set to.

    Raises:
        InputError: the two in each other's place, another module than `sieve` returned as `fast`, images that are no
            tensor (B, C, H, W) of floating-point numbers, or that the models do not read.
    """
    check_pair(fast, dense, "speed")
    with reading(dense, check_images(images, InputSpec.of(dense).layout)):
        times = _race(fast, dense, images, limit, seconds=seconds, min_rounds=min_rounds, max_rounds=max_rounds)
    return summarise(times, images.shape[0])


def _race(
    fast: Sieved, dense: nn.Module, images: Tensor, limit: nn.Module | None, **settings: Any
) -> dict[str, list[float]]:
    """Everybody's times."""
    itself = eager(fast)
    contestants: dict[str, Callable[[], object]] = {
        "dense": partial(dense, images),
        "sieved": partial(fast, images),
        "limit": partial(limit if limit is not None else SlicingLimit.on(itself, images), images),
    }
    if itself.significance is not None:
        contestants["proposal"] = itself.map_call(images)
    return interleaved(contestants, **settings)


def summarise(times: dict[str, list[float]], batch: int) -> Speed:
    """`Speed` from the seconds of `dense`, `sieved`, `limit` and, where there is one, `proposal`, round by round."""
    dense, sieved, limit = times["dense"], times["sieved"], times["limit"]
    low, ratio, high = spread([d / s for d, s in zip(dense, sieved, strict=True)])
    of_low, of_limit, of_high = spread([n / s for n, s in zip(limit, sieved, strict=True)])
    proposal = times.get("proposal", [0.0] * len(dense))
    return Speed(
        ratio=ratio,
        low=low,
        high=high,
        limit=median(d / n for d, n in zip(dense, limit, strict=True)),
        of_limit=of_limit,
        of_limit_low=of_low,
        of_limit_high=of_high,
        proposal_share=median(p / d for p, d in zip(proposal, dense, strict=True)),
        seconds={name: median(values) for name, values in times.items()},
        batch=batch,
        threads=torch.get_num_threads(),
        rounds=len(dense),
        times=times,
    )


def interleaved(
    contestants: dict[str, Callable[[], object]], *, seconds: float, min_rounds: int, max_rounds: int
) -> dict[str, list[float]]:
    """Seconds a call of each contestant, a value for each round; every round runs all, forwards then backwards."""
    # Not torch's benchmark Timer, which runs every single call three times to warm up.
    timers = {name: timeit.Timer(call, timer=clock) for name, call in contestants.items()}
    repeats = {}
    for name, timer in timers.items():
        once = timer.timeit(1)
        if once < 1:  # the first call warms up; a slow one was slow for its own sake
            once = timer.timeit(1)
        repeats[name] = max(1, min(50, round(0.05 / once)))  # short calls are repeated to some 50 ms
    times: dict[str, list[float]] = {name: [] for name in timers}
    order, start = list(timers), perf_counter()
    for turn in range(max_rounds):
        if turn >= min_rounds and perf_counter() - start > seconds:
            break
        for name in order:
            times[name].append(timers[name].timeit(repeats[name]) / repeats[name])
        order.reverse()
    return times


def clock() -> float:
    """Seconds, once an accelerator has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return perf_counter()


def spread(values: list[float]) -> tuple[float, float, float]:
    """10th percentile, median, 90th percentile."""
    deciles = quantiles(values, n=10, method="inclusive")
    return deciles[0], median(values), deciles[-1]

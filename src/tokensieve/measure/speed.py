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
    """Speed of a sieved model relative to the dense model, with the cost of proposal and selection included.

    Each figure is the median over rounds; in each round every model runs once, so that a machine that slows down slows
    all of them.
    """

    ratio: float
    """Dense time divided by sieved time."""
    low: float
    """10th percentile of the ratio over rounds."""
    high: float
    """90th percentile."""
    limit: float
    """Dense time divided by the slicing limit's time: the ratio if choosing tokens cost nothing."""
    of_limit: float
    """Limit time divided by sieved time: 1 means that selection, merging, size bias and proposal cost nothing."""
    of_limit_low: float
    of_limit_high: float
    proposal_share: float
    """Time of the significance map divided by dense time; 0 if the recipe has none."""
    seconds: dict[str, float]
    """Median seconds per batch of `dense`, `sieved`, `limit` and `proposal`. Comparable only within one run."""
    batch: int
    threads: int
    rounds: int
    times: dict[str, list[float]] = field(repr=False, default_factory=dict)
    """All measured seconds, one value per round."""

    def without_proposal(self) -> float:
        """Limit time divided by (sieved time minus proposal time): the overhead without the proposal's."""
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
    """Measure how much faster `fast` is than `dense`, interleaved in one process.

    Args:
        fast: the sieved model.
        dense: the dense model.
        images: (B, 3, H, W), on the device and in the dtype of both models; B is the batch size.
        seconds: time to spend after warm-up; at least `min_rounds` rounds are run.
        min_rounds, max_rounds: number of rounds at least and at most.
        limit: the slicing limit to measure; by default `SlicingLimit.on` these images. For a compiled `fast`, give a
            compiled limit.

    Uses torch's current number of threads.

    Raises:
        InputError: the two models are swapped, `fast` is not a sieved model, `images` is not a floating-point tensor
            (B, C, H, W), or the models cannot read it.
    """
    check_pair(fast, dense, "speed")
    with reading(dense, check_images(images, InputSpec.of(dense).layout)):
        times = _measure(fast, dense, images, limit, seconds=seconds, min_rounds=min_rounds, max_rounds=max_rounds)
    return summarise(times, images.shape[0])


def _measure(
    fast: Sieved, dense: nn.Module, images: Tensor, limit: nn.Module | None, **settings: Any
) -> dict[str, list[float]]:
    """Seconds per call, round by round, of the dense model, the sieved one, the limit and the proposal."""
    sieved = eager(fast)
    calls: dict[str, Callable[[], object]] = {
        "dense": partial(dense, images),
        "sieved": partial(fast, images),
        "limit": partial(limit if limit is not None else SlicingLimit.on(sieved, images), images),
    }
    if sieved.significance is not None:
        calls["proposal"] = sieved.map_call(images)
    return interleaved(calls, **settings)


def summarise(times: dict[str, list[float]], batch: int) -> Speed:
    """`Speed` from the seconds of `dense`, `sieved`, `limit` and, if any, `proposal`, one value per round."""
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
    calls: dict[str, Callable[[], object]], *, seconds: float, min_rounds: int, max_rounds: int
) -> dict[str, list[float]]:
    """Seconds per call of each function, one value per round. Every round runs all, in alternating order."""
    # Not torch.utils.benchmark.Timer, which runs every call three times to warm up.
    timers = {name: timeit.Timer(call, timer=clock) for name, call in calls.items()}
    repeats = {}
    for name, timer in timers.items():
        once = timer.timeit(1)
        if once < 1:  # the first call includes warm-up, which matters only for short calls
            once = timer.timeit(1)
        repeats[name] = max(1, min(50, round(0.05 / once)))  # short calls are repeated for about 50 ms
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
    """Time in seconds, after an accelerator has finished its queued work."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return perf_counter()


def spread(values: list[float]) -> tuple[float, float, float]:
    """10th percentile, median, 90th percentile."""
    deciles = quantiles(values, n=10, method="inclusive")
    return deciles[0], median(values), deciles[-1]

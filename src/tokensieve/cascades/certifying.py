"""Thresholds that keep a promise: "learn then test" over a fixed sequence, with the exact bound of a binomial.

Angelopoulos, Bates, Candes, Jordan and Lei, Learn then Test: Calibrating Predictive Algorithms to Achieve Risk Control
(arXiv 2110.01052), 1.2 and 3.2; Clopper and Pearson, The Use of Confidence or Fiducial Limits Illustrated in the Case
of the Binomial, Biometrika 26, 1934.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, log

import numpy as np
from numpy.typing import NDArray

STEPS = 1000
"""Thresholds that are tested at most, one after the other."""
EXAMINED = 10**7
"""Largest number of images that `images_needed` tries."""


@dataclass(frozen=True)
class Certified:
    """Thresholds of a cascade, with the statistics that certify them on the calibration images."""

    thresholds: tuple[float, ...]
    """Of each member but the last; 1 where no lower threshold keeps the promise: all its images are read again."""
    certified: bool
    """Whether the bound reaches the promised agreement."""
    agreement: float
    """Share of the images with the dense model's answer under these thresholds."""
    bound: float
    """Lower confidence bound of the agreement on images of the same distribution."""
    shares: tuple[float, ...]
    """Share of the images that each member reads."""
    images: int
    refused: float | None
    """Agreement at the next threshold, which was not certified; None where none was left, or the first was not."""


@lru_cache(maxsize=4096)
def lower_bound(hits: int, count: int, confidence: float) -> float:
    """Clopper and Pearson's one-sided lower bound of a proportion of which `hits` of `count` were observed."""
    from scipy.special import betaincinv  # scipy takes a while: only where it is used

    return 0.0 if hits == 0 else float(betaincinv(hits, count - hits + 1, 1 - confidence))


def images_needed(agree: float, confidence: float, share: float = 1.0) -> int | None:
    """How many images certify `agree` where `share` of them have the dense model's answer; None if no number does.

    With share 1 it is the smallest number that can: log(1 - confidence) / log(agree).
    """
    if share >= 1:
        return ceil(log(1 - confidence) / log(agree) - 1e-9)
    if share <= agree:
        return None

    def enough(count: int) -> bool:
        return lower_bound(int(share * count), count, confidence) >= agree

    high = images_needed(agree, confidence) or 1
    while not enough(high):
        high *= 2
        if high > EXAMINED:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def certify(
    scores: NDArray[np.float64],
    same: NDArray[np.bool_],
    agree: float,
    confidence: float,
    towards: Sequence[float] | None = None,
) -> Certified:
    """The lowest thresholds of a sequence, fixed beforehand, up to which each one keeps the promise.

    From "read everything again" downwards each threshold is tested against the hypothesis that it agrees too seldom,
    by the exact bound, until one cannot be certified: as the order is fixed before any image is seen, the last one
    that was certified keeps the promise with the confidence of a single test.

    Args:
        scores: (M - 1, N) how sure each member but the last is of each image, 0 to 1.
        same: (M, N) whether each member has the dense model's answer.
        agree, confidence: the promise: at least that share of answers the same, with that confidence.
        towards: thresholds of several members that the sequence passes through, found on other images; without them
            all members have the same one.
    """
    readers, count = scores.shape
    powers = _powers(towards, readers)

    def outcome(step: float) -> tuple[tuple[float, ...], NDArray[np.bool_], tuple[float, ...]]:
        thresholds = tuple(step**power if step > 0 else 0.0 for power in powers)
        pending, agrees, shares = np.ones(count, dtype=bool), np.zeros(count, dtype=bool), []
        for threshold, sure, right in zip(thresholds, scores, same[:-1], strict=True):
            shares.append(float(pending.mean()) if threshold < 1 else 0.0)
            accepted = pending & (sure >= threshold) & (threshold < 1)
            agrees[accepted] = right[accepted]
            pending = pending & ~accepted
        agrees[pending] = same[-1][pending]
        return thresholds, agrees, (*shares, float(pending.mean()))

    last: Certified | None = None
    for number in range(STEPS, -1, -1):
        thresholds, agrees, shares = outcome(number / STEPS)
        hits = int(agrees.sum())
        bound = lower_bound(hits, count, confidence)
        if last is not None and bound < agree:
            return replace(last, refused=hits / count)
        tested = Certified(thresholds, bound >= agree, hits / count, bound, shares, count, None)
        if last is None and bound < agree:
            return tested
        last = tested
    assert last is not None
    return last


def _powers(towards: Sequence[float] | None, readers: int) -> list[float]:
    """Each threshold as a power of the first, so that all begin at 1, end at 0 and pass through `towards`."""
    if towards is None:
        return [1.0] * readers
    inside = [min(max(each, 1e-6), 1 - 1e-6) for each in towards]
    return [log(each) / log(inside[0]) for each in inside]

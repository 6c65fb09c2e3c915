"""Thresholds that keep a promise: "learn then test" over a fixed sequence, with the exact bound of a binomial.

Angelopoulos, Bates, Candes, Jordan and Lei, Learn then Test: Calibrating Predictive Algorithms to Achieve Risk Control
(arXiv 2110.01052), 1.2 and 3.2; Clopper and Pearson, The Use of Confidence or Fiducial Limits Illustrated in the Case
of the Binomial, Biometrika 26, 1934.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log

import numpy as np
from numpy.typing import NDArray

STEPS = 1000
"""Thresholds that are tested at most, one after the other."""
EXAMINED = 10**7
"""Images up to which it is looked how many would certify a promise."""


@dataclass(frozen=True)
class Certified:
    """The thresholds that were found, and what is known of them from the images."""

    thresholds: tuple[float, ...]
    """1 where reading again is all that keeps the promise, or nothing does."""
    certified: bool
    """Whether the images show the promise to be kept."""
    agreement: float
    """Share of the images with the dense model's answer under these thresholds."""
    bound: float
    """Lower bound of the agreement on images like these, at the confidence asked for."""
    shares: tuple[float, ...]
    """Share of the images that each member reads."""
    images: int
    refused: float | None
    """Agreement at the next threshold, which was not certified; None where none was left, or the first was not."""


@lru_cache(maxsize=4096)
def lower_bound(hits: int, count: int, confidence: float) -> float:
    """Clopper and Pearson's one-sided lower bound of a share, of which `hits` of `count` were seen: whatever the share,
    it is below with that confidence."""
    from scipy.special import betaincinv  # scipy takes a while: only where it is used

    return 0.0 if hits == 0 else float(betaincinv(hits, count - hits + 1, 1 - confidence))


def images_needed(agree: float, confidence: float, share: float = 1.0) -> int | None:
    """How many images certify `agree` where `share` of them have the dense model's answer; None where none do.

    With share 1 it is the least that can: log(1 - confidence) / log(agree).
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
        going, answer, shares = np.ones(count, dtype=bool), np.zeros(count, dtype=bool), []
        for threshold, sure, right in zip(thresholds, scores, same[:-1], strict=True):
            shares.append(float(going.mean()) if threshold < 1 else 0.0)
            accepted = going & (sure >= threshold) & (threshold < 1)
            answer[accepted] = right[accepted]
            going = going & ~accepted
        answer[going] = same[-1][going]
        return thresholds, answer, (*shares, float(going.mean()))

    kept: Certified | None = None
    for number in range(STEPS, -1, -1):
        thresholds, answer, shares = outcome(number / STEPS)
        hits = int(answer.sum())
        bound = lower_bound(hits, count, confidence)
        if kept is not None and bound < agree:
            return Certified(kept.thresholds, True, kept.agreement, kept.bound, kept.shares, count, hits / count)
        found = Certified(thresholds, bound >= agree, hits / count, bound, shares, count, None)
        if kept is None and bound < agree:
            return found
        kept = found
    assert kept is not None
    return kept


def _powers(towards: Sequence[float] | None, readers: int) -> list[float]:
    """Each threshold as a power of the first, so that all begin at 1, end at 0 and pass through `towards`."""
    if towards is None:
        return [1.0] * readers
    inside = [min(max(each, 1e-6), 1 - 1e-6) for each in towards]
    return [log(each) / log(inside[0]) for each in inside]

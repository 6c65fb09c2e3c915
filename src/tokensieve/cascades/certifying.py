"""Certified thresholds: "learn then test" over a fixed sequence of thresholds, with the exact binomial bound.

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
"""Number of steps in the sequence of thresholds, which are tested one after the other."""
MAX_IMAGES = 10**7
"""Largest number of images that `images_needed` tries."""


@dataclass(frozen=True)
class Certified:
    """Thresholds of a cascade, with the statistics that certify them on the calibration images."""

    thresholds: tuple[float, ...]
    """The threshold of each member but the last; 1 if no lower threshold could be certified: all images are read
    again."""
    certified: bool
    """Whether the bound reaches the requested agreement."""
    agreement: float
    """Share of the images whose predicted class is that of the dense model, with these thresholds."""
    bound: float
    """Lower confidence bound of the agreement on images of the same distribution."""
    shares: tuple[float, ...]
    """Share of the images that each member reads."""
    images: int
    """Number of calibration images."""
    refused: float | None
    """Agreement at the next threshold, which was not certified; None if there is no lower one, or if none was
    certified."""


@lru_cache(maxsize=4096)
def lower_bound(hits: int, count: int, confidence: float) -> float:
    """Clopper and Pearson's one-sided lower bound of a proportion, for `hits` successes in `count` trials."""
    from scipy.special import betaincinv  # here, since importing scipy is slow

    return 0.0 if hits == 0 else float(betaincinv(hits, count - hits + 1, 1 - confidence))


def images_needed(agree: float, confidence: float, share: float = 1.0) -> int | None:
    """The number of calibration images needed to certify the agreement `agree`, if the observed agreement is `share`.

    None if no number is enough. For share 1 it is log(1 - confidence) / log(agree), rounded up.
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
        if high > MAX_IMAGES:
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
    """Find the lowest thresholds that can be certified, in a fixed sequence of thresholds.

    The sequence starts at 1, where all images are read again, and goes down. Each threshold is tested, by the exact
    bound, against the hypothesis that the agreement is below `agree`, until one cannot be certified. Since the order is
    fixed before any image is seen, the last certified threshold is valid with the confidence of a single test.

    Args:
        scores: (M - 1, N) confidence of each member but the last for each image, 0 to 1.
        same: (M, N) whether each member predicts the class of the dense model.
        agree, confidence: the agreement to certify, at least this share of the images, with this confidence.
        towards: thresholds of the members, found on other images, through which the sequence passes; None: all members
            have the same threshold.
    """
    readers, count = scores.shape
    powers = _powers(towards, readers)

    def outcome(step: float) -> tuple[tuple[float, ...], NDArray[np.bool_], tuple[float, ...]]:
        """Thresholds at a step of the sequence, whether each image agrees, and the share that each member reads."""
        thresholds = tuple(step**power if step > 0 else 0.0 for power in powers)
        pending, agrees, shares = np.ones(count, dtype=bool), np.zeros(count, dtype=bool), []
        for threshold, member_scores, member_same in zip(thresholds, scores, same[:-1], strict=True):
            shares.append(float(pending.mean()) if threshold < 1 else 0.0)
            accepted = pending & (member_scores >= threshold) & (threshold < 1)
            agrees[accepted] = member_same[accepted]
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
    """Exponents with which each threshold is a power of the first, so that all start at 1, end at 0 and pass through
    `towards`."""
    if towards is None:
        return [1.0] * readers
    clamped = [min(max(threshold, 1e-6), 1 - 1e-6) for threshold in towards]
    return [log(threshold) / log(clamped[0]) for threshold in clamped]

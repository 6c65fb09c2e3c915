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
    """The threshold of each member but the last: an image is answered by the first member whose score reaches it. At 1
    a member is skipped, and every image goes on to the next."""
    certified: bool
    """Whether `bound` is at least the requested agreement."""
    agreement: float
    """Share of the images whose predicted class is that of the dense model, with these thresholds."""
    bound: float
    """Lower confidence bound of the agreement on images of the same distribution."""
    shares: tuple[float, ...]
    """Share of the images that each member reads."""
    images: int
    """Number of calibration images."""
    refused: float | None
    """Agreement at the next thresholds of the sequence, the first that could not be certified; None if there are none
    after these, or if no thresholds could be certified."""


@lru_cache(maxsize=4096)
def lower_bound(hits: int, count: int, confidence: float) -> float:
    """Clopper and Pearson's one-sided lower bound of a proportion, for `hits` successes in `count` trials."""
    from scipy.special import betaincinv  # here, since importing scipy is slow

    return 0.0 if hits == 0 else float(betaincinv(hits, count - hits + 1, 1 - confidence))


def images_needed(agree: float, confidence: float, share: float = 1.0) -> int | None:
    """The number of calibration images needed to certify the agreement `agree`, if the observed agreement is `share`.

    None if no number is enough. If all images agree it is log(1 - confidence) / log(agree), rounded up.
    """
    if share >= 1:
        return ceil(log(1 - confidence) / log(agree) - 1e-9)  # rounding must not add an image
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

    The sequence starts at thresholds of 1, where every image goes on to the last member, and decreases to 0. At each
    step the exact binomial bound tests the hypothesis that the agreement is below `agree`; the sequence ends where it
    cannot be rejected. Since the order is fixed before any image is seen, no correction for many tests is needed: the
    last certified thresholds are valid with the confidence of a single test.

    Args:
        scores: (M - 1, N) confidence of each member but the last for each image, 0 to 1.
        same: (M, N) whether each member predicts the class of the dense model.
        agree: share of the images that must agree, 0 to 1.
        confidence: 1 minus the probability that the certified thresholds do not reach it.
        towards: a threshold for each member but the last, found on other images; the sequence goes from 1 to 0 through
            these. None: all thresholds are equal at each step.
    """
    gates, count = scores.shape
    powers = _powers(towards, gates)

    def evaluate_at(fraction: float) -> tuple[tuple[float, ...], NDArray[np.bool_], tuple[float, ...]]:
        """Thresholds at a fraction of the sequence, whether each image agrees, and the share that each member reads."""
        thresholds = tuple(fraction**power if fraction > 0 else 0.0 for power in powers)
        pending, agrees, shares = np.ones(count, dtype=bool), np.zeros(count, dtype=bool), []
        for threshold, member_scores, member_agrees in zip(thresholds, scores, same[:-1], strict=True):
            shares.append(float(pending.mean()) if threshold < 1 else 0.0)
            accepted = pending & (member_scores >= threshold) & (threshold < 1)
            agrees[accepted] = member_agrees[accepted]
            pending = pending & ~accepted
        agrees[pending] = same[-1][pending]
        return thresholds, agrees, (*shares, float(pending.mean()))

    last: Certified | None = None
    for number in range(STEPS, -1, -1):
        thresholds, agrees, shares = evaluate_at(number / STEPS)
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


def _powers(towards: Sequence[float] | None, gates: int) -> list[float]:
    """Exponents p such that the thresholds t ** p, for t from 1 to 0, pass through `towards`."""
    if towards is None:
        return [1.0] * gates
    clamped = [min(max(threshold, 1e-6), 1 - 1e-6) for threshold in towards]
    return [log(threshold) / log(clamped[0]) for threshold in clamped]

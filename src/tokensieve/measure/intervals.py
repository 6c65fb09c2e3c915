"""95 % intervals of what is measured on a sample of images: of shares, and of differences between two models."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.95
RESAMPLES = 2000
CELLS = 2_000_000
"""Numbers drawn at a time, so that a large set of images does not fill the memory."""
SHARES, DIFFERENCES = "Wilson", "paired bootstrap"
"""Which intervals these are, for whoever prints them."""


class Interval(NamedTuple):
    """Both ends, in the unit of the figure between them."""

    low: float
    high: float


def share_interval(hits: int, count: int) -> Interval:
    """Wilson's interval of the share `hits` of `count`, in percent. It is never empty: 10 of 10 give 72 to 100 %."""
    from scipy.stats import binomtest  # scipy.stats takes a while: only where it is used

    found = binomtest(hits, count).proportion_ci(LEVEL, method="wilson")
    return Interval(100 * float(found.low), 100 * float(found.high))


def percent_interval(percent: float | None, count: int) -> Interval | None:
    """`share_interval` of a share in percent of `count` images; None stays None."""
    return None if percent is None else share_interval(round(percent * count / 100), count)


def mean_interval(values: ArrayLike) -> Interval | None:
    """Bootstrap interval (percentile, always the same) of the mean of one value an image, (N,).

    The values are what a sieved and its dense model differ by on the same image, which pairs them. None for a single
    image, of which nothing can be drawn anew.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    from scipy.stats import bootstrap

    found = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, batch=max(1, CELLS // len(values)), vectorized=True,
        confidence_level=LEVEL, method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Interval(float(found.low), float(found.high))


def change_interval(before: ArrayLike, after: ArrayLike) -> Interval:
    """Interval of how many percentage points more images are right after than before, from both (N,) of bool.

    A paired bootstrap. Where no image changed, or all changed alike, there is nothing to draw from: then Wilson's
    interval of the share that changed bounds the difference, so that ten equal answers never look like certainty.
    """
    change = np.asarray(after, dtype=np.int8) - np.asarray(before, dtype=np.int8)
    if (change == change[0]).all():
        changed = share_interval(len(change) if change[0] else 0, len(change))
        if not change[0]:
            return Interval(-changed.high, changed.high)
        return changed if change[0] > 0 else Interval(-changed.high, -changed.low)
    found = mean_interval(100.0 * change)
    assert found is not None
    return found

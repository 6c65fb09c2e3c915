"""95 % confidence intervals of figures measured on a sample of images: shares, and differences between two models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
RESAMPLES = 2000
CELLS = 2_000_000
"""Numbers drawn at a time, which limits the memory used for a large set of images."""
SHARES, DIFFERENCES = "Wilson", "paired bootstrap"
"""Names of the two kinds of interval, for output."""


class Interval(NamedTuple):
    """Both ends of an interval, in the unit of the figure."""

    low: float
    high: float


def share_interval(hits: int, count: int) -> Interval:
    """Wilson's interval of the share `hits` of `count`, in percent. Its width is never 0: 10 of 10 give 72 to 100 %."""
    from scipy.stats import binomtest  # imported only where it is used: importing scipy.stats is slow

    interval = binomtest(hits, count).proportion_ci(LEVEL, method="wilson")
    return Interval(100 * float(interval.low), 100 * float(interval.high))


def percent_interval(percent: float | None, count: int) -> Interval | None:
    """`share_interval` of a share in percent of `count` images; None stays None."""
    return None if percent is None else share_interval(round(percent * count / 100), count)


def agreement_interval(shares: ArrayLike) -> Interval | None:
    """Interval, in percent, of the mean of `shares` (N,), the share from 0 to 1 of equal predictions in each image.

    Wilson's if every share is 0 or 1, as for classifiers, or for maps that agree in every pixel; else by bootstrap over
    the images, since pixels of an image are not independent. None for a single image that agrees in part.
    """
    shares = np.asarray(shares, dtype=np.float64)
    if np.isin(shares, (0, 1)).all():
        return share_interval(int(shares.sum()), len(shares))
    return mean_interval(100 * shares)


def mean_interval(values: ArrayLike) -> Interval | None:
    """Bootstrap interval (percentile, fixed seed) of the mean of one value per image, (N,).

    The values are differences between a sieved and a dense model on the same image, so the bootstrap is paired. None
    for a single image, which cannot be resampled.
    """
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        return None
    return _bootstrap(values, np.mean, 1)


def resampled_interval(
    statistic: Callable[[NDArray[np.intp]], NDArray[np.float64]], count: int, width: int
) -> Interval | None:
    """Bootstrap interval, as for `mean_interval`, of any figure computed from `count` images.

    Args:
        statistic: image indices (R, count) of R resamples -> the figure of each resample, (R,).
        count: number of images.
        width: numbers that `statistic` holds in memory per image.
    """
    return _bootstrap(np.arange(count), lambda indices, axis: statistic(np.moveaxis(indices, axis, -1)), width)


def _bootstrap(values: NDArray[Any], statistic: Callable[..., Any], width: int) -> Interval | None:
    if len(values) < 2:
        return None
    from scipy.stats import bootstrap

    result = bootstrap(
        (values,), statistic, n_resamples=RESAMPLES, batch=max(1, CELLS // (width * len(values))), vectorized=True,
        confidence_level=LEVEL, method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Interval(float(result.low), float(result.high))


def change_interval(before: ArrayLike, after: ArrayLike) -> Interval:
    """Interval of the change in accuracy in percentage points, from whether each image is correct, two (N,) of bool.

    By paired bootstrap. If no image changed, or all changed in the same direction, the bootstrap would have no width:
    then Wilson's interval of the share that changed bounds the difference, so that ten images give no false certainty.
    """
    change = np.asarray(after, dtype=np.int8) - np.asarray(before, dtype=np.int8)
    if (change == change[0]).all():
        changed = share_interval(len(change) if change[0] else 0, len(change))
        if not change[0]:
            return Interval(-changed.high, changed.high)
        return changed if change[0] > 0 else Interval(-changed.high, -changed.low)
    interval = mean_interval(100.0 * change)
    assert interval is not None
    return interval

"""Intervals: the values of others, and no certainty from ten images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokensieve.measure.intervals import change_interval, mean_interval, percent_interval, share_interval


def wilson(hits, count, z=1.959963984540054):
    """The formula of Wilson (1927)."""
    share = hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count**2)) ** 0.5
    return 100 * (middle - half), 100 * (middle + half)


@given(st.integers(1, 2000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_shares_have_wilsons_interval(pair):
    hits, count = pair
    found = share_interval(hits, count)
    assert found == pytest.approx(wilson(hits, count), abs=1e-9)
    assert found.low < found.high
    assert percent_interval(100 * hits / count, count) == found


def test_ten_of_ten_is_no_certainty():
    assert share_interval(10, 10) == pytest.approx((72.2, 100), abs=0.1)
    assert percent_interval(None, 10) is None


def test_the_mean_of_differences_by_bootstrap():
    values = np.random.default_rng(3).exponential(size=400)
    low, high = mean_interval(values)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    assert mean_interval(values) == (low, high), "always the same"
    assert mean_interval(values[:1]) is None
    assert mean_interval([0.1, np.inf]) is None


def test_changes_are_paired():
    """One answer in a hundred changed: pairing knows that the others did not."""
    before = np.arange(1000) % 2 == 0
    after = before.copy()
    after[:20:2] = False
    low, high = change_interval(before, after)
    assert -1.8 < low < -1.0 < high < -0.3
    unpaired = 1.96 * 100 * (2 * 0.25 / 1000) ** 0.5
    assert high - low < unpaired / 2


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([True] * 5 + [False] * 5, [True] * 5 + [False] * 5, (-27.8, 27.8)),
        ([True] * 10, [False] * 10, (-100, -72.2)),
        ([False] * 10, [True] * 10, (72.2, 100)),
    ],
)
def test_where_nothing_can_be_drawn_the_share_that_changed_bounds_the_change(before, after, expected):
    assert change_interval(before, after) == pytest.approx(expected, abs=0.1)

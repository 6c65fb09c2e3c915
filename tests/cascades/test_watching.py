"""The share read again in use is watched."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest

from tokensieve.cascades import DriftWarning, Watch


def test_images_as_in_the_calibration_are_not_told_of() -> None:
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            watch = Watch(2, 0.3, 500)
            for _ in range(100):
                watch.see({0: 32, 1: int(rng.binomial(32, 0.3))})


def test_a_drift_is_told_once_until_it_is_over() -> None:
    watch = Watch(2, 0.3, 500)
    watch.see({0: 150, 1: 90})  # too few yet
    with pytest.warns(DriftWarning, match=r"Of the last 300 images 60 % were read again, of the 500 .* 30 %"):
        watch.see({0: 150, 1: 90})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            watch.see({0: 300, 1: 180})
        assert watch.drifted
        for _ in range(40):
            watch.see({0: 300, 1: 90})
        assert not watch.drifted
    with pytest.warns(DriftWarning, match="read again"):
        watch.see({0: 2000})


def test_a_watch_travels() -> None:
    watch = Watch(3, 0.3, 500)
    watch.see({1: 10, 2: 3})
    again = pickle.loads(pickle.dumps(watch))
    assert (again.seen, again.reads, again.counts) == (10, [0, 10, 3], [10, 3])
    again.see({1: 10})
    assert (again.seen, again.reads, again.counts) == (20, [0, 20, 3], [20, 3])
    assert again.shares == (0, 1, 0.15)


def test_without_a_known_share_it_only_counts() -> None:
    watch = Watch(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.see({0: 1000, 1: 900})
    assert watch.shares == (1, 0.9)
    assert Watch(2).shares == (0, 0)

"""The bound and the sequence of thresholds, beside exact fractions and loops, and the promise itself by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reference import cascades as reference
from tokensieve.cascades import certify, images_needed, lower_bound
from tokensieve.cascades.certifying import STEPS


@pytest.mark.parametrize(("hits", "count"), [(0, 5), (1, 1), (5, 5), (3, 7), (48, 50), (118, 120), (120, 120)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_lower_bound_is_clopper_and_pearsons(hits: int, count: int, confidence: float) -> None:
    assert lower_bound(hits, count, confidence) == pytest.approx(
        reference.lower_bound(hits, count, confidence), abs=1e-7
    )


def test_how_many_images_certify_a_promise() -> None:
    assert images_needed(0.98, 0.95) == 149  # 0.98 ** 149 < 0.05 < 0.98 ** 148
    assert lower_bound(149, 149, 0.95) >= 0.98 > lower_bound(148, 148, 0.95)
    assert lower_bound(496, 500, 0.95) >= 0.98 > lower_bound(495, 500, 0.95)  # 99.2 % of 500
    needed = images_needed(0.99, 0.95, 0.995)
    assert needed is not None
    assert lower_bound(int(0.995 * needed), needed, 0.95) >= 0.99
    assert lower_bound(int(0.995 * (needed // 2)), needed // 2, 0.95) < 0.99
    assert images_needed(0.98, 0.95, 0.97) is None


def drawn(count: int, seed: int, members: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Readers whose answers are right as often as they are sure, nearly; the last is the dense model."""
    rng = np.random.default_rng(seed)
    scores = rng.random((members, count)) ** 0.4
    same = rng.random((members, count)) < 0.6 + 0.4 * scores
    return scores, np.concatenate([same, np.ones((1, count), dtype=bool)])


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize(("agree", "count"), [(0.8, 60), (0.9, 120), (0.98, 60)])
def test_the_sequence_ends_where_loops_end(members: int, agree: float, count: int, monkeypatch) -> None:
    monkeypatch.setattr("tokensieve.cascades.certifying.STEPS", 50)
    scores, same = drawn(count, members, members)
    expected = reference.certified(scores.tolist(), same.tolist(), agree, 0.9, 50)
    found = certify(scores, same, agree, 0.9)
    if expected is None:
        assert not found.certified
        assert set(found.thresholds) == {1.0}
    else:
        assert found.certified
        assert found.thresholds == (expected,) * members
    going, hits = np.ones(count, dtype=bool), 0
    for index, threshold in enumerate(found.thresholds):
        here = going & (scores[index] >= threshold) & (threshold < 1)
        assert found.shares[index] == (going.mean() if threshold < 1 else 0)
        hits, going = hits + same[index][here].sum(), going & ~here
    assert found.shares[-1] == going.mean()
    assert found.agreement == pytest.approx((hits + same[-1][going].sum()) / count)


def test_thresholds_pass_through_those_found_elsewhere() -> None:
    scores, same = drawn(4000, 0, 2)
    found = certify(scores, same, 0.9, 0.95, towards=(0.4, 0.6))
    first, second = found.thresholds
    assert found.certified
    assert np.log(second) / np.log(first) == pytest.approx(np.log(0.6) / np.log(0.4))


def test_the_promise_is_kept_as_often_as_it_says() -> None:
    """Of 100 calibrations at confidence 0.9 some 10 may break it; without the bound half of them would."""
    scores, same = drawn(20_000, 9)
    rng, broken, bold = np.random.default_rng(1), 0, 0
    for _ in range(100):
        some = rng.choice(scores.shape[1], 400, replace=False)
        found = certify(scores[:, some], same[:, some], 0.93, 0.9)
        assert found.certified
        sure = scores[0] >= found.thresholds[0]
        broken += np.where(sure, same[0], True).mean() < 0.93
        bold += found.agreement < 0.93
    assert broken <= 20
    assert bold == 0


def test_a_score_that_is_no_number_is_read_again() -> None:
    scores, same = drawn(500, 3)
    scores[0, :50], same[0, :50] = np.nan, False
    found = certify(scores, same, 0.5, 0.9)
    assert found.thresholds == (0.0,)
    assert found.shares[1] == 0.1
    assert STEPS >= 500

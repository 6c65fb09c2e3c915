"""How long a cascade takes: on average and at worst, beside the dense model, by a clock that counts readings."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch

from tests.cascades.small import HALF, classifier, pictures
from tokensieve import CascadeRecipe, InputError, sieve
from tokensieve.cascades import sureness
from tokensieve.measure import Latency, cascade_speed


def test_batches_take_turns_and_every_figure_is_of_them(monkeypatch) -> None:
    model, images = classifier(), pictures(40)
    now = [0.0]

    def took(seconds: float):
        return lambda *_: now.__setitem__(0, now[0] + seconds)

    model.patch_embed.register_forward_hook(took(1.0))
    model.blocks[3].mlp.register_forward_hook(took(1.0))  # once for each reading
    monkeypatch.setattr(sys.modules[cascade_speed.__module__], "clock", lambda: now[0])
    with torch.no_grad():
        half = float(sureness(sieve(model, HALF)(images)).sort().values[19:21].mean())
        cascade = sieve(model, CascadeRecipe((HALF, ""), (half,), images=500, shares=(1.0, 0.01)))
        again = [bool(cascade.trace(one).shares[1]) for one in images.split(1)]
        assert 0 < sum(again) < 40
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # measuring is not using
            found = cascade_speed(cascade, model, images, 1, seconds=0)
    assert (found.batch, found.images, found.batches) == (1, 40, 40)
    assert found.shares == pytest.approx((1.0, sum(again) / 40))
    times = [2.0 + one for one in again]
    assert found.cascade == Latency.of(times)
    assert found.cascade.mean == pytest.approx(2 + sum(again) / 40)
    assert found.dense == Latency(2.0, 2.0, 2.0)
    assert found.ratio == pytest.approx(80 / sum(times))


def test_percentiles() -> None:
    found = Latency.of([1.0] * 99 + [3.0] * 2)
    assert (found.p50, found.p99) == (1.0, 3.0)
    assert found.mean == pytest.approx(105 / 101)


def test_what_cannot_be_timed() -> None:
    model = classifier()
    cascade = sieve(model, CascadeRecipe((HALF, ""), (0.5,)))
    with pytest.raises(InputError, match="fewer than two batches of 8"):
        cascade_speed(cascade, model, pictures(12), 8)
    with pytest.raises(InputError, match="times a cascade"):
        cascade_speed(sieve(model, HALF), model, pictures(12), 2)

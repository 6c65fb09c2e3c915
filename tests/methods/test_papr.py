"""PaPr's counts and ranking."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.vit import select as slow_select
from tokensieve import PaPr
from tokensieve.methods import TokenSite
from tokensieve.methods.papr import top_patches


@pytest.mark.parametrize(
    ("patches", "prefix", "keep", "left"),
    [
        (196, 1, 0.55, 109),  # counts of the published code
        (196, 1, 0.5, 99),
        (196, 1, 0.45, 89),
        (196, 1, 0.4, 79),
        (256, 1, 0.5, 129),
        (256, 1, 0.45, 116),
        (256, 1, 0.4, 103),
        (256, 0, 0.5, 128),
        (256, 5, 0.99, 261),  # int(261 * 0.99) = 258 patches do not exist
        (196, 1, 1, 197),
        (196, 1, 0.001, 2),
        (100, 0, 0.29, 28),  # int(n * keep), with what floating point makes of 0.29
    ],
)
def test_counts(patches: int, prefix: int, keep: float, left: int) -> None:
    method = PaPr(keep=keep)
    assert method.left(TokenSite(0, 12, patches + prefix, prefix, patches)) == left
    assert method.left(TokenSite(1, 12, patches + prefix, prefix, patches)) == patches + prefix


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=20), keep=st.floats(0.01, 1), prefix=st.integers(0, 3))
def test_ranking_is_the_slow_one(values: list[int], keep: float, prefix: int) -> None:
    count = PaPr(keep=keep).left(TokenSite(0, 1, len(values) + prefix, prefix, len(values))) - prefix
    ranked = top_patches(torch.tensor([values], dtype=torch.float32), count)[0].tolist()
    if keep < 1:
        assert ranked == slow_select([float(v) for v in values], keep, prefix, "significance")
        assert sorted(ranked) == slow_select([float(v) for v in values], keep, prefix, "raster")


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), low=st.integers(1, 15), more=st.integers(0, 15))
def test_a_larger_ratio_keeps_all_that_a_smaller_one_keeps(seed: int, low: int, more: int) -> None:
    significance = torch.rand(2, 30, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    small, large = top_patches(significance, low), top_patches(significance, low + more)
    assert torch.equal(large[:, :low], small)


def test_an_all_equal_map_keeps_the_lowest_indices() -> None:
    assert top_patches(torch.ones(1, 9), 4).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_map_is_an_error(value: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        top_patches(torch.tensor([[0.0, value, 1.0]]), 2)

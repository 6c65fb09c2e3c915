"""ToMe's schedule and matching."""

from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.vit import match as slow_match
from tokensieve import Recipe, RecipeError, ToMe, UnsupportedHost, sieve
from tokensieve.methods import TokenSite
from tokensieve.methods.matching import bipartite_match
from tokensieve.methods.schedule import at


@pytest.mark.parametrize(("r", "depth", "last"), [(13, 12, 41), (16, 12, 11), (8, 24, 7), (0, 12, 197)])
def test_published_token_counts(r: int, depth: int, last: int) -> None:
    tokens, method = 197, ToMe(r=r)
    for block in range(depth):
        tokens = method.left(TokenSite(block, depth, tokens, 1, 196))
    assert tokens == last


def written_out(r: object, depth: int, layers: slice | None = None) -> list[int]:
    method = ToMe(r=r, layers=layers)
    return [at(method.r, method.layers, block, depth) for block in range(depth)]


def test_schedules() -> None:
    assert written_out(8, 3) == [8, 8, 8]
    assert written_out((8, -1.0), 5) == [16, 12, 8, 4, 0]
    assert written_out((8, 1.0), 5) == [0, 4, 8, 12, 16]
    assert written_out([3, 2], 4) == [3, 2, 0, 0]
    assert written_out([3, 2, 1, 1, 9], 4) == [3, 2, 1, 1]
    assert written_out(8, 4, slice(2, None)) == [0, 0, 8, 8]
    assert written_out(8, 3, slice(-1, None)) == [0, 0, 8]
    assert written_out((8, 1.0), 5, slice(1, 2)) == [0, 4, 0, 0, 0]


@settings(max_examples=150, deadline=None)
@given(
    tokens=st.integers(1, 14),
    prefix=st.integers(0, 5),
    wanted=st.integers(1, 8),
    seed=st.integers(0, 10**6),
    ties=st.booleans(),
)
def test_matching_is_the_slow_one(tokens: int, prefix: int, wanted: int, seed: int, ties: bool) -> None:
    tokens += prefix
    r = min(wanted, (tokens - prefix) // 2)
    if r == 0:
        return
    draw = torch.Generator().manual_seed(seed)
    if ties:  # few distinct directions, so that many cosines are equal
        keys = torch.eye(3, dtype=torch.float64)[torch.randint(0, 3, (tokens,), generator=draw)][None, None]
    else:
        keys = torch.randn(1, 2, tokens, 4, generator=draw, dtype=torch.float64)
    keep, sources, destinations = bipartite_match(keys, r, prefix)

    groups = [[int(i)] for i in keep[0]]
    for source, destination in zip(sources[0].tolist(), destinations[0].tolist(), strict=True):
        groups[destination].append(source)
    expected, _ = slow_match(keys[0].mean(0), prefix, r)
    assert [set(group) for group in groups] == [set(group) for group in expected]
    assert [len(group) for group in groups] == [len(group) for group in expected]


def test_a_window_in_time_holds_as_long_as_it_can() -> None:
    draw = torch.Generator().manual_seed(0)
    keys = torch.randn(2, 1, 24, 8, generator=draw, dtype=torch.float64)
    moments = (torch.arange(24) // 6).expand(2, -1)  # four steps of six patches
    for window in range(4):
        keep, sources, destinations = bipartite_match(keys, 12, 0, moments=moments, window=window)
        apart = (sources // 6 - keep.gather(1, destinations) // 6).abs()
        assert apart.max() == window
    wide, plain = bipartite_match(keys, 12, 0, moments=moments, window=3), bipartite_match(keys, 12, 0)
    assert all(torch.equal(a, b) for a, b in zip(wide, plain, strict=True))

    # Here the even tokens of step 0 have no odd one beside them: they go one step on, and behind all others.
    moments = torch.tensor([0, 1, 0, 1, 1, 1, 1, 2]).expand(2, -1)
    keep, sources, destinations = bipartite_match(keys[:, :, :8], 4, 0, moments=moments, window=0)
    apart = (moments.gather(1, sources) - moments.gather(1, keep.gather(1, destinations))).abs()
    assert sorted(sources[0, :2].tolist()) == [4, 6]
    assert apart.tolist() == [[0, 0, 1, 1]] * 2


@pytest.mark.parametrize("window", [-1, 0.5, True, "1"])
def test_a_window_is_a_number_of_steps(window: object) -> None:
    with pytest.raises(RecipeError, match="window must be an integer number of steps from 0 up, or None"):
        ToMe(r=2, window=window)


def test_images_have_no_window_in_time() -> None:
    with pytest.raises(UnsupportedHost, match=r"VisionTransformer cannot take tome with window=.*reads images"):
        sieve(timm.create_model("test_vit"), "tome(r=2, window=1)")
    sieve(timm.create_model("test_vit"), "tome(r=2, window=None)")


def test_matching_ignores_precision_of_the_model() -> None:
    keys = torch.randn(2, 3, 40, 16).bfloat16()
    for got, expected in zip(bipartite_match(keys, 9, 1), bipartite_match(keys.float(), 9, 1), strict=True):
        assert torch.equal(got, expected)
    with torch.autocast("cpu", torch.bfloat16):
        for got, expected in zip(bipartite_match(keys, 9, 1), bipartite_match(keys.float(), 9, 1), strict=True):
            assert torch.equal(got, expected)


def test_a_recipe_says_the_settings() -> None:
    assert str(Recipe.of(ToMe(r=13, proportional=False))) == "tome(r=13, proportional=False)"

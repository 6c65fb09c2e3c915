"""Tokens: selection, merging and the way back to the grid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokensieve.methods.tome import bipartite_match
from tokensieve.tokens import Tokens, restore, rows


def fresh(grid: tuple[int, ...], prefix: int, batch: int = 2, d: int = 8, seed: int = 0) -> Tokens:
    patches = int(torch.tensor(grid).prod())
    x = torch.randn(batch, prefix + patches, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Tokens(x, prefix, grid).tracked()


def merge_step(tokens: Tokens, r: int, seed: int) -> Tokens:
    batch, count, _ = tokens.x.shape
    keys = torch.randn(batch, 2, count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    r = min(r, (count - tokens.prefix) // 2)
    return tokens.merge(*bipartite_match(keys, r, tokens.prefix), weigh=True) if r else tokens


grids = st.tuples(st.integers(1, 5), st.integers(1, 6))
prefixes = st.integers(0, 5)


def test_rows_are_gather() -> None:
    x = torch.randn(3, 7, 5)
    index = torch.randint(0, 7, (3, 4))
    assert torch.equal(rows(x, index), x.gather(1, index[..., None].expand(-1, -1, 5)))


@settings(max_examples=60, deadline=None)
@given(grid=grids, prefix=prefixes, keep=st.integers(1, 30), r=st.lists(st.integers(0, 8), max_size=4))
def test_every_kept_patch_has_exactly_one_token(grid: tuple[int, int], prefix: int, keep: int, r: list[int]) -> None:
    tokens = fresh(grid, prefix)
    patches = grid[0] * grid[1]
    keep = min(keep, patches)
    index = torch.rand(2, patches).argsort(1)[:, :keep].sort(1).values
    first = tokens.select(index)
    merged = first
    for turn, n in enumerate(r):
        merged = merge_step(merged, n, turn)

    assert merged.source is not None
    assert torch.equal((merged.source >= 0).sum(1), torch.full((2,), keep))
    assert int(merged.source.max()) < merged.x.shape[1]
    for b in range(2):
        counts = torch.bincount(merged.source[b][merged.source[b] >= 0], minlength=merged.x.shape[1])
        size = torch.ones(merged.x.shape[1]).double() if merged.size is None else merged.size[b].double()
        assert torch.equal(counts[prefix:].double(), size[prefix:])  # sizes sum to the patches kept
        assert counts[:prefix].sum() == 0
        assert torch.equal(size[:prefix], torch.ones(prefix).double())


@settings(max_examples=40, deadline=None)
@given(grid=grids, prefix=prefixes, r=st.lists(st.integers(1, 8), min_size=1, max_size=4))
def test_a_merged_token_is_the_mean_of_its_patches(grid: tuple[int, int], prefix: int, r: list[int]) -> None:
    tokens = fresh(grid, prefix)
    merged = tokens
    for turn, n in enumerate(r):
        merged = merge_step(merged, n, turn)
    assert merged.source is not None
    for b in range(2):
        for token in range(prefix, merged.x.shape[1]):
            members = (merged.source[b] == token).nonzero().flatten() + prefix
            assert torch.allclose(merged.x[b, token], tokens.x[b, members].mean(0), atol=1e-12)
    assert torch.equal(merged.x[:, :prefix], tokens.x[:, :prefix])


def test_merged_tokens_stand_where_their_destination_stood() -> None:
    tokens = fresh((1, 4), 1)
    keep, sources, destinations = torch.tensor([[0, 4, 1, 3]]), torch.tensor([[2]]), torch.tensor([[3]])
    both = [t.expand(2, -1) for t in (keep, sources, destinations)]
    merged = tokens.merge(*both, weigh=False)
    assert merged.positions is not None
    assert merged.positions[0].tolist() == [3, 0, 2]
    assert merged.weight is None
    assert merged.source is not None
    assert merged.source[0].tolist() == [2, 3, 3, 1]


@pytest.mark.parametrize("norm", [None, "mean", "max"])
@pytest.mark.parametrize("by", [False, True])
def test_what_does_not_merge_moves_nothing(norm: str | None, by: bool) -> None:
    """Each image as it would be alone, with the sources that merge and no others."""
    tokens = fresh((3, 4), 1).tracked()
    size, weight, importance = torch.rand(3, 2, 13, dtype=torch.float64) + 0.5
    tokens = Tokens(tokens.x.double(), 1, (3, 4), size=size, weight=weight, source=tokens.source)
    sources, destinations = torch.tensor([[2, 4, 6], [8, 2, 10]]), torch.tensor([[1, 3, 1], [5, 5, 7]])
    merging = torch.tensor([[True, False, True], [False, True, True]])
    soften = torch.rand(2, 3, dtype=torch.float64)
    words = {"weigh": True, "norm": norm}
    every = tokens.merge(
        tokens.places, sources, destinations, by=importance if by else None, soften=soften, merging=merging, **words
    )
    for image, which in enumerate(merging):
        one, some = tokens.image(image, 13), slice(image, image + 1)
        alone = one.merge(
            one.places, sources[some, which], destinations[some, which],
            by=importance[some] if by else None, soften=soften[some, which], **words,
        )  # fmt: skip
        for name in ("x", "size", "weight", "source"):
            torch.testing.assert_close(getattr(every, name)[some], getattr(alone, name), rtol=1e-12, atol=1e-12)


def naive_restore(features: Tensor, source: Tensor, grid: tuple[int, int], fill: str) -> Tensor:
    out = torch.zeros(features.shape[0], features.shape[2], *grid, dtype=features.dtype)
    places = [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    for b in range(features.shape[0]):
        for i, (y, x) in enumerate(places):
            token = int(source[b, i])
            if token < 0 and fill == "nearest":
                kept = [j for j in range(len(places)) if source[b, j] >= 0]
                nearest = min(kept, key=lambda j: ((places[j][0] - y) ** 2 + (places[j][1] - x) ** 2, j))
                token = int(source[b, nearest])
            if token >= 0:
                out[b, :, y, x] = features[b, token]
    return out


@pytest.mark.parametrize("fill", ["nearest", "zero"])
def test_restore_spreads_groups_and_fills_holes(fill: str) -> None:
    grid = (4, 5)
    tokens = fresh(grid, 2)
    index = torch.rand(2, 20).argsort(1)[:, :9].sort(1).values
    tokens = merge_step(tokens.select(index), 3, 1)
    assert tokens.source is not None
    expected = naive_restore(tokens.x, tokens.source, grid, fill)
    assert torch.equal(restore(tokens.x, tokens.source, grid, fill), expected)


def test_restore_of_all_tokens_is_a_reshape() -> None:
    tokens = fresh((3, 4), 1)
    assert tokens.source is not None
    dense = restore(tokens.x, tokens.source, (3, 4))
    assert torch.equal(dense.flatten(2).transpose(1, 2), tokens.x[:, 1:])


def test_an_unknown_fill_is_named() -> None:
    tokens = fresh((2, 2), 0)
    assert tokens.source is not None
    with pytest.raises(ValueError, match='"nearest" or "zero"'):
        restore(tokens.x, tokens.source, (2, 2), "mean")


def test_gradients_pass_through_a_merge() -> None:
    tokens = fresh((2, 3), 1)
    x = tokens.x.clone().requires_grad_()
    merged = merge_step(Tokens(x, 1, (2, 3)), 2, 0)
    assert merged.size is not None
    (merged.x * merged.size[..., None]).sum().backward()
    # the sum of size * mean is the sum of all rows, whatever was merged
    assert torch.allclose(x.grad, torch.ones_like(x))

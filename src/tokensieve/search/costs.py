"""What a recipe costs, by arithmetic: a search asks ten thousand times, and running an image each time is too slow."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..errors import InputError, UnsupportedHost
from ..measure import SlicingLimit, macs
from ..plan import Plan, Reads
from ..recipe import Recipe
from ..stream import Sieved, sieve
from ..tokens import Tokens

FEW = 5
"""Patches on which a block is counted."""


class BlockCost(NamedTuple):
    """MACs of one block as a polynomial of the tokens that its keys (k), queries (q) and MLP (m) are made of."""

    alone: tuple[int, int, int]
    """1, k, k^2 where all ask; a block that cannot be opened has its MLP in here."""
    asked: tuple[int, int, int, int]
    """1, k, q, k q where fewer ask."""
    mlp: int
    """m."""

    def of(self, reads: Reads) -> int:
        k, q, m = reads
        if q == k:
            attended = self.alone[0] + self.alone[1] * k + self.alone[2] * k * k
        else:
            attended = self.asked[0] + self.asked[1] * k + self.asked[2] * q + self.asked[3] * k * q
        return attended + self.mlp * m


class Costs:
    """The MACs of a model under any recipe, as `measure.macs(..., proposal=False)` counts them.

    Every part of the host is counted once on a few tokens; what follows from the tokens it reads is a polynomial.

    Args:
        fast: the host under the empty recipe.
        input_size: (3, H, W).

    Raises:
        UnsupportedHost: a host whose parts cost otherwise, which a recipe counted both ways has shown.
    """

    def __init__(self, fast: Sieved, input_size: Sequence[int]) -> None:
        self.host, host = fast.host, fast.host
        like = next(fast.model.parameters())
        with torch.no_grad():
            tokens = host.embed(torch.zeros(1, *input_size, device=like.device, dtype=like.dtype))
        self.depth, self.prefix, self.patches = len(host.blocks), host.prefix, tokens.x.shape[1] - host.prefix
        if self.patches < FEW:
            raise InputError(f"An image of {self.patches} patches leaves nothing to reduce: give larger images.")
        self.blocks = [_block_cost(fast.model, block, tokens) for block in host.blocks]
        count = self.patches + self.prefix
        part = _Part(fast.model, host.blocks[-1], tokens, host)
        heads = [part.count(n, n, n) - self.blocks[-1].of(Reads(n, n, n)) for n in (count, count - 1)]
        self.per_token = heads[0] - heads[1]
        """What the head costs for each token that it reads."""
        self.dense = round(macs(fast.model, input_size))
        around = sum(block.of(Reads(count, count, count)) for block in self.blocks) + self.per_token * count
        self.rest = self.dense - around
        """Embedding and head."""
        trial = Recipe.parse(f"papr(keep={0.6 if self.patches > FEW else 0.8}, significance=centre)")
        counted = macs(sieve(fast.model, trial), input_size, proposal=False)
        if round(counted) != self.of(trial):
            raise UnsupportedHost(
                f"{type(fast.model).__name__} cannot be tuned: the MACs of its parts ({self.of(trial)}) are not "
                f"those of the whole ({counted:.0f})."
            )

    def of(self, recipe: Recipe) -> int:
        """MACs of an image under a recipe, its proposal left out."""
        reads = Plan(recipe, self.depth, self.prefix).reads(self.patches)
        blocks = sum(block.of(read) for block, read in zip(self.blocks, reads, strict=True))
        return self.rest + blocks + self.per_token * reads[-1].mlp


class _Part:
    """One block in the place of a host, so that the slicing limit, which is what `macs` counts, runs it alone."""

    def __init__(self, model: nn.Module, block: Any, tokens: Tokens, host: Any = None) -> None:
        self.blocks, self.tokens = [block], tokens
        self.features = (lambda tokens: tokens) if host is None else host.features
        self.head = (lambda tokens: tokens.x) if host is None else host.head
        self.model = model

    def embed(self, images: Tensor) -> Tokens:
        return self.tokens

    def count(self, keys: int, queries: int, mlp: int) -> int:
        plan = SimpleNamespace(reads=lambda patches: [Reads(keys, queries, mlp)])
        stand_in = SimpleNamespace(model=self.model, training=False, host=self, plan=plan)
        return round(macs(SlicingLimit(cast(Sieved, stand_in)), images=self.tokens.x[:, 0, 0]))


def _block_cost(model: nn.Module, block: Any, tokens: Tokens) -> BlockCost:
    """By differences, which are exact: all counts are whole numbers."""
    count, low = _Part(model, block, tokens).count, tokens.prefix + 1
    if block.closed:
        at = [count(n, n, n) for n in (low, low + 1, low + 2)]
        return BlockCost(_quadratic(at, low), (0, 0, 0, 0), 0)
    mlp = count(low + 2, low + 2, low + 1) - count(low + 2, low + 2, low)
    at = [count(k, k, low) - mlp * low for k in (low + 1, low + 2, low + 3)]
    alone = _quadratic(at, low + 1)

    def asked(k: int, q: int) -> int:
        return count(k, q, low) - mlp * low

    corner, more_keys = asked(low + 2, low), asked(low + 3, low)
    more_queries, both = asked(low + 2, low + 1), asked(low + 3, low + 1)
    pair = both - more_keys - more_queries + corner
    per_key, per_query = more_keys - corner - pair * low, more_queries - corner - pair * (low + 2)
    constant = corner - per_key * (low + 2) - per_query * low - pair * (low + 2) * low
    return BlockCost(alone, (constant, per_key, per_query, pair), mlp)


def _quadratic(at: list[int], first: int) -> tuple[int, int, int]:
    """The polynomial through three values at `first`, `first` + 1 and `first` + 2."""
    square = (at[2] - 2 * at[1] + at[0]) // 2
    linear = at[1] - at[0] - square * (2 * first + 1)
    return at[0] - linear * first - square * first * first, linear, square

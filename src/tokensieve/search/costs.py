"""Computes the MACs of recipes by polynomials: a search needs them too often to run an image each time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError, UnsupportedHost
from ..forward.plan import Plan
from ..forward.walk import FirstTokens, Reads, walk
from ..hosts import Host, HostBlock
from ..measure import macs
from ..measure.macs import count
from ..recipe import Recipe
from ..stream import Sieved, sieve
from ..tokens import Tokens

FEW = 5
"""Minimum number of patches, which the counts of a block need."""


class BlockCost(NamedTuple):
    """MACs of one block as a polynomial of the numbers of its keys (k), its queries (q) and its MLP's tokens (m)."""

    whole: tuple[int, int, int] | None
    """Coefficients of 1, k and k^2, for a block that cannot be opened; None for all others."""
    projected: tuple[int, int]
    """Coefficients of 1 and k: norm and projections, if queries are projected from all tokens."""
    q_proj: tuple[int, int, int]
    """Coefficients of 1, k and the tokens that queries are projected from: norm and projections, if those are fewer."""
    pair: int
    """Coefficient of k q: attention."""
    query: int
    """Coefficient of q: the projection of attention's output."""
    mlp: int
    """Coefficient of m."""

    def of(self, reads: Reads) -> int:
        """MACs of the block for these numbers of tokens."""
        k, q_proj, q, m = reads
        if self.whole is not None:
            return self.whole[0] + self.whole[1] * k + self.whole[2] * k * k
        if q_proj == k:
            projected = self.projected[0] + self.projected[1] * k
        else:
            projected = self.q_proj[0] + self.q_proj[1] * k + self.q_proj[2] * q_proj
        return projected + self.pair * k * q + self.query * q + self.mlp * m

    def of_whole(self, tokens: Tensor) -> Tensor:
        """MACs if keys, queries and MLP read all tokens; `tokens` holds their numbers, float64, of any shape."""
        once, per_token, pairs = self.whole or (
            self.projected[0],
            self.projected[1] + self.query + self.mlp,
            self.pair,
        )
        return once + per_token * tokens + pairs * tokens**2


class Costs:
    """The MACs of a model under any recipe, as `measure.macs(..., proposal=False)` counts them.

    Every part of the host is counted once on a few tokens; from this follows a polynomial in the number of tokens.

    Args:
        fast: the host under the empty recipe.
        input_size: (3, H, W).

    Raises:
        UnsupportedHost: a host whose MACs are not such a polynomial, as the count of a recipe shows.
    """

    def __init__(self, fast: Sieved, input_size: Sequence[int]) -> None:
        self.host, host = fast.host, fast.host
        weight = next(fast.model.parameters())
        with torch.no_grad():
            tokens = host.embed(torch.zeros(1, *input_size, device=weight.device, dtype=weight.dtype))
        self.depth, self.prefix, self.patches = len(host.blocks), host.prefix, tokens.x.shape[1] - host.prefix
        if self.patches < FEW:
            raise InputError(f"An image of {self.patches} patches leaves nothing to reduce: give larger images.")
        self.blocks = [_block_cost(fast.model, block, tokens) for block in host.blocks]
        every = self.patches + self.prefix
        self.per_token = 0
        """MACs of the head for each token that it reads; 0 if it always reads the whole grid of patches."""
        if not host.levels:
            part = _BlockCounter(fast.model, host.blocks[-1], tokens, host)
            heads = [part.count(Reads(n, n, n, n)) - self.blocks[-1].of(Reads(n, n, n, n)) for n in (every, every - 1)]
            self.per_token = heads[0] - heads[1]
        self.dense = round(macs(fast.model, input_size))
        in_blocks = sum(block.of(Reads(every, every, every, every)) for block in self.blocks) + self.per_token * every
        self.rest = self.dense - in_blocks
        """Embedding and head."""
        self._check(fast, input_size, 0.6 if self.patches > FEW else 0.8)

    def _check(self, fast: Sieved, input_size: Sequence[int], keep: float) -> None:
        """Count the MACs of a recipe both ways; raise `UnsupportedHost` if they differ."""
        trial = Recipe.parse(f"papr(keep={keep}, significance=centre)")
        counted = macs(sieve(fast.model, trial), input_size, proposal=False)
        if round(counted) != self.of(trial):
            raise UnsupportedHost(
                f"{type(fast.model).__name__} cannot be tuned: the MACs of its parts ({self.of(trial)}) are not "
                f"those of the whole ({counted:.0f})."
            )

    def add(self, outside: int) -> None:
        """Add the MACs per image of a model around the host, which no recipe changes."""
        self.dense += outside
        self.rest += outside

    def of(self, recipe: Recipe) -> int:
        """MACs per image under a recipe, without its proposal."""
        plan = Plan(recipe, self.depth, self.prefix)
        return self.of_reads(*plan.walked(self.patches))

    def of_reads(self, reads: Sequence[Reads], left: int) -> int:
        """MACs of an image whose blocks read these numbers of tokens, and whose head reads `left`."""
        blocks = sum(block.of(read) for block, read in zip(self.blocks, reads, strict=True))
        return self.rest + blocks + self.per_token * left


class _BlockCounter:
    """Counts the MACs of one block for given numbers of tokens."""

    def __init__(self, model: nn.Module, block: HostBlock, tokens: Tokens, host: Host | None = None) -> None:
        """With `host`, its final norm and head after the block are counted too."""
        self.model, self.block, self.tokens, self.host = model, block, tokens, host

    def count(self, reads: Reads) -> int:
        def run() -> None:
            tokens = walk([self.block], self.tokens, FirstTokens([reads]))
            if self.host is not None:
                self.host.head(self.host.features(tokens))

        return round(count(self.model, run))


def _block_cost(model: nn.Module, block: HostBlock, tokens: Tokens) -> BlockCost:
    """The cost of a block, from differences of counts; exact, since counts are integers and linear in each number."""
    part, n = _BlockCounter(model, block, tokens), tokens.prefix + 1

    def macs_of(keys: int, q_proj: int, queries: int, mlp: int) -> int:
        return part.count(Reads(keys, q_proj, queries, mlp))

    if block.closed:
        base, first, second = (macs_of(k, k, k, k) for k in (n, n + 1, n + 2))
        square = (second - 2 * first + base) // 2
        linear = first - base - square * (2 * n + 1)
        return BlockCost((base - linear * n - square * n * n, linear, square), (0, 0), (0, 0, 0), 0, 0, 0)
    low, high = n + 2, n + 3
    mlp = macs_of(low, low, n + 1, n + 1) - macs_of(low, low, n + 1, n)
    at_low, at_high = (macs_of(k, k, n + 1, n) - macs_of(k, k, n, n) for k in (low, high))
    pair = at_high - at_low
    query = at_low - pair * low

    def projected(keys: int, q_proj: int) -> int:
        queries = n if q_proj == keys else q_proj  # if only some queries are projected, all of these attend
        return macs_of(keys, q_proj, queries, n) - pair * keys * queries - query * queries - mlp * n

    all_low, per_key = projected(low, low), projected(high, high) - projected(low, low)
    few = projected(low, n)
    few_per_key, few_per_query = projected(high, n) - few, projected(low, n + 1) - few
    q_proj = (few - few_per_key * low - few_per_query * n, few_per_key, few_per_query)
    return BlockCost(None, (all_low - per_key * low, per_key), q_proj, pair, query, mlp)

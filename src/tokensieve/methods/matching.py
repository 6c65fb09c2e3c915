"""Bipartite matching: selects the tokens to merge, and their destinations."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tokens import Tokens


class Match(NamedTuple):
    """The tokens that stay and the tokens that are merged, as arguments of `Tokens.merge`."""

    keep: Tensor
    """(B, N - r) int64, the tokens that stay, in the new order."""
    sources: Tensor
    """(B, r) int64, the tokens that are merged away."""
    destinations: Tensor
    """(B, r) int64, the tokens into which they are merged, as indices in the new order."""


def metric(features: Tensor) -> Tensor:
    """Normalise features (B, N, d), or (B, H, N, d) after summing over heads, to unit vectors (B, N, d).

    In fp32 or higher precision, since half precision would change matches of nearly equal score. The sum over heads has
    the same direction as the mean.
    """
    exact = torch.promote_types(features.dtype, torch.float32)
    return F.normalize(features.sum(1, dtype=exact) if features.ndim == 4 else features.to(exact), dim=-1)


def ranked(scores: Tensor) -> Tensor:
    """Indices along the last axis in order of descending score; ties go to the lower index."""
    return scores.argsort(dim=-1, descending=True, stable=True)


def keep_best(tokens: Tokens, scores: Tensor, count: int) -> Tokens:
    """Keep the `count` patch tokens with the highest scores (B, n), in their present order."""
    return tokens.select(ranked(scores)[:, :count].sort(dim=1).values)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in their own dtype, also under autocast."""
    if not torch.is_autocast_enabled(a.device.type):
        return a @ b
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


@torch.no_grad()
def bipartite_match(features: Tensor, r: int, prefix: int, moments: Tensor | None = None, window: int = 0) -> Match:
    """`scored_match` without costs, and without the cosines of the pairs."""
    return scored_match(features, r, prefix, moments=moments, window=window)[0]


def scored_match(
    features: Tensor,
    r: int,
    prefix: int,
    source_cost: Tensor | None = None,
    destination_cost: Tensor | None = None,
    moments: Tensor | None = None,
    window: int = 0,
) -> tuple[Match, Tensor]:
    """Find the `r` best pairs of a token at an even and one at an odd position of the sequence (ToMe, section 3).

    Args:
        features: (B, N, d) or (B, H, N, d), compared by cosine similarity.
        r: number of even tokens that merge into their best odd token, at most half of the patch tokens.
        prefix: number of leading tokens that are not merged.
        source_cost, destination_cost: (B, N) subtracted from the cosine of pairs with this source or destination.
        moments: (B, N) time of each token, in steps; pairs more than `window` steps apart rank below all others, the
            nearest first. None: time is ignored.
        window: number of time steps.

    Returns:
        A `Match` whose new order is: prefix, unmerged even tokens, odd tokens. Ties go to the lower index.
        The cosine of each of its pairs, (B, r).
    """
    unit = metric(features)
    even, odd = slice(prefix + prefix % 2, None, 2), slice(prefix + (prefix + 1) % 2, None, 2)
    cosine = product(unit[:, even], unit[:, odd].transpose(1, 2))
    scores = cosine.detach()  # the order has no gradient
    if destination_cost is not None:
        scores = scores - destination_cost[:, None, odd]
    if moments is not None:
        steps = (moments[:, even, None] - moments[:, None, odd]).abs()
        scores = scores - 3 * (steps - window).clamp(min=0)  # cosines differ by 2 at most
    best, partner = scores.max(dim=-1)
    if source_cost is not None:  # does not change the best partner, since it is the same for all partners of a source
        best = best - source_cost[:, even]
    order = ranked(best)
    merged, unmerged = order[:, :r], order[:, r:]
    if prefix:  # as in the published code, unmerged tokens stay in order of their score if there are no prefix tokens
        unmerged = unmerged.sort(dim=-1).values

    indices = torch.arange(unit.shape[1], device=unit.device).expand(unit.shape[0], -1)
    evens = indices[:, even]
    keep = torch.cat([indices[:, :prefix], evens.gather(1, unmerged), indices[:, odd]], dim=1)
    partners = partner.gather(1, merged)
    pair = merged * cosine.shape[2] + partners
    match = Match(keep, evens.gather(1, merged), partners + (prefix + unmerged.shape[1]))
    return match, cosine.flatten(1).gather(1, pair)


class Pairs(NamedTuple):
    """All pairs of a token at an even and one at an odd position, as in `bipartite_match`."""

    cosine: Tensor
    """(B, E, O) cosine similarity of each pair."""
    even: Tensor
    """(E,) int64, indices of the even tokens in the sequence."""
    odd: Tensor
    """(O,) int64, indices of the odd tokens in the sequence."""
    source_cost: Tensor
    """(B, N) subtracted from the cosine of pairs with this source; infinite for padding, which never merges."""
    destination_cost: Tensor
    """(B, N) subtracted from the cosine of pairs with this destination; infinite for padding."""


class Merges(NamedTuple):
    """The tokens that merge, if their number differs between images."""

    sources: Tensor
    """(B, r) int64, indices into the sequence; r is the largest number of merges in an image."""
    destinations: Tensor
    """(B, r) int64, indices into the sequence; no destination is itself merged away."""
    similarity: Tensor
    """(B, r) in [0, 1]: cosine of each pair, clamped at 0."""
    merging: Tensor
    """(B, r) bool: False for surplus entries of images with fewer merges."""


@torch.no_grad()
def all_pairs(
    features: Tensor, prefix: int, source_cost: Tensor, destination_cost: Tensor, real: Tensor | None
) -> Pairs:
    """All candidate pairs of tokens with features (B, N, d) or (B, H, N, d); `real` (B, N) is False for padding."""
    unit = metric(features)
    indices = torch.arange(unit.shape[1], device=unit.device)
    even, odd = indices[prefix + prefix % 2 :: 2], indices[prefix + (prefix + 1) % 2 :: 2]
    if real is not None:
        source_cost, destination_cost = (cost.masked_fill(~real, torch.inf) for cost in (source_cost, destination_cost))
    return Pairs(product(unit[:, even], unit[:, odd].transpose(1, 2)), even, odd, source_cost, destination_cost)


@torch.no_grad()
def above(pairs: Pairs, threshold: float) -> Merges:
    """Match all pairs with a score above the threshold.

    First every even token is matched with its best odd token; then every odd token that received none is matched with
    its best remaining even token.
    """
    cosine, even, odd, source_cost, destination_cost = pairs
    batch = cosine.shape[0]
    empty = cosine.shape[1] == 0 or cosine.shape[2] == 0

    def match(cosine: Tensor, sources: Tensor, targets: Tensor, merged: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        scores = cosine - destination_cost[:, None, targets]
        scores = scores if merged is None else scores.masked_fill(merged[:, None], -torch.inf)
        best, partner = scores.max(dim=2)
        return best - source_cost[:, sources] > threshold, partner, cosine.gather(2, partner[..., None])[..., 0]

    if empty:
        none = even.new_zeros(batch, 0)
        return Merges(none, none, cosine.new_zeros(batch, 0), none.bool())
    even_merges, odd_partner, even_similarity = match(cosine, even, odd, None)
    received = torch.zeros_like(cosine[:, 0], dtype=torch.int64).scatter_add(1, odd_partner, even_merges.long()) > 0
    odd_merges, even_partner, odd_similarity = match(cosine.transpose(1, 2), odd, even, even_merges)
    merging = torch.cat([even_merges, odd_merges & ~received], dim=1)
    sources = torch.cat([even, odd]).expand(batch, -1)
    destinations = torch.cat([odd[odd_partner], even[even_partner]], dim=1)
    similarity = torch.cat([even_similarity, odd_similarity], dim=1).clamp(0, 1)
    most = int(merging.sum(1).max())
    first = merging.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return Merges(*(values.gather(1, first) for values in (sources, destinations, similarity, merging)))


def in_order(tokens: Tokens, sources: Tensor, destinations: Tensor) -> Match:
    """A `Match` for these pairs in which the remaining tokens keep their order.

    Args:
        tokens: N tokens.
        sources, destinations: (B, r) int64, indices from 0 to N - 1; no token is in both.
    """
    batch, count = tokens.x.shape[:2]
    merged = torch.zeros(batch, count, dtype=torch.int64, device=sources.device).scatter(1, sources, 1)
    keep = merged.argsort(dim=1, stable=True)[:, : count - sources.shape[1]]
    return Match(keep, sources, destinations - merged.cumsum(1).gather(1, destinations))


def similarity(tokens: Tokens, sources: Tensor, destinations: Tensor, unit: Tensor) -> Tensor:
    """(B, r) in [0, 1]: the cosine similarity of each pair, clamped at 0; `unit` (B, N, d) are unit vectors."""
    width = unit.shape[2]
    a, b = (unit.gather(1, index[..., None].expand(-1, -1, width)) for index in (sources, destinations))
    return (a * b).sum(-1).clamp(0, 1)

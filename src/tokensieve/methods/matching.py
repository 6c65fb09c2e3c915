"""Bipartite matching: which tokens are merged away, and into which."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tokens import Tokens


class Match(NamedTuple):
    """Which tokens stay, which are merged away, and where to: the arguments of `Tokens.merge`."""

    keep: Tensor
    """(B, N - r) int64, in the new order."""
    sources: Tensor
    """(B, r) int64"""
    destinations: Tensor
    """(B, r) int64, places in the new order."""


def metric(features: Tensor) -> Tensor:
    """Directions to compare tokens by: (B, N, d) as it is, (B, H, N, d) summed over heads -> (B, N, d) of length one.

    fp32 whatever the model runs in: half precision would turn near ties into other matches. The cosine of a sum over
    heads is that of the mean.
    """
    exact = torch.promote_types(features.dtype, torch.float32)
    return F.normalize(features.sum(1, dtype=exact) if features.ndim == 4 else features.to(exact), dim=-1)


def ranked(scores: Tensor) -> Tensor:
    """Indices of the last axis, highest score first, ties to the lower index."""
    return scores.argsort(dim=-1, descending=True, stable=True)


def keep_best(tokens: Tokens, scores: Tensor, count: int) -> Tokens:
    """The `count` patch tokens of highest score (B, n), in the order they have."""
    return tokens.select(ranked(scores)[:, :count].sort(dim=1).values)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in the precision they have, also under autocast."""
    if not torch.is_autocast_enabled(a.device.type):
        return a @ b
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


@torch.no_grad()
def bipartite_match(
    features: Tensor,
    r: int,
    prefix: int,
    source_cost: Tensor | None = None,
    destination_cost: Tensor | None = None,
    moments: Tensor | None = None,
    window: int = 0,
) -> Match:
    """Find the `r` best pairs between the tokens at even and at odd positions of the sequence (ToMe, section 3).

    Args:
        features: (B, N, d) or (B, H, N, d), compared by cosine.
        r: how many even tokens merge into their best odd token, at most half of the patch tokens.
        prefix: leading tokens that take no part.
        source_cost, destination_cost: (B, N) taken off the cosine of a pair whose source, whose destination it is.
        moments: (B, N) when each token is, in steps of time; pairs more than `window` steps apart come behind all
            others, the nearest first. None: time does not matter.
        window: see there.

    Returns:
        A `Match` whose new order is: prefix, unmerged even tokens, odd tokens. Equal scores go to the lower index.
    """
    unit = metric(features)
    even, odd = slice(prefix + prefix % 2, None, 2), slice(prefix + (prefix + 1) % 2, None, 2)
    scores = product(unit[:, even], unit[:, odd].transpose(1, 2))
    if destination_cost is not None:
        scores = scores - destination_cost[:, None, odd]
    if moments is not None:
        steps = (moments[:, even, None] - moments[:, None, odd]).abs()
        scores = scores - 3 * (steps - window).clamp(min=0)  # cosines differ by 2 at most
    best, partner = scores.max(dim=-1)
    if source_cost is not None:  # the same for all partners of a source
        best = best - source_cost[:, even]
    order = ranked(best)
    merged, unmerged = order[:, :r], order[:, r:]
    if prefix:  # published behaviour: without any prefix token the unmerged stay in order of their score
        unmerged = unmerged.sort(dim=-1).values

    places = torch.arange(unit.shape[1], device=unit.device).expand(unit.shape[0], -1)
    evens = places[:, even]
    keep = torch.cat([places[:, :prefix], evens.gather(1, unmerged), places[:, odd]], dim=1)
    destinations = partner.gather(1, merged) + (prefix + unmerged.shape[1])
    return Match(keep, evens.gather(1, merged), destinations)


class Pairs(NamedTuple):
    """All pairs of an even and an odd token, the pairs that `bipartite_match` chooses from."""

    cosine: Tensor
    """(B, E, O)"""
    even: Tensor
    """(E,) int64, places in the sequence."""
    odd: Tensor
    """(O,) int64"""
    source_cost: Tensor
    """(B, N) taken off the cosine of a pair whose source it is; infinite for padding, which takes no part."""
    destination_cost: Tensor
    """(B, N) the same of its destination."""


class Merges(NamedTuple):
    """Which tokens merge, where that is not the same number in each image."""

    sources: Tensor
    """(B, r) int64, places in the sequence, as many as the image with the most has."""
    destinations: Tensor
    """(B, r) int64, places in the sequence; none of them is a source that merges."""
    similarity: Tensor
    """(B, r) in [0, 1]: their cosine, nothing below 0."""
    merging: Tensor
    """(B, r) bool: False where the image has fewer."""


@torch.no_grad()
def all_pairs(
    features: Tensor, prefix: int, source_cost: Tensor, destination_cost: Tensor, real: Tensor | None
) -> Pairs:
    """The pairs of features (B, N, d) or (B, H, N, d), of which `real` (B, N) is False for padding."""
    unit = metric(features)
    places = torch.arange(unit.shape[1], device=unit.device)
    even, odd = places[prefix + prefix % 2 :: 2], places[prefix + (prefix + 1) % 2 :: 2]
    if real is not None:
        source_cost, destination_cost = (cost.masked_fill(~real, torch.inf) for cost in (source_cost, destination_cost))
    return Pairs(product(unit[:, even], unit[:, odd].transpose(1, 2)), even, odd, source_cost, destination_cost)


@torch.no_grad()
def above(pairs: Pairs, bar: float) -> Merges:
    """Every even token whose best pair is above the bar merges into its odd one; then every odd token that nothing has
    merged into does the same, into one of the even tokens that are left."""
    cosine, even, odd, source_cost, destination_cost = pairs
    batch = cosine.shape[0]
    empty = cosine.shape[1] == 0 or cosine.shape[2] == 0

    def best(cosine: Tensor, own: Tensor, others: Tensor, gone: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        scores = cosine - destination_cost[:, None, others]
        scores = scores if gone is None else scores.masked_fill(gone[:, None], -torch.inf)
        found, partner = scores.max(dim=2)
        return found - source_cost[:, own] > bar, partner, cosine.gather(2, partner[..., None])[..., 0]

    if empty:
        none = even.new_zeros(batch, 0)
        return Merges(none, none, cosine.new_zeros(batch, 0), none.bool())
    there, odd_partner, there_similar = best(cosine, even, odd, None)
    received = torch.zeros_like(cosine[:, 0], dtype=torch.int64).scatter_add(1, odd_partner, there.long()) > 0
    back, even_partner, back_similar = best(cosine.transpose(1, 2), odd, even, there)
    merging = torch.cat([there, back & ~received], dim=1)
    sources = torch.cat([even, odd]).expand(batch, -1)
    destinations = torch.cat([odd[odd_partner], even[even_partner]], dim=1)
    similarity = torch.cat([there_similar, back_similar], dim=1).clamp(0, 1)
    most = int(merging.sum(1).max())
    first = merging.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return Merges(*(values.gather(1, first) for values in (sources, destinations, similarity, merging)))


def in_order(tokens: Tokens, sources: Tensor, destinations: Tensor) -> Match:
    """A match from the places of its pairs in the sequence as it is: what stays keeps its order.

    Args:
        tokens: what is there now, N tokens.
        sources, destinations: (B, r) int64, places in 0 ... N - 1; nothing is both.
    """
    batch, count = tokens.x.shape[:2]
    merged = torch.zeros(batch, count, dtype=torch.int64, device=sources.device).scatter(1, sources, 1)
    keep = merged.argsort(dim=1, stable=True)[:, : count - sources.shape[1]]
    return Match(keep, sources, destinations - merged.cumsum(1).gather(1, destinations))


def similarity(tokens: Tokens, sources: Tensor, destinations: Tensor, unit: Tensor) -> Tensor:
    """(B, r) in [0, 1]: the cosine of each pair's directions `unit` (B, N, d), nothing below 0."""
    wide = unit.shape[2]
    a, b = (unit.gather(1, index[..., None].expand(-1, -1, wide)) for index in (sources, destinations))
    return (a * b).sum(-1).clamp(0, 1)

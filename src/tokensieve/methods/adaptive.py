"""Adaptive merging: guarded merging of all pairs above a threshold; images with many distinct tokens keep more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .._frozen import replace
from .._recording import recording
from ..errors import RecipeError, UnsupportedHost
from ..padding import compact
from ..tokens import Tokens
from .base import AttentionEvidence, Method, Place, TokenSite, register
from .guarded import Guarded
from .matching import Pairs, above, all_pairs, ranked
from .schedule import Layers, blocks, layers_field, levels_field


@register
@dataclass(frozen=True)
class Adaptive(Method[AttentionEvidence]):
    """`guarded` with a score threshold instead of a number of merges; a method of this project.

    Every pair with a score above the block's threshold (`bars`) merges: even tokens into odd ones, then odd tokens into
    even ones. Uniform images keep few tokens, cluttered ones many; a batch is padded to its longest image.
    `tokensieve.tune` finds the thresholds for a mean number of tokens, on images like those of the application.
    A threshold for each block is an idea of Adaptive Token Merging (arXiv 2505.15160).

    Args:
        bars: the score above which a pair merges: one number for all blocks, or a tuple with one number for each block
            (1 for missing ones); 1 merges nothing.
        layers: the blocks that act, as a slice or by their indices; None means all.
        drop: the share of the patch tokens that each block drops after merging, in [0, 1), those with the least class
            attention first; one number or a tuple, as for `bars` (0 for missing ones).
        source_guard, destination_guard, metric, soften, norm: as for `guarded`.
    """

    bars: float | tuple[float, ...] = levels_field(1.0, -10.0, 1.0)
    layers: Layers = layers_field()
    drop: float | tuple[float, ...] = levels_field(0.0, 0.0, 0.999)
    source_guard: float = 0.05
    destination_guard: float = 0.035
    metric: Literal["tokens", "keys"] = "tokens"
    soften: bool = True
    norm: bool = True

    name: ClassVar[str] = "adaptive"
    place: ClassVar[Place] = "inside"
    merges: ClassVar[bool] = True
    pads: ClassVar[bool] = True
    knows_padding: ClassVar[bool] = True
    needs_class_token: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric not in ("tokens", "keys"):
            raise RecipeError(f"adaptive: metric must be tokens or keys, not {self.metric!r}.")

    @property
    def varies(self) -> bool:
        return True

    def left(self, site: TokenSite) -> int:
        """All tokens, which is an upper limit: the number kept depends on the image."""
        return site.tokens

    def acts(self, site: TokenSite) -> bool:
        threshold, share = self.at(site.block, site.depth)
        return (threshold < 1 or share > 0) and site.tokens > site.prefix + 1

    def at(self, block: int, depth: int) -> tuple[float, float]:
        """The threshold of a block, and the share of patch tokens that it drops."""
        if block not in blocks(self.layers, depth):
            return 1.0, 0.0
        return _at(self.bars, block, 1.0), _at(self.drop, block, 0.0)

    def reduce(self, tokens: Tokens, left: int, evidence: AttentionEvidence) -> Tokens:
        if recording():
            raise UnsupportedHost(
                "adaptive keeps a different number of tokens in each image, which a compiled or exported graph cannot "
                "do: take guarded, whose token counts are fixed, or call the model without compiling it."
            )
        attended = evidence.class_attention()
        threshold, share = self.at(evidence.block, evidence.depth)
        if threshold < 1:
            tokens = self.merge(tokens, self.pairs(tokens, evidence, attended), threshold)
        return drop_least(tokens, evidence.follow(attended, tokens), share) if share else tokens

    def pairs(self, tokens: Tokens, evidence: AttentionEvidence, attended: Tensor) -> Pairs:
        """Candidate pairs in this block; `attended` (B, N) is the class attention to the block's input tokens."""
        prefix, real = tokens.prefix, tokens.real
        guard = evidence.follow(attended, tokens)
        patches = guard[:, prefix:] if real is None else guard[:, prefix:] * real[:, prefix:]
        guard = guard * (tokens.lengths_per_image() - prefix)[:, None] / patches.sum(1, keepdim=True)
        features = tokens.x if self.metric == "tokens" else evidence.keys(tokens)
        return all_pairs(features, prefix, self.source_guard * guard, self.destination_guard * guard, real)

    def merge(self, tokens: Tokens, pairs: Pairs, threshold: float) -> Tokens:
        """Merge all pairs above the threshold; the new order is prefix, remaining even tokens, remaining odd tokens."""
        batch, count = tokens.x.shape[:2]
        sources, destinations, similarity, merging = above(pairs, threshold)
        index = torch.arange(count, device=sources.device)
        rank = torch.where(index < tokens.prefix, 0, 1 + index % 2).to(torch.int8).expand(batch, -1)
        if tokens.real is not None:
            rank = rank.masked_fill(~tokens.real, 3)
        rank = rank.scatter(1, sources, torch.where(merging, 3, rank.gather(1, sources)).to(torch.int8))
        lengths = (rank < 3).sum(1)
        longest = int(lengths.max())
        order = rank.argsort(dim=1, stable=True)
        moved_to = torch.empty_like(order).scatter(1, order, tokens.places)
        merged = tokens.merge(
            order[:, :longest],
            sources,
            moved_to.gather(1, destinations).clamp(max=longest - 1),  # any valid index for pairs that do not merge
            weigh=True,
            soften=similarity if self.soften else None,
            norm="mean" if self.norm else None,
            merging=merging,
        )
        return replace(merged, lengths=None if bool((lengths == longest).all()) else lengths)


def pair_settings(method: Guarded | Adaptive) -> dict[str, Any]:
    """The settings that `guarded` and `adaptive` share, all of them of how a pair is scored and merged."""
    names = ("source_guard", "destination_guard", "metric", "soften", "norm")
    return {name: getattr(method, name) for name in names}


def drop_least(tokens: Tokens, attended: Tensor, share: float) -> Tokens:
    """Drop a share of each image's patch tokens, those with the least attention `attended` (B, N) first; at least one
    stays."""
    prefix, lengths = tokens.prefix, tokens.lengths_per_image()
    patches = lengths - prefix
    dropped = (patches * share + 0.5).long().minimum((patches - 1).clamp(min=0))
    scores = attended if tokens.real is None else attended.masked_fill(~tokens.real, -1)
    order = ranked(scores[:, prefix:])
    rank = torch.empty_like(order).scatter(1, order, tokens.places[:, : order.shape[1]])
    stays = rank < (patches - dropped)[:, None]
    return compact(tokens, torch.cat([stays.new_ones(len(stays), prefix), stays], dim=1))


def _at(levels: float | tuple[float, ...], block: int, missing: float) -> float:
    """The value for a block: the number itself, or the block's entry in a tuple, `missing` if it has none."""
    if not isinstance(levels, tuple):
        return levels
    return levels[block] if block < len(levels) else missing

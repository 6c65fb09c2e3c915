"""Guarded merging: ToMe with a penalty that protects tokens with high class attention, and optional dropping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..errors import RecipeError
from ..tokens import Tokens
from .base import AttentionEvidence, TokenSite, register
from .matching import keep_best, scored_match
from .merging import Merging
from .schedule import Schedule, at, schedule_field


@register
@dataclass(frozen=True)
class Guarded(Merging):
    """Merge by similarity minus a penalty for class attention, then drop; a method of this project.

    The score of a pair of source i and destination j is cos(i, j) - source_guard * c_i - destination_guard * c_j, where
    c is the class attention divided by its mean, so that attended tokens stay unmerged. In later attention the weight
    of a merged token is multiplied by its similarity to its destination, as in DiffRate.

    Args:
        r: tokens merged away in each block, as for `tome`.
        layers: the blocks that act, as a slice or by their indices; None means all.
        drop: patches dropped in each block after merging, those with the least class attention first; the forms of `r`.
        source_guard: penalty for merging an attended token away.
        destination_guard: penalty for merging another token into it.
        metric: the features that are compared: token features between attention and MLP (`tokens`), or `keys`.
        soften: multiply a merged token's weight by the pair's similarity; False weights it by its size, as ToMe does.
        norm: rescale each average, whose norm is smaller than that of its members, to their mean norm; this lowers the
            KL divergence by a seventh.
    """

    drop: Schedule = schedule_field(0)
    source_guard: float = 0.05
    destination_guard: float = 0.035
    metric: Literal["tokens", "keys"] = "tokens"
    soften: bool = True
    norm: bool = True

    name: ClassVar[str] = "guarded"
    needs_class_token: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric not in ("tokens", "keys"):
            raise RecipeError(f"guarded: metric must be tokens or keys, not {self.metric!r}.")

    def left(self, site: TokenSite) -> int:
        merged = super().left(site)
        return merged - min(at(self.drop, self.layers, site.block, site.depth), max(merged - site.prefix - 1, 0))

    def reduce(self, tokens: Tokens, left: int, evidence: AttentionEvidence) -> Tokens:
        prefix, count = tokens.prefix, tokens.x.shape[1]
        attended = evidence.class_attention()
        r = min(at(self.r, self.layers, evidence.block, evidence.depth), (count - prefix) // 2)
        if r:
            guard = evidence.follow(attended, tokens)
            guard = guard / guard[:, prefix:].mean(1, keepdim=True)
            features = tokens.x if self.metric == "tokens" else evidence.keys(tokens)
            match, cosine = scored_match(features, r, prefix, self.source_guard * guard, self.destination_guard * guard)
            soften = cosine.clamp(0, 1) if self.soften else None
            tokens = tokens.merge(*match, weigh=True, soften=soften, norm="mean" if self.norm else None)
        if tokens.x.shape[1] == left:
            return tokens
        return keep_best(tokens, evidence.follow(attended, tokens)[:, prefix:], left - prefix)

"""DiffRate: drops the patches with the least class attention, and merges the next least attended ones into the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..tokens import Tokens
from .base import AttentionEvidence, Method, Place, TokenSite, register
from .matching import in_order, keep_best, metric, product, ranked, similarity
from .schedule import Layers, Schedule, at, layers_field, schedule_field


@register
@dataclass(frozen=True)
class DiffRate(Method[AttentionEvidence]):
    """Prune, then merge, by rank of class attention (Chen et al., ICCV 2023, section 3); counts are given, not learned.

    Patches with the highest class attention are never merged away. Less important ones are merged into them: each into
    the most similar one by token features, with an unweighted mean. In later attention the weight of a token is the sum
    of the weights merged into it, each multiplied by its similarity to that token.

    Args:
        drop: patches dropped in each block: an integer, a pair (n, inflect) for a number that
            rises or falls over the blocks, or a list, as for `tome`.
        merge: patches merged away in each block, in the same forms.
        layers: the blocks that act, as a slice or by their indices; None means all.
    """

    drop: Schedule = schedule_field(0)
    merge: Schedule = schedule_field(0)
    layers: Layers = layers_field()

    name: ClassVar[str] = "diffrate"
    place: ClassVar[Place] = "inside"
    needs_class_token: ClassVar[bool] = True
    merges: ClassVar[bool] = True

    def _dropped_and_merged(self, block: int, depth: int, patches: int) -> tuple[int, int]:
        dropped = min(at(self.drop, self.layers, block, depth), max(patches - 1, 0))
        return dropped, min(at(self.merge, self.layers, block, depth), (patches - dropped) // 2)

    def left(self, site: TokenSite) -> int:
        return site.tokens - sum(self._dropped_and_merged(site.block, site.depth, site.tokens - site.prefix))

    def reduce(self, tokens: Tokens, left: int, evidence: AttentionEvidence) -> Tokens:
        prefix, patches = tokens.prefix, tokens.x.shape[1] - tokens.prefix
        dropped, merged = self._dropped_and_merged(evidence.block, evidence.depth, patches)
        attended = evidence.class_attention()
        order = ranked(evidence.follow(attended, tokens)[:, prefix:])
        unit_features = metric(tokens.x)
        kept = order[:, : patches - dropped - merged] + prefix
        sources = order[:, patches - dropped - merged : patches - dropped] + prefix
        if merged:  # before dropping, which gives the same: dropped patches take no part in it
            width = unit_features.shape[2]
            source_features, kept_features = (
                unit_features.gather(1, index[..., None].expand(-1, -1, width)) for index in (sources, kept)
            )
            destinations = kept.gather(1, product(source_features, kept_features.transpose(1, 2)).argmax(2))
            soften = similarity(tokens, sources, destinations, unit_features)
            equal_weights = tokens.x.new_ones(tokens.x.shape[:2])
            match = in_order(tokens, sources, destinations)
            tokens = tokens.merge(*match, weigh=True, by=equal_weights, soften=soften)
        if not dropped:
            return tokens
        return keep_best(tokens, evidence.follow(attended, tokens)[:, prefix:], left - prefix)

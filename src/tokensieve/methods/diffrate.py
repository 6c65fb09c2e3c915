"""DiffRate: the least attended are dropped, the next ones flow into the most similar of the best."""

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

    The best patches are never merged away, and unimportant ones flow into them: each into the most similar by token
    features, by a plain mean. Attention goes on counting a merged token's weight times its similarity.

    Args:
        drop: patches dropped in each block: an integer, a pair (n, inflect) or a list, as for `tome`.
        merge: patches merged away in each block, in the same forms.
        layers: the blocks that act, as a slice or by their numbers; None means all.
    """

    drop: Schedule = schedule_field(0)
    merge: Schedule = schedule_field(0)
    layers: Layers = layers_field()

    name: ClassVar[str] = "diffrate"
    place: ClassVar[Place] = "inside"
    needs_class_token: ClassVar[bool] = True
    merges: ClassVar[bool] = True

    def _counts(self, block: int, depth: int, patches: int) -> tuple[int, int]:
        dropped = min(at(self.drop, self.layers, block, depth), max(patches - 1, 0))
        return dropped, min(at(self.merge, self.layers, block, depth), (patches - dropped) // 2)

    def left(self, site: TokenSite) -> int:
        return site.tokens - sum(self._counts(site.block, site.depth, site.tokens - site.prefix))

    def reduce(self, tokens: Tokens, left: int, evidence: AttentionEvidence) -> Tokens:
        prefix, patches = tokens.prefix, tokens.x.shape[1] - tokens.prefix
        dropped, merged = self._counts(evidence.block, evidence.depth, patches)
        attended = evidence.class_attention()
        order = ranked(evidence.follow(attended, tokens)[:, prefix:])
        unit = metric(tokens.x)
        head, tail = (order[:, cut] + prefix for cut in (slice(patches - dropped - merged), slice(patches - dropped)))
        tail = tail[:, head.shape[1] :]
        if merged:
            wide = unit.shape[2]
            a, b = (unit.gather(1, index[..., None].expand(-1, -1, wide)) for index in (tail, head))
            into = head.gather(1, product(a, b.transpose(1, 2)).argmax(2))
            soften = similarity(tokens, tail, into, unit)
            plain = tokens.x.new_ones(tokens.x.shape[:2])
            tokens = tokens.merge(*in_order(tokens, tail, into), weigh=True, by=plain, soften=soften)
        if not dropped:
            return tokens
        return keep_best(tokens, evidence.follow(attended, tokens)[:, prefix:], left - prefix)

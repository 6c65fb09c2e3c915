"""EViT: keeps the patches with the highest class attention, and fuses the others into one token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..tokens import Tokens
from .base import AttentionEvidence, TokenSite, register
from .ranking import Ranking


@register
@dataclass(frozen=True)
class EViT(Ranking[AttentionEvidence]):
    """Keep the top patches by class attention, and fuse the rest (Liang et al., ICLR 2022, section 3).

    The fused token is the sum of the other patch tokens, weighted by the class attention to them, and counts as a patch
    from there on. Kept patches are in order of descending attention. The published models were trained with it.

    Args:
        keep: share of the patch tokens to keep each time, in (0, 1].
        layers: the blocks that act; None is after one, two and three quarters of them (3, 6 and 9 of 12).
        fuse: False drops the others instead of fusing them.
    """

    fuse: bool = True

    name: ClassVar[str] = "evit"
    needs_class_token: ClassVar[bool] = True
    merges: ClassVar[bool] = True
    by_score: ClassVar[bool] = True

    def kept(self, site: TokenSite) -> int | None:
        count = super().kept(site)
        return None if count is None else count + self.fuse

    def score(self, tokens: Tokens, evidence: AttentionEvidence) -> Tensor:
        return evidence.follow(evidence.class_attention(), tokens)[:, tokens.prefix :]

    def reduce(self, tokens: Tokens, left: int, evidence: AttentionEvidence) -> Tokens:
        if not self.fuse:
            return super().reduce(tokens, left, evidence)
        attention, order = self.score(tokens, evidence).sort(dim=1, descending=True, stable=True)
        kept = left - tokens.prefix - 1
        return tokens.fuse(order[:, :kept], order[:, kept:], attention[:, kept:])

"""Token Merging (ToMe): in every block, average the most similar pairs of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..tokens import Tokens
from .base import AttentionEvidence, register
from .matching import bipartite_match
from .merging import Merging


@register
@dataclass(frozen=True)
class ToMe(Merging):
    """Bipartite soft matching on the keys, between attention and MLP (Bolya et al., ICLR 2023, section 3).

    At most half of the patch tokens can be merged in one block; prefix tokens never are.

    Args:
        r: tokens merged away in each block. An integer; a pair (r, inflect) with inflect in [-1, 1] for a schedule
            that falls (-1) or rises (1) linearly around r; or a list with one number for each block, padded with 0.
        layers: the blocks that merge, as a slice (`6:12`) or by their numbers (`(3, 6, 9)`); None means all.
        proportional: add log(size) to the attention logits of merged keys. Right for supervised weights; ToMe's
            authors turn it off for MAE weights that were not trained with it.
    """

    proportional: bool = True

    name: ClassVar[str] = "tome"

    def reduce(self, tokens: Tokens, left: int, evidence: AttentionEvidence) -> Tokens:
        match = bipartite_match(evidence.keys(tokens), tokens.x.shape[1] - left, tokens.prefix)
        return tokens.merge(*match, weigh=self.proportional)

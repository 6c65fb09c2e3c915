"""MCTF: similar, uninformative and small tokens merge first, in both directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import RecipeError
from ..tokens import Tokens
from .base import AttentionEvidence, register
from .matching import in_order, metric, product, ranked
from .merging import Merging


@register
@dataclass(frozen=True)
class MCTF(Merging):
    """Multi-criteria token fusion (Lee et al., CVPR 2024, section 3), off the shelf.

    A pair's attraction is ((cos + 1) / 2)^(1 / tau_similarity) times (a_i a_j)^(1 / tau_information) times
    (b_i b_j)^(1 / tau_size), a the inverse of the attention that a token receives and b of its size, each divided by
    its maximum. Half of the `r` merges go from even to odd positions, the others from odd ones into what is left of the
    even. Tokens are averaged by attention received times size.

    Needs the column sums of the attention matrix: its logits once more, head by head.

    Args:
        r: tokens fewer after each block, as for `tome`.
        layers: the blocks that merge, as a slice or by their numbers; None means all.
        tau_similarity, tau_information, tau_size: temperatures of the three criteria; higher counts less.
    """

    tau_similarity: float = 1.0
    tau_information: float = 20.0
    tau_size: float = 40.0

    name: ClassVar[str] = "mctf"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not min(self.tau_similarity, self.tau_information, self.tau_size) > 0:
            raise RecipeError("mctf: the temperatures tau_similarity, tau_information and tau_size must be above 0.")

    def reduce(self, tokens: Tokens, left: int, evidence: AttentionEvidence) -> Tokens:
        received = evidence.follow(evidence.attention.received().mean(1), tokens)
        size = torch.ones_like(received) if tokens.size is None else tokens.size
        pull = torch.ones_like(received)
        for value, tau in ((received, self.tau_information), (size, self.tau_size)):
            inverse = 1 / value.clamp(min=torch.finfo(value.dtype).tiny)
            pull = pull * (inverse / inverse[:, tokens.prefix :].amax(1, keepdim=True)) ** (1 / tau)
        r = tokens.x.shape[1] - left
        pairs = self._pairs(metric(evidence.keys(tokens)), pull, r, tokens.prefix)
        return tokens.merge(*in_order(tokens, *pairs), weigh=True, by=received * size)

    @torch.no_grad()
    def _pairs(self, unit: Tensor, pull: Tensor, r: int, prefix: int) -> tuple[Tensor, Tensor]:
        """Sources and destinations (B, r) among tokens of directions `unit` (B, N, d)."""
        indices = torch.arange(unit.shape[1], device=unit.device).expand(unit.shape[0], -1)
        even, odd = slice(prefix + prefix % 2, None, 2), slice(prefix + (prefix + 1) % 2, None, 2)
        cosine = product(unit[:, even], unit[:, odd].transpose(1, 2))
        attraction = ((cosine + 1) / 2).clamp(min=0) ** (1 / self.tau_similarity)
        attraction = attraction * pull[:, even, None] * pull[:, None, odd]

        best, partner = attraction.max(dim=2)
        merged = ranked(best)[:, : r // 2]
        into = partner.gather(1, merged)
        # Back from odd to even: what was merged away is no destination, and what received no source.
        is_merged = torch.zeros_like(best).scatter(1, merged, 1) > 0
        busy = torch.zeros_like(attraction[:, 0]).scatter(1, into, 1) > 0
        best, partner = attraction.masked_fill(is_merged[:, :, None], -1).max(dim=1)
        back = ranked(best.masked_fill(busy, -1))[:, : r - r // 2]
        evens, odds = indices[:, even], indices[:, odd]
        sources = torch.cat([evens.gather(1, merged), odds.gather(1, back)], dim=1)
        return sources, torch.cat([odds.gather(1, into), evens.gather(1, partner.gather(1, back))], dim=1)

"""MCTF: merges tokens that are similar, receive little attention and are small, from even to odd and odd to even."""

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
    """Multi-criteria token fusion without training (Lee et al., CVPR 2024, section 3).

    A pair's attraction is ((cos + 1) / 2)^(1 / tau_similarity) times (a_i a_j)^(1 / tau_information) times
    (b_i b_j)^(1 / tau_size), where a is the inverse of the attention that a token receives, and b the inverse of its
    size, each divided by its maximum. Half of the `r` merges go from even to odd positions, the others from odd
    positions into the remaining even ones. Averages are weighted by received attention times size.

    It needs the column sums of the attention matrix, for which the logits are computed again, head by head.

    Args:
        r: tokens merged away in each block, as for `tome`.
        layers: the blocks that merge, as a slice or by their indices; None means all.
        tau_similarity, tau_information, tau_size: temperatures of the three criteria; a higher one reduces its effect.
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
        factor = torch.ones_like(received)
        for value, tau in ((received, self.tau_information), (size, self.tau_size)):
            inverse = 1 / value.clamp(min=torch.finfo(value.dtype).tiny)
            factor = factor * (inverse / inverse[:, tokens.prefix :].amax(1, keepdim=True)) ** (1 / tau)
        r = tokens.x.shape[1] - left
        pairs = self._pairs(metric(evidence.keys(tokens)), factor, r, tokens.prefix)
        return tokens.merge(*in_order(tokens, *pairs), weigh=True, by=received * size)

    @torch.no_grad()
    def _pairs(self, unit: Tensor, factor: Tensor, r: int, prefix: int) -> tuple[Tensor, Tensor]:
        """Sources and destinations, (B, r) each.

        `unit` (B, N, d) are the tokens' unit vectors, `factor` (B, N) their factors from attention and size.
        """
        indices = torch.arange(unit.shape[1], device=unit.device).expand(unit.shape[0], -1)
        even, odd = slice(prefix + prefix % 2, None, 2), slice(prefix + (prefix + 1) % 2, None, 2)
        cosine = product(unit[:, even], unit[:, odd].transpose(1, 2))
        attraction = ((cosine + 1) / 2).clamp(min=0) ** (1 / self.tau_similarity)
        attraction = attraction * factor[:, even, None] * factor[:, None, odd]

        best, partner = attraction.max(dim=2)
        even_sources = ranked(best)[:, : r // 2]
        odd_destinations = partner.gather(1, even_sources)
        # From odd to even: tokens merged away cannot be destinations, and tokens that received one cannot be sources.
        is_merged = torch.zeros_like(best).scatter(1, even_sources, 1) > 0
        received = torch.zeros_like(attraction[:, 0]).scatter(1, odd_destinations, 1) > 0
        best, partner = attraction.masked_fill(is_merged[:, :, None], -1).max(dim=1)
        odd_sources = ranked(best.masked_fill(received, -1))[:, : r - r // 2]
        even_destinations = partner.gather(1, odd_sources)
        evens, odds = indices[:, even], indices[:, odd]
        sources = torch.cat([evens.gather(1, even_sources), odds.gather(1, odd_sources)], dim=1)
        return sources, torch.cat([odds.gather(1, odd_destinations), evens.gather(1, even_destinations)], dim=1)

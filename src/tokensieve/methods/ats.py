"""Adaptive Token Sampling (ATS): samples patches from the class attention, so that the token count depends on the
image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._frozen import replace
from .._recording import recording
from ..errors import RecipeError
from ..tokens import Tokens
from .base import AttentionEvidence, Method, Place, TokenSite, register
from .matching import ranked
from .schedule import Layers, blocks, layers_field


@register
@dataclass(frozen=True)
class ATS(Method[AttentionEvidence]):
    """Inverse-transform sampling from the class token's attention (Fayyaz et al., ECCV 2022, section 3).

    The score of a patch is its class attention times the norm of its value vector. Patches are sampled at evenly spaced
    quantiles of the scores; a patch sampled more than once is kept once, so that an image with few outstanding patches
    keeps few. Only kept tokens are queries; keys and values are those of all tokens. A batch is padded to its longest
    image; padding is masked.

    Only `layers=()` changes nothing: quantiles that select the same patch reduce tokens even if `tokens` is larger than
    their number, as in the published setting (197 in every block).

    Args:
        tokens: the largest number of tokens kept, prefix included.
        layers: the blocks that act; None is all after the first quarter (3 to 11 of 12).
        adaptive: False pads every image to `tokens`, so that all images have the same count; compiled or exported
            graphs do this in any case.
    """

    tokens: int
    layers: Layers = layers_field()
    adaptive: bool = True

    name: ClassVar[str] = "ats"
    place: ClassVar[Place] = "rows"
    needs_class_token: ClassVar[bool] = True
    pads: ClassVar[bool] = True
    knows_padding: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.tokens, int) or isinstance(self.tokens, bool) or self.tokens < 2:
            raise RecipeError(f"ats: tokens must be a whole number from 2 up, prefix included, not {self.tokens!r}.")

    def left(self, site: TokenSite) -> int:
        return min(site.tokens, max(self.tokens, site.prefix + 1)) if self.acts(site) else site.tokens

    def acts(self, site: TokenSite) -> bool:
        """True in all blocks of `layers`: even if `tokens` is not smaller than the token count, quantiles that select
        the same patch reduce it."""
        default = range(site.depth // 4, site.depth)
        return site.block in blocks(self.layers, site.depth, default) and site.tokens > site.prefix + 1

    @property
    def varies(self) -> bool:
        return self.adaptive

    def reduce(self, tokens: Tokens, left: int, evidence: AttentionEvidence) -> Tokens:
        attention, prefix = evidence.attention, tokens.prefix
        length = attention.v.to(torch.promote_types(attention.v.dtype, torch.float32)).square().sum((1, 3)).sqrt()
        scores = (attention.query_probabilities().sum(1) * length)[:, prefix:]
        real = tokens.real
        index, count = sample(scores, max(self.tokens - prefix, 1), None if real is None else real[:, prefix:])
        index = index[:, : left - prefix]
        if self.adaptive and not recording():
            longest = int(count.max())
            index = index[:, :longest]
            if bool((count == longest).all()):
                return replace(tokens.select(index), lengths=None)
        kept = tokens.select(index)
        source = None if kept.source is None else kept.source.minimum(prefix + count[:, None] - 1)
        return replace(kept, source=source, lengths=prefix + count)


@torch.no_grad()
def sample(scores: Tensor, levels: int, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sample patches at evenly spaced quantiles of the distribution of scores.

    Args:
        scores: (B, n), at least 0.
        levels: number of quantiles.
        real: (B, n) False for padding, which is not sampled; None is True everywhere.

    Returns:
        (B, n) int64, the sampled patches in ascending order without duplicates, then the last one repeated; and (B,)
        the number of sampled patches.
    """
    if real is not None:
        scores = scores.masked_fill(~real, -1)  # sorted to the front
    ascending, order = scores.sort(dim=1, stable=True)
    share = ascending.clamp(min=0).cumsum(1)
    padding = torch.zeros_like(order[:, :1]) if real is None else (~real).sum(1, keepdim=True)
    tiny = torch.finfo(share.dtype).tiny
    share = share / share[:, -1:].clamp(min=tiny)
    start = share.gather(1, padding)
    share = (share - start) / (share[:, -1:] - start).clamp(min=tiny)
    lowest = share.masked_fill(share <= 0, 1).amin(1, keepdim=True)
    share = share.masked_fill(torch.arange(share.shape[1], device=share.device) < padding, float("inf"))
    steps = torch.arange(levels, device=share.device, dtype=share.dtype) / max(levels - 1, 1)
    quantiles = lowest + (1 - lowest) * (steps if levels > 1 else steps + 1)
    nearest = (quantiles[:, :, None] - share[:, None, :]).abs().argmin(2)
    picked = torch.zeros_like(order).scatter(1, order.gather(1, nearest), 1)
    count = picked.sum(1)
    index = ranked(picked)
    last = index.gather(1, count[:, None] - 1)
    return torch.where(torch.arange(index.shape[1], device=share.device) < count[:, None], index, last), count

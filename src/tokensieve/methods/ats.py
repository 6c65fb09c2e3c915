"""Adaptive Token Sampling (ATS): as many tokens as the image's attention asks for."""

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

    A patch scores its attention times the length of its value. Levels spread evenly over the scores' distribution pick
    patches; those picked more than once stay once, so that an image with few outstanding patches keeps few. What stays
    asks; keys and values are all that arrived. Images of a batch are padded to the longest, with tokens never read.

    There is no identity setting but `layers=()`: levels that fall together leave fewer tokens even where `tokens` is
    more than there are, as in the published setting (197 in every block).

    Args:
        tokens: the most that stay, prefix included.
        layers: the blocks that act; None is all after the first quarter (3 to 11 of 12).
        adaptive: False pads every image to `tokens`: one count for all images, which graphs that are compiled or
            exported have anyway.
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
        """In all its blocks, since levels that fall together leave fewer tokens even where no fewer are asked for."""
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
    """Patches at evenly spread levels of the scores' distribution.

    Args:
        scores: (B, n), none below 0.
        levels: how many.
        real: (B, n) False for padding, which is not picked; None is True everywhere.

    Returns:
        (B, n) int64, the picked patches in ascending order, each once, then the last of them again and again; and
        (B,) how many were picked.
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

"""Adaptive Token Sampling (ATS): as many tokens as the image's attention asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import RecipeError
from ..tokens import Tokens
from .base import Evidence, Here, Method, Place, register
from .matching import ranked
from .schedule import Layers, blocks, check_layers


@register
@dataclass(frozen=True)
class ATS(Method):
    """Inverse-transform sampling from the class token's attention (Fayyaz et al., ECCV 2022, section 3).

    A patch scores its attention times the length of its value. Levels spread evenly over the scores' distribution pick
    patches; those picked more than once stay once, so that an image with few outstanding patches keeps few. What stays
    asks; keys and values are all that arrived. Images of a batch are padded to the longest, with tokens no one reads.

    Args:
        tokens: the most that stay, prefix included.
        layers: the blocks that act; None is all after the first quarter (3 to 11 of 12).
        adaptive: False pads every image to `tokens`: one count for all images, which graphs that are compiled or
            exported have anyway.

    There is no identity setting but `layers=()`.
    """

    tokens: int
    layers: Layers = None
    adaptive: bool = True

    name: ClassVar[str] = "ats"
    place: ClassVar[Place] = "rows"
    needs_class_token: ClassVar[bool] = True
    merges: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.tokens, int) or isinstance(self.tokens, bool) or self.tokens < 2:
            raise RecipeError(f"ats: tokens must be a whole number from 2 up, prefix included, not {self.tokens!r}.")
        object.__setattr__(self, "layers", check_layers("ats", self.layers))

    def left(self, here: Here) -> int:
        if here.block not in blocks(self.layers, here.depth, range(here.depth // 4, here.depth)):
            return here.tokens
        return min(here.tokens, max(self.tokens, here.prefix + 1))

    def reduce(self, tokens: Tokens, left: int, evidence: Evidence) -> Tokens:
        assert evidence.attention is not None
        attention, prefix = evidence.attention, tokens.prefix
        length = attention.v.to(torch.promote_types(attention.v.dtype, torch.float32)).square().sum((1, 3)).sqrt()
        scores = (attention.row().sum(1) * length)[:, prefix:]
        index, count = sample(scores, left - prefix)
        if self.adaptive and not torch.compiler.is_compiling():
            longest = int(count.max())
            index = index[:, :longest]
            if bool((count == longest).all()):
                return tokens.select(index)
        kept = tokens.select(index)
        real = torch.arange(kept.x.shape[1], device=index.device) < prefix + count[:, None]
        size = scores.new_ones(kept.x.shape[:2]) if kept.size is None else kept.size
        weight = torch.ones_like(size) if kept.weight is None else kept.weight
        source = None if kept.source is None else kept.source.minimum(prefix + count[:, None] - 1)
        return replace(kept, size=size * real, weight=weight * real, source=source)


@torch.no_grad()
def sample(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Patches at evenly spread levels of the scores' distribution.

    Args:
        scores: (B, n), none below 0.
        most: number of levels.

    Returns:
        (B, most) int64, the picked patches in ascending order, each once, then the last of them again and again; and
        (B,) how many were picked.
    """
    ascending, order = scores.sort(dim=1, stable=True)
    share = (ascending / ascending.sum(1, keepdim=True)).cumsum(1)
    share = (share - share[:, :1]) / (share[:, -1:] - share[:, :1])
    lowest = share.masked_fill(share <= 0, 1).amin(1, keepdim=True)
    if most > 1:
        steps = torch.arange(most, device=scores.device, dtype=scores.dtype) / (most - 1)
    else:
        steps = scores.new_ones(1)
    levels = lowest + (1 - lowest) * steps
    nearest = (levels[:, :, None] - share[:, None, :]).abs().argmin(2)
    picked = torch.zeros_like(order).scatter(1, order.gather(1, nearest), 1)
    count = picked.sum(1)
    index = ranked(picked)[:, :most]
    last = index.gather(1, count[:, None] - 1)
    return torch.where(torch.arange(most, device=scores.device) < count[:, None], index, last), count

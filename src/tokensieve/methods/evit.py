"""EViT: keep the patches that the class token attends to, and fuse the others into one."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

from ..tokens import Tokens
from .base import Evidence, Here, Method, Place, register
from .schedule import Layers, blocks, check_layers, check_share, quarters


@register
@dataclass(frozen=True)
class EViT(Method):
    """Top patches by class attention, the rest in one fused token (Liang et al., ICLR 2022, section 3).

    The fused token is the sum of the others, each times the class token's attention to it, and counts as a patch from
    there on. Kept patches come in descending attention. The published models were trained with it.

    Args:
        keep: share of the patch tokens to keep each time, in (0, 1].
        layers: the blocks that act; None is after one, two and three quarters of them (3, 6 and 9 of 12).
        fuse: False drops the others instead.
    """

    keep: float
    layers: Layers = None
    fuse: bool = True

    name: ClassVar[str] = "evit"
    place: ClassVar[Place] = "inside"
    needs_class_token: ClassVar[bool] = True
    merges: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_share("evit", "keep", self.keep)
        object.__setattr__(self, "layers", check_layers("evit", self.layers))

    def left(self, here: Here) -> int:
        patches = here.tokens - here.prefix
        if here.block not in blocks(self.layers, here.depth, quarters(here.depth)):
            return here.tokens
        return here.prefix + min(patches, ceil(self.keep * patches) + self.fuse)

    def reduce(self, tokens: Tokens, left: int, evidence: Evidence) -> Tokens:
        attention = evidence.follow(evidence.class_attention(), tokens)[:, tokens.prefix :]
        attention, order = attention.sort(dim=1, descending=True, stable=True)
        kept = left - tokens.prefix - self.fuse
        if not self.fuse:
            return tokens.select(order[:, :kept])
        return tokens.fuse(order[:, :kept], order[:, kept:], attention[:, kept:])

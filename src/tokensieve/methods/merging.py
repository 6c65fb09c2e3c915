"""The base class of methods that merge `r` tokens away in each block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import AttentionEvidence, Method, Place, TokenSite
from .schedule import Layers, Schedule, at, layers_field, schedule_field


@dataclass(frozen=True)
class Merging(Method[AttentionEvidence]):
    """Merges `r` tokens away in each block of `layers`, at most half of the patch tokens; prefix tokens never merge."""

    r: Schedule = schedule_field()
    layers: Layers = layers_field()

    place: ClassVar[Place] = "inside"
    merges: ClassVar[bool] = True

    def left(self, site: TokenSite) -> int:
        r = at(self.r, self.layers, site.block, site.depth)
        return site.tokens - min(r, (site.tokens - site.prefix) // 2)

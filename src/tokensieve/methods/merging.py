"""What methods share that merge `r` tokens away in each block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Here, Method, Place
from .schedule import Layers, Schedule, at, check_layers, check_schedule


@dataclass(frozen=True)
class Merging(Method):
    """`r` tokens fewer after each block of `layers`, at most half of the patch tokens; prefix tokens take no part."""

    r: Schedule
    layers: Layers = None

    place: ClassVar[Place] = "inside"
    merges: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "r", check_schedule(self.name, "r", self.r))
        object.__setattr__(self, "layers", check_layers(self.name, self.layers))

    def left(self, here: Here) -> int:
        r = at(self.r, self.layers, here.block, here.depth)
        return here.tokens - min(r, (here.tokens - here.prefix) // 2)

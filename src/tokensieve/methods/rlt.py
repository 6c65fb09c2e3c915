"""Run-length tokenization (RLT): patches of a clip that repeat those before them are not read."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch

from .._frozen import replace
from .._recording import recording
from ..errors import RecipeError
from ..padding import compact
from ..tokens import Tokens
from .base import Here, MapEvidence, Method, Place, register


@register
@dataclass(frozen=True)
class RLT(Method[MapEvidence]):
    """Drop still patches, once, before block 0 (Choudhury et al., NeurIPS 2024, arXiv 2411.05222, section 3).

    A patch of a clip (a tubelet) whose mean absolute difference from the one before it at its place is below the
    threshold is not read; the first of each place always is. So still clips keep few patches and restless ones many:
    the clips of a batch are padded to the longest, with tokens no one reads. A graph that is compiled or exported has
    one length for all clips: there nothing is saved, and the answer is the same. The paper's encoding of how long a run
    is, which has to be trained, is left out.

    Args:
        threshold: 0 or more, in the units of the clips as the model reads them (normalised). 0 drops nothing.
    """

    threshold: float = 0.1

    name: ClassVar[str] = "rlt"
    place: ClassVar[Place] = "start"
    needs_significance: ClassVar[bool] = True
    pads: ClassVar[bool] = True
    knows_padding: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, int | float) or not self.threshold >= 0:
            raise RecipeError(f"rlt: threshold must be a number from 0 up, not {self.threshold!r}.")

    def map_settings(self) -> dict[str, Any]:
        return {"significance": "motion"}

    def left(self, here: Here) -> int:
        """All, where the clips decide."""
        return here.tokens

    def acts(self, here: Here) -> bool:
        return here.block == 0 and self.threshold > 0

    @property
    def varies(self) -> bool:
        return self.threshold > 0

    def reduce(self, tokens: Tokens, left: int, evidence: MapEvidence) -> Tokens:
        stays = evidence.significance >= self.threshold
        places = torch.arange(stays.shape[1], device=stays.device)
        stays = stays | (places < prod(tokens.grid[1:]))
        stays = torch.cat([stays.new_ones(stays.shape[0], tokens.prefix), stays], dim=1)
        if not recording():
            return compact(tokens, stays)
        lengths = stays.sum(1)
        moved = tokens.take(stays.to(torch.int8).argsort(dim=1, descending=True, stable=True))
        source = moved.source
        source = None if source is None else source.masked_fill(source >= lengths[:, None], -1)
        return replace(moved, source=source, lengths=lengths)

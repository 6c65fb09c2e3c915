"""Run-length tokenization (RLT): patches of a clip that repeat those before them are not read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch

from ..errors import RecipeError, UnsupportedHost
from ..padding import compact
from ..tokens import Tokens
from .base import BaseMethod, HostFacts, MapEvidence, Method, Place, TokenSite, register
from .papr import finite


@register
@dataclass(frozen=True)
class RLT(Method[MapEvidence]):
    """Drop still patches, once, before block 0 (Choudhury et al., NeurIPS 2024, arXiv 2411.05222, section 3).

    A patch of a clip (a tubelet) whose mean absolute difference from the one before it at its place is below the
    threshold is not read; the first of each place always is. So still clips keep few patches and restless ones many:
    the clips of a batch are padded to the longest, with tokens never read. A graph that is compiled or exported has
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

    def check(self, host: HostFacts, others: Sequence[BaseMethod]) -> None:
        super().check(host, others)
        if host.layout == "CHW":
            raise UnsupportedHost(
                f"{type(host.model).__name__} cannot take rlt: it drops what stays the same from frame to frame, and "
                "this model reads images."
            )

    def left(self, site: TokenSite) -> int:
        """All, where the clips decide."""
        return site.tokens

    def acts(self, site: TokenSite) -> bool:
        return site.block == 0 and self.threshold > 0

    @property
    def varies(self) -> bool:
        return self.threshold > 0

    def reduce(self, tokens: Tokens, left: int, evidence: MapEvidence) -> Tokens:
        stays = finite(evidence.significance) >= self.threshold
        indices = torch.arange(stays.shape[1], device=stays.device)
        stays = stays | (indices < prod(tokens.grid[1:]))
        stays = torch.cat([stays.new_ones(stays.shape[0], tokens.prefix), stays], dim=1)
        return compact(tokens, stays)

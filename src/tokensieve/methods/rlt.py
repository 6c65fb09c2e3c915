"""Run-length tokenization (RLT): drops patches of a clip that repeat the previous patch at their position."""

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
    """Drop static patches, once, before block 0 (Choudhury et al., NeurIPS 2024, arXiv 2411.05222, section 3).

    A patch of a clip (a tubelet) is dropped if its mean absolute difference to the previous one at its position is
    below the threshold; the first patch of each position is always kept. Static clips keep few patches, clips with much
    motion many: a batch is padded to its longest clip, and padding is masked. In a compiled or exported graph all clips
    have the same length: the output is the same, but nothing is saved. The paper's encoding of run lengths, which must
    be trained, is left out.

    Args:
        threshold: 0 or more, in the units of the normalised clips that the model reads. 0 drops nothing.
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
                f"{type(host.model).__name__} cannot take rlt: it drops patches that do not change between frames, and "
                "this model reads images."
            )

    def left(self, site: TokenSite) -> int:
        """All tokens, which is an upper limit: the number kept depends on the clip."""
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

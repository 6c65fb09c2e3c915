"""Readout: the last block computes only what the head reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .._frozen import replace
from ..tokens import Tokens
from .base import Evidence, Method, Place, TokenSite, register


@register
@dataclass(frozen=True)
class Readout(Method[Evidence]):
    """In the last block only prefix tokens are queries and go through projection and MLP; keys and values are of all.

    The output is the same but for rounding, at a sixth of the block's cost: what Patch Slimming's last mask (the class
    token alone) means, taken literally. Only where the head reads nothing else. Afterwards no patch token is left, so
    that `trace.restore()` has nothing to show and `forward_features` returns the prefix tokens.
    """

    name: ClassVar[str] = "readout"
    needs_prefix_head: ClassVar[str] = "so that the last block must compute them"
    place: ClassVar[Place] = "queries"
    knows_padding: ClassVar[bool] = True

    def left(self, site: TokenSite) -> int:
        return site.prefix if site.block == site.depth - 1 else site.tokens

    def reduce(self, tokens: Tokens, left: int, evidence: Evidence) -> Tokens:
        # images of unlike lengths have as many prefix tokens, and no padding among them
        return replace(tokens.take(tokens.places[:, :left]), lengths=None)

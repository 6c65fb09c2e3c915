"""Readout: the last block computes only the prefix tokens, for heads that read no other tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .._frozen import replace
from ..tokens import Tokens
from .base import Evidence, Method, Place, TokenSite, register


@register
@dataclass(frozen=True)
class Readout(Method[Evidence]):
    """Compute only the prefix tokens in the last block; keys and values are those of all tokens.

    The output is the same up to rounding, at a sixth of the block's cost. It corresponds to Patch Slimming's last mask,
    which keeps only the class token. It is only for heads that read no patch tokens. No patch token is left after the
    last block, so `trace.restore()` has none to restore, and `forward_features` returns the prefix tokens.
    """

    name: ClassVar[str] = "readout"
    needs_prefix_head: ClassVar[str] = "so the last block must compute them"
    place: ClassVar[Place] = "queries"
    knows_padding: ClassVar[bool] = True

    def left(self, site: TokenSite) -> int:
        return site.prefix if site.block == site.depth - 1 else site.tokens

    def reduce(self, tokens: Tokens, left: int, evidence: Evidence) -> Tokens:
        # all images have the same number of prefix tokens, so there is no padding left
        return replace(tokens.take(tokens.places[:, :left]), lengths=None)

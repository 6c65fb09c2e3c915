"""Token Merging (ToMe): averages the most similar pairs of tokens in every block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..errors import RecipeError, UnsupportedHost
from ..tokens import Tokens
from .base import AttentionEvidence, BaseMethod, HostFacts, register
from .matching import bipartite_match
from .merging import Merging


@register
@dataclass(frozen=True)
class ToMe(Merging):
    """Bipartite soft matching on the keys, between attention and MLP (Bolya et al., ICLR 2023, section 3).

    At most half of the patch tokens can be merged in one block; prefix tokens never are.

    Args:
        r: tokens merged away in each block. An integer; a pair (r, inflect) with inflect in [-1, 1] for a schedule
            that falls (-1) or rises (1) linearly around r; or a list with one number for each block, padded with 0.
        layers: the blocks that merge, as a slice (`6:12`) or by their indices (`(3, 6, 9)`); None means all.
        proportional: add log(size) to the attention logits of merged keys. Recommended for supervised weights; ToMe's
            authors turn it off for MAE weights that were not trained with it.
        window: for video, the largest distance in time, in steps of the grid, between two tokens that merge; 0 merges
            only within a step. Pairs further apart, the nearest first, merge only if `r` leaves no other. None: any.
    """

    proportional: bool = True
    window: int | None = None

    name: ClassVar[str] = "tome"

    def __post_init__(self) -> None:
        super().__post_init__()
        window = self.window
        if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 0):
            raise RecipeError(f"tome: window must be an integer number of steps from 0 up, or None, not {window!r}.")

    def check(self, host: HostFacts, others: Sequence[BaseMethod]) -> None:
        super().check(host, others)
        if self.window is not None and host.layout == "CHW":
            raise UnsupportedHost(
                f"{type(host.model).__name__} cannot take tome with window=: it is a window in time, and this model "
                "reads images."
            )

    def reduce(self, tokens: Tokens, left: int, evidence: AttentionEvidence) -> Tokens:
        keys, r = evidence.keys(tokens), tokens.x.shape[1] - left
        if self.window is None:
            match = bipartite_match(keys, r, tokens.prefix)
        else:
            match = bipartite_match(keys, r, tokens.prefix, moments=_moments(tokens), window=self.window)
        return tokens.merge(*match, weigh=self.proportional)


def _moments(tokens: Tokens) -> Tensor:
    """(B, N) int64: the time step of each token; the values for prefix tokens are meaningless."""
    positions = tokens.places - tokens.prefix
    if tokens.positions is not None:
        positions = F.pad(tokens.positions, (tokens.prefix, 0))
    return positions // prod(tokens.grid[1:])

"""Relative position bias: what attention adds for pairs of places, where tokens have been dropped, merged or moved."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tokens import Tokens


def gathered(bias: Tensor, tokens: Tokens, asking: Tensor | None) -> Tensor:
    """The bias (H, N, N) of the whole grid, prefix first, between the places of the tokens that ask, all where `asking`
    is None, and those of all tokens: (1 or B, H, M, N')."""
    if tokens.whole and asking is None:
        return bias[None]
    batch, count, _ = tokens.x.shape
    keys = torch.arange(count, device=bias.device).expand(batch, -1)
    if tokens.positions is not None:
        keys = torch.cat([keys[:, : tokens.prefix], tokens.positions + tokens.prefix], dim=1)
    queries = keys if asking is None else keys.gather(1, asking)
    return bias[:, queries[:, :, None], keys[:, None, :]].transpose(0, 1)

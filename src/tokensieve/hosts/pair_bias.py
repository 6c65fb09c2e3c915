"""Relative position bias: what attention adds for pairs of places, where tokens have been dropped, merged or moved."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tokens import Tokens


def gathered(bias: Tensor, tokens: Tokens, query_rows: Tensor | None) -> Tensor:
    """The bias (H, P, P) of the whole grid, prefix first -> (1 or B, H, M, N), between the places of the tokens
    `query_rows` (B, M), all where it is None, and those of all N tokens."""
    if tokens.whole and query_rows is None:
        return bias[None]
    batch, count, _ = tokens.x.shape
    keys = torch.arange(count, device=bias.device).expand(batch, -1)
    if tokens.positions is not None:
        keys = torch.cat([keys[:, : tokens.prefix], tokens.positions + tokens.prefix], dim=1)
    queries = keys if query_rows is None else keys.gather(1, query_rows)
    return bias[:, queries[:, :, None], keys[:, None, :]].transpose(0, 1)

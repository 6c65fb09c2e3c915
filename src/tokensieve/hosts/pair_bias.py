"""Relative position bias for pairs of tokens, after tokens have been dropped, merged or reordered."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tokens import Tokens


def gathered(bias: Tensor, tokens: Tokens, query_rows: Tensor | None) -> Tensor:
    """Select the bias of the remaining tokens from that of the whole grid.

    Args:
        bias: (H, P, P) between all positions, prefix first.
        tokens: the N remaining tokens.
        query_rows: (B, M) int64, the tokens whose queries are computed; None is all.

    Returns:
        (1 or B, H, M, N), between the positions of the queries and those of all N tokens.
    """
    if tokens.whole and query_rows is None:
        return bias[None]
    batch, count, _ = tokens.x.shape
    keys = torch.arange(count, device=bias.device).expand(batch, -1)
    if tokens.positions is not None:
        keys = torch.cat([keys[:, : tokens.prefix], tokens.positions + tokens.prefix], dim=1)
    queries = keys if query_rows is None else keys.gather(1, query_rows)
    return bias[:, queries[:, :, None], keys[:, None, :]].transpose(0, 1)

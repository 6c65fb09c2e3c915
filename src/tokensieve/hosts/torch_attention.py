"""torch's `nn.MultiheadAttention`, as used in the blocks of open_clip and torchvision. One matrix holds its projections
of queries, keys and values."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import BlockQKV
from ..tokens import rows


def why_closed(attn: Any) -> str | None:
    """The reason why this attention cannot be opened, or None."""
    if type(attn) is not nn.MultiheadAttention:
        return f"its attention {type(attn).__name__} is unknown here (known: torch's MultiheadAttention)"
    if attn.in_proj_weight is None or attn.bias_k is not None or attn.add_zero_attn or not attn.batch_first:
        return (
            "its attention MultiheadAttention is built in a way that is unknown here (known: one input projection, "
            "batch_first=True, neither add_bias_kv nor add_zero_attn)"
        )
    return None


def project(attn: Any, x: Tensor, query_rows: Tensor | None) -> BlockQKV:
    """Queries of the tokens `query_rows` (B, M) of x (B, N, d), None is all; keys and values of all tokens."""
    query_input, width = x if query_rows is None else rows(x, query_rows), attn.embed_dim
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    q = F.linear(query_input, weight[:width], None if bias is None else bias[:width])
    k, v = F.linear(x, weight[width:], None if bias is None else bias[width:]).chunk(2, dim=-1)
    q, k, v = (projected.unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for projected in (q, k, v))
    return BlockQKV(q, k, v, keys=k, dropout=attn.dropout if attn.training else 0.0)


def project_out(attn: Any, attended: Tensor) -> Tensor:
    """The output projection: (B, H, M, d_h) -> (B, M, d). As in torch, its weight is used without calling it."""
    return F.linear(attended.transpose(1, 2).flatten(2), attn.out_proj.weight, attn.out_proj.bias)

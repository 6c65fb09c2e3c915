"""Attention over sequences of different lengths without padding, by torch's CUDA kernel where it exists."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

Kernel = Callable[..., Any]
HALF = (torch.float16, torch.bfloat16)


@cache
def kernel() -> Kernel | None:
    """torch's `varlen_attn`, or None if this version of torch has none with the arguments used here."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = list(signature(varlen_attn).parameters)
    first = ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    return varlen_attn if known[:7] == first and "scale" in known else None


def runs(q: Tensor, k: Tensor) -> bool:
    """Whether the kernel takes these queries and keys (B, H, N, d_h): on CUDA, in half precision, of equal shape."""
    return q.is_cuda and q.dtype in HALF and q.shape == k.shape and kernel() is not None


def attend(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float | None, by: Kernel | None = None) -> Tensor:
    """Attention among the first `lengths` (B,) tokens of each image.

    Args:
        q, k, v: (B, H, N, d_h).
        lengths: int64.
        scale: factor on the logits; None is d_h ** -0.5.
        by: the kernel, with the arguments of torch's `varlen_attn`; None is that one.

    Returns:
        (B, H, N, d_h), zeros where padding is.
    """
    by = kernel() if by is None else by
    assert by is not None
    count = q.shape[2]
    real = torch.arange(count, device=q.device) < lengths[:, None]
    packed = (x.transpose(1, 2)[real] for x in (q, k, v))
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(lengths.max())
    out = by(*packed, ends, ends, longest, longest, scale=scale)
    attended = q.new_zeros(q.shape[0], count, *q.shape[1::2])
    attended[real] = out
    return attended.transpose(1, 2)

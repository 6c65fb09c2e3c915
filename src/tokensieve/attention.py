"""Queries, keys and values of a block, and attention scores computed without the full attention matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _varlen as varlen
from ._frozen import replace
from ._recording import recording


@dataclass(frozen=True)
class BlockQKV:
    """Queries, keys and values of one block: the input of its attention.

    B images, H heads, M queries (all N tokens, unless only some are selected), N keys, d_h channels a head.
    """

    q: Tensor
    """(B, H, M, d_h)"""
    k: Tensor
    """(B, H, N, d_h), as v."""
    v: Tensor
    keys: Tensor
    """(B, H, N, d_h) the keys after key norm and before rotary embedding; methods compare tokens by them."""
    gate: Tensor | None = None
    """(B, M, H d_h) factor on the attention's output, where the host has one."""
    dropout: float = 0.0
    """Dropout rate of the attention probabilities; zero except in training."""
    scale: float | None = None
    """Factor on the logits; None is d_h ** -0.5."""
    bias: Tensor | None = None
    """(1 or B, 1 or H, M, N) the host's attention bias, added to the logits."""
    weight: Tensor | None = None
    """(B, N) factor on the exponential of each key's logit. None: ones."""
    lengths: Tensor | None = None
    """(B,) int64: number of keys of each image; the rest is padding and is masked. None: no padding."""

    @property
    def mask(self) -> Tensor | None:
        """The sum of everything added to the logits, (B, 1 or H, 1 or M, N): bias, log weights and padding mask."""
        mask = self.bias
        if self.weight is not None:
            # The clamp keeps log(0) finite: -87, which half precision can hold.
            weight_logits = (
                self.weight.clamp(min=torch.finfo(torch.float32).tiny).log().to(self.q.dtype)[:, None, None, :]
            )
            mask = weight_logits if mask is None else mask + weight_logits
        if self.lengths is not None:
            count = self.k.shape[2]
            padding = (torch.arange(count, device=self.k.device) >= self.lengths[:, None])[:, None, None, :]
            batch = self.q.shape[0]  # not len(): exporters with a free batch size would fix it
            mask = self.q.new_zeros(batch, 1, 1, count) if mask is None else mask
            mask = mask.masked_fill(padding, -torch.inf)
        return mask

    def attend(self) -> Tensor:
        """Fused attention -> (B, H, M, d_h); computed without padding if a kernel for that exists."""
        plain = self.bias is None and self.weight is None and self.dropout == 0 and not recording()
        if self.lengths is not None and plain and varlen.runs(self.q, self.k):
            return varlen.attend(self.q, self.k, self.v, self.lengths, self.scale)
        return F.scaled_dot_product_attention(
            self.q, self.k, self.v, attn_mask=self.mask, dropout_p=self.dropout, scale=self.scale
        )

    def only_queries(self, rows: Tensor) -> BlockQKV:
        """The same keys and values with only the queries at `rows` (B, M')."""
        batch, heads, _, width = self.q.shape
        q = self.q.gather(2, rows[:, None, :, None].expand(batch, heads, -1, width))
        bias, gate = self.bias, self.gate
        if bias is not None and bias.shape[2] > 1:
            bias = bias.expand(batch, -1, -1, -1)
            bias = bias.gather(2, rows[:, None, :, None].expand(-1, bias.shape[1], -1, bias.shape[3]))
        if gate is not None:
            gate = gate.gather(1, rows[..., None].expand(-1, -1, gate.shape[2]))
        return replace(self, q=q, bias=bias, gate=gate)

    def of(self, images: Tensor, count: int) -> BlockQKV:
        """The part of the images with batch indices `images` (B',) int64, without padding if their lengths are equal.
        `count` is the number of queries per image, used where the queries are only a part of the tokens."""
        keys = self.keys_of(images)
        lengths = self.lengths[images] if keys is None and self.lengths is not None else None
        query_count = keys if self.q.shape[2] == self.k.shape[2] else count

        def cut(values: Tensor | None, *cuts: slice) -> Tensor | None:
            if values is None:
                return None
            values = values if len(values) == 1 < len(self.q) else values[images]
            return values[(slice(None), *cuts)]

        every, queries, keys_cut = slice(None), slice(query_count), slice(keys)
        bias = self.bias
        if bias is not None:
            bias = cut(bias, every, queries if bias.shape[2] > 1 else every, keys_cut)
        weight, gate = cut(self.weight, keys_cut), cut(self.gate, queries)
        q, (k, v, compared) = (
            self.q[images][:, :, queries],
            (x[images][:, :, keys_cut] for x in (self.k, self.v, self.keys)),
        )
        return replace(self, q=q, k=k, v=v, keys=compared, bias=bias, gate=gate, weight=weight, lengths=lengths)

    def keys_of(self, images: Tensor) -> int | None:
        """Number of keys of each of these images; None if it differs between them."""
        if self.lengths is None:
            return self.k.shape[2]
        counts = self.lengths[images].unique().tolist()
        return counts[0] if len(counts) == 1 else None

    def ensure_queries(self, rows: Tensor | None) -> BlockQKV:
        """Restrict the queries to those of `rows`, unless they are already; None keeps all."""
        return self if rows is None or self.q.shape[2] == rows.shape[1] else self.only_queries(rows)

    def query_probabilities(self, index: int = 0) -> Tensor:
        """Attention probabilities of query `index` alone, fp32 or more precise: (B, H, N). Query 0 is the class token,
        if any."""
        return self._probabilities(self.q[:, :, index : index + 1], slice(None), slice(index, index + 1))[:, :, 0]

    def head_probabilities(self, head: int) -> Tensor:
        """The attention matrix of one head, fp32 or more precise: (B, M, N). The full B x H x M x N is never held."""
        heads = slice(head, head + 1)
        return self._probabilities(self.q[:, heads], heads, slice(None))[:, 0]

    def received(self) -> Tensor:
        """Attention that each key receives in each head, summed over queries: (B, H, N). One head at a time, O(N^2)."""
        return torch.stack([self.head_probabilities(head).sum(1) for head in range(self.q.shape[1])], dim=1)

    def _probabilities(self, q: Tensor, heads: slice, queries: slice) -> Tensor:
        exact = torch.promote_types(q.dtype, torch.float32)
        scale = self.q.shape[-1] ** -0.5 if self.scale is None else self.scale
        with torch.autocast(q.device.type, enabled=False):
            logits = _logits(q.to(exact) * scale, self.k[:, heads].to(exact))
            mask = self.mask
            if mask is not None:
                mask = mask if mask.shape[1] == 1 else mask[:, heads]
                logits = logits + (mask if mask.shape[2] == 1 else mask[:, :, queries])
            return logits.softmax(-1)


def _logits(q: Tensor, k: Tensor) -> Tensor:
    """q k^T, (B, H, M, N). One query is multiplied head by head, without the copy of strided keys that `@` makes."""
    if q.shape[2] > 1 or recording():
        return q @ k.transpose(-2, -1)
    return torch.stack([a @ b.transpose(1, 2) for a, b in zip(q.unbind(1), k.unbind(1), strict=True)], dim=1)

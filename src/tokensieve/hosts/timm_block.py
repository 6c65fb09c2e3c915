"""timm's transformer blocks, split between attention and MLP.

Blocks of an older timm lack some parts (gates, key norms, grouped queries, half rotation): a part is used only if the
block has it.
"""

from __future__ import annotations

from typing import Any

import timm.layers
import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Attention, Block, ResPostBlock
from torch import Tensor, nn

from ..attention import BlockQKV
from ..tokens import Tokens, rows
from .base import HostBlock
from .checks import plain_linear, unknown_block

BLOCKS = (Block, ResPostBlock, EvaBlock, EvaBlockPostNorm)
ATTENTIONS = (Attention, EvaAttention, *([timm.layers.AttentionRope] if hasattr(timm.layers, "AttentionRope") else []))


class TimmBlock(HostBlock):
    """A block of timm's `VisionTransformer` or `Eva`. Types are matched exactly: a subclass may differ."""

    def __init__(self, block: Any, index: int) -> None:
        self.block = block
        self.bypassed = [block, *(module for name in ("attn", "attn.attn_drop") if (module := _inner(block, name)))]
        self.index = index
        self.rotary = type(block) in (EvaBlock, EvaBlockPostNorm)
        self.by_token = not self.rotary
        self.post_norm = type(block) in (ResPostBlock, EvaBlockPostNorm)
        if type(block) not in BLOCKS:
            self.closed = unknown_block(block, [cls.__name__ for cls in BLOCKS])
        elif type(block.attn) not in ATTENTIONS:
            self.closed = (
                f"its attention {type(block.attn).__name__} is unknown here "
                f"(known: {', '.join(cls.__name__ for cls in ATTENTIONS)})"
            )

    def __call__(self, tokens: Tokens) -> Tensor:
        if self.rotary:
            return self.block(tokens.x, rope=self._rope(tokens))
        return self.block(tokens.x)

    def qkv(self, tokens: Tokens, query_rows: Tensor | None = None) -> BlockQKV:
        block, attn = self.block, self.block.attn
        x = tokens.x if self.post_norm else block.norm1(tokens.x)
        query_input = x if query_rows is None else rows(x, query_rows)
        q, k, v = _project(attn, x) if query_rows is None else _project_queries(attn, x, query_rows)
        q, k = _through(attn, "q_norm", q), _through(attn, "k_norm", k)
        keys = k
        rope = self._rope(tokens)
        if rope is not None:
            k = _rotate(attn, k, rope).type_as(v)
            query_rope = rope if query_rows is None else _table_rows(rope, query_rows, attn.num_prefix_tokens)
            q = _rotate(attn, q, query_rope).type_as(v)
        groups = getattr(attn, "num_kv_groups", 1)
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        gate = None if getattr(attn, "gate", None) is None else attn.gate(query_input).sigmoid()
        return BlockQKV(q, k, v, keys, gate, attn.attn_drop.p if attn.training else 0.0)

    def attention_out(self, attended: Tensor, attention: BlockQKV, x: Tensor) -> Tensor:
        block, attn = self.block, self.block.attn
        out = _through(attn, "norm", attended.transpose(1, 2).flatten(2))
        if attention.gate is not None:
            out = out * attention.gate
        out = attn.proj_drop(attn.proj(out))
        out = block.norm1(out) if self.post_norm else self._scale(out, "ls1", "gamma_1")
        return x + block.drop_path1(out)

    def mlp(self, x: Tensor) -> Tensor:
        block = self.block
        if self.post_norm:
            return x + block.drop_path2(block.norm2(block.mlp(x)))
        return x + block.drop_path2(self._scale(block.mlp(block.norm2(x)), "ls2", "gamma_2"))

    def _scale(self, x: Tensor, module: str, parameter: str) -> Tensor:
        """LayerScale: a sub-module in `Block`, a parameter or None in `EvaBlock`."""
        if not self.rotary:
            return getattr(self.block, module)(x)
        gamma = getattr(self.block, parameter)
        return x if gamma is None else gamma * x

    def _rope(self, tokens: Tokens) -> Tensor | None:
        """The rows of the rotary table for the tokens' positions, (B, 1 or H, n, D), or the whole table."""
        table = tokens.table
        if table is None:
            return None
        if table.ndim == 4:  # mixed rotary embedding: a table for each block, with a head axis
            table = table[self.index]
        if tokens.positions is None:
            return table
        if table.ndim == 2:
            return table[tokens.positions].unsqueeze(1)
        return table[:, tokens.positions].transpose(0, 1)


def _through(attn: Any, name: str, x: Tensor) -> Tensor:
    """x passed through a submodule of the attention; unchanged if the attention has no such submodule."""
    module = getattr(attn, name, None)
    return x if module is None else module(x)


def _inner(block: nn.Module, path: str) -> nn.Module | None:
    """The submodule at this path, or None."""
    try:
        return block.get_submodule(path)
    except AttributeError:
        return None


def _project(attn: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values, each (B, H, N, d_h), from fused or separate projections."""
    if getattr(attn, "q_proj", None) is not None:
        return _heads(attn, attn.q_proj(x), attn.k_proj(x), attn.v_proj(x))
    if getattr(attn, "q_bias", None) is None:
        fused = attn.qkv(x)
    else:
        bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
        fused = attn.qkv(x) + bias if attn.qkv_bias_separate else F.linear(x, attn.qkv.weight, bias)
    return fused.unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def _heads(attn: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """Split heads: each (B, N, d) -> (B, H, N, d_h). With grouped queries, keys and values have fewer heads of the same
    size."""
    size = q.shape[2] // attn.num_heads
    return tuple(projected.unflatten(2, (-1, size)).transpose(1, 2) for projected in (q, k, v))


def _project_queries(attn: Any, x: Tensor, query_rows: Tensor) -> tuple[Tensor, ...]:
    """Queries of the tokens `query_rows` (B, M) only, keys and values of all tokens: each (B, H, ., d_h)."""
    if getattr(attn, "q_proj", None) is not None:
        q, k, v = attn.q_proj(rows(x, query_rows)), attn.k_proj(x), attn.v_proj(x)
    elif plain_linear(attn.qkv):
        # One matrix holds the three projections: use its rows separately.
        weight: Tensor = attn.qkv.weight
        bias: Tensor | None = attn.qkv.bias
        if getattr(attn, "q_bias", None) is not None:
            qkv_bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
            bias = qkv_bias if bias is None else bias + qkv_bias
        width = weight.shape[0] // 3
        q = F.linear(rows(x, query_rows), weight[:width], None if bias is None else bias[:width])
        k, v = F.linear(x, weight[width:], None if bias is None else bias[width:]).chunk(2, dim=-1)
    else:  # a layer that replaces `qkv`, such as an adapter, must be called
        q, k, v = _project(attn, x)
        return q.gather(2, query_rows[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3])), k, v
    return _heads(attn, q, k, v)


def _table_rows(rope: Tensor, query_rows: Tensor, prefix: int) -> Tensor:
    """The rows of a rotary table for the patch tokens among `query_rows` (B, M), which has the prefix first."""
    patches = query_rows[:, prefix:] - prefix
    if rope.ndim == 2:  # (P, D)
        return rope[patches].unsqueeze(1)
    if rope.ndim == 3:  # (H, P, D)
        return rope[:, patches].transpose(0, 1)
    index = patches[:, None, :, None].expand(-1, rope.shape[1], -1, rope.shape[3])
    return rope.expand(patches.shape[0], -1, -1, -1).gather(2, index)


def _rotate(attn: Any, heads: Tensor, rope: Tensor) -> Tensor:
    """Rotary embedding on all but the prefix tokens."""
    prefix = attn.num_prefix_tokens
    layout = {"half": True} if getattr(attn, "rotate_half", False) else {}
    rotated = apply_rot_embed_cat(heads[:, :, prefix:], rope, **layout)
    return torch.cat([heads[:, :, :prefix], rotated], dim=2)

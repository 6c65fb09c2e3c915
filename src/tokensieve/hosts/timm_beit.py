"""timm's `Beit`: BEiT and BEiT v2, whose attention adds a relative position bias."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.beit import Attention as BeitAttention
from timm.models.beit import Beit, Block
from torch import Tensor

from .._frozen import replace
from ..attention import BlockQKV
from ..errors import UnsupportedHost
from ..tokens import Tokens, rows
from .base import Host, HostBlock
from .checks import check_images, plain_linear, plain_patch
from .pair_bias import gathered
from .pooling import weighed
from .registry import register_host


@register_host(Beit)
class TimmBeit(Host):
    """`Beit` with a relative position bias for each block, one shared by all blocks, or none.

    A patch keeps the bias of its position; a merged token has that of the token it was merged into.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.blocks = blocks = [BeitBlock(block, model.rel_pos_bias) for block in model.blocks]
        self.width, self.prefix, self.class_token = model.embed_dim, model.num_prefix_tokens, True
        self.reads_prefix = model.global_pool == "token"
        for block in self.blocks:
            block.checkpoints = model.grad_checkpointing
        if any(block.biased for block in blocks):
            self.cannot_drop_prefix = "its blocks add a bias to pairs of tokens, the class token among them"

    @property
    def patch(self) -> Sequence[int] | None:
        return plain_patch(self.model.patch_embed.proj)

    def embed(self, images: Tensor) -> Tokens:
        model = self.model
        x = model.patch_embed(check_images(model, images))
        x = torch.cat([model.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        if model.pos_embed is not None:
            x = x + model.pos_embed
        x = model.pos_drop(x)
        grid = tuple(model.patch_embed.grid_size)
        if x.shape[1] != prod(grid) + self.prefix:
            raise UnsupportedHost(
                f"Beit embeds {prod(grid)} patches as {x.shape[1]} tokens, so tokens cannot be assigned to patches."
            )
        return Tokens(x, self.prefix, grid)

    def features(self, tokens: Tokens) -> Tokens:
        return replace(tokens, x=self.model.norm(tokens.x))

    def head(self, tokens: Tokens) -> Tensor:
        model = self.model
        return model.forward_head((weighed(tokens) if model.global_pool == "avg" else tokens).x)


class BeitBlock(HostBlock):
    """A block of timm's `Beit`. Types are matched exactly, since a subclass may compute something else."""

    def __init__(self, block: Any, shared: Any) -> None:
        self.block, self.shared = block, shared
        attention = getattr(block, "attn", None)
        # Called as a whole, a block adds the bias of the whole grid, so it cannot take fewer tokens: it must be opened.
        if type(block) is not Block or type(attention) is not BeitAttention:
            raise UnsupportedHost(
                f"Beit holds a block {type(block).__name__} with attention {type(attention).__name__}; only timm's own "
                f"{Block.__name__} with {BeitAttention.__name__} can be sieved."
            )

        self.bypassed = (block, block.attn, block.attn.attn_drop)

    def __call__(self, tokens: Tokens) -> Tensor:
        if not self.biased or tokens.whole:
            return self.block(tokens.x, shared_rel_pos_bias=None if self.shared is None else self.shared())
        # The host's own attention can only add the bias of the whole grid, so the block runs in parts.
        attention = self.qkv(tokens)
        return self.rest(attention.attend(), attention, tokens.x)

    def qkv(self, tokens: Tokens, query_rows: Tensor | None = None) -> BlockQKV:
        attn = self.block.attn
        q, k, v = _project(attn, self.block.norm1(tokens.x), query_rows)
        return BlockQKV(
            q, k, v, keys=k, dropout=attn.attn_drop.p if attn.training else 0.0, bias=self._bias(tokens, query_rows)
        )

    def attention_out(self, attended: Tensor, attention: BlockQKV, x: Tensor) -> Tensor:
        block, attn = self.block, self.block.attn
        out = attn.proj_drop(attn.proj(attended.transpose(1, 2).flatten(2)))
        return x + block.drop_path1(out if block.gamma_1 is None else block.gamma_1 * out)

    def mlp(self, x: Tensor) -> Tensor:
        block = self.block
        out = block.mlp(block.norm2(x))
        return x + block.drop_path2(out if block.gamma_2 is None else block.gamma_2 * out)

    @property
    def biased(self) -> bool:
        return self.shared is not None or self.block.attn.relative_position_bias_table is not None

    def _bias(self, tokens: Tokens, query_rows: Tensor | None) -> Tensor | None:
        """The bias between the positions of the queries and those of all tokens: (1 or B, H, M, N)."""
        if not self.biased:
            return None
        has_table = self.block.attn.relative_position_bias_table is not None
        bias = self.block.attn._get_rel_pos_bias()[0] if has_table else self.shared()
        if has_table and self.shared is not None:
            bias = bias + self.shared()
        return gathered(bias, tokens, query_rows)


def _project(attn: Any, x: Tensor, query_rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the tokens `query_rows` (B, M), None is all; keys and values of all tokens: each (B, H, ., d_h)."""
    bias = None if attn.q_bias is None else torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
    plain = plain_linear(attn.qkv)
    if bias is not None and not attn.qkv_bias_separate and query_rows is None:
        parts = F.linear(x, attn.qkv.weight, bias).chunk(3, dim=-1)
    elif query_rows is None or not plain:  # a layer that replaces `qkv`, such as an adapter, must be called
        qkv = attn.qkv(x)
        parts = (qkv if bias is None else qkv + bias).chunk(3, dim=-1)
        if query_rows is not None:
            parts = (rows(parts[0], query_rows), *parts[1:])
    else:
        first = attn.qkv.weight.shape[0] // 3
        if attn.qkv.bias is not None:
            bias = attn.qkv.bias if bias is None else bias + attn.qkv.bias
        q = F.linear(rows(x, query_rows), attn.qkv.weight[:first], None if bias is None else bias[:first])
        k, v = F.linear(x, attn.qkv.weight[first:], None if bias is None else bias[first:]).chunk(2, dim=-1)
        parts = (q, k, v)
    q, k, v = (part.unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for part in parts)
    return q, k, v

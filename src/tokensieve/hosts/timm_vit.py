"""timm's plain vision transformers: `VisionTransformer` (class, distillation, register tokens or none) and `Eva`."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from math import prod
from typing import Any

import torch.nn.functional as F
from timm.layers import AttentionPoolLatent, PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .._frozen import replace
from ..errors import UnsupportedHost
from ..tokens import Tokens
from .base import Host
from .checks import check_images, plain_patch
from .registry import register_host
from .timm_block import TimmBlock


@register_host(VisionTransformer, VisionTransformerDistilled)
class TimmViT(Host):
    """`VisionTransformer` and `VisionTransformerDistilled`; `TimmEva` differs only in the embedding."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.blocks = [TimmBlock(block, index) for index, block in enumerate(model.blocks)]
        self.width, self.prefix = model.embed_dim, model.num_prefix_tokens
        self.class_token = getattr(model, "cls_token", None) is not None
        distilled = type(model) is VisionTransformerDistilled
        self.pooler = getattr(model, "attn_pool", None)  # an older Eva has no such attribute
        self.reads_prefix = self.pooler is None and (distilled or model.global_pool == "token")
        for block in self.blocks:
            block.checkpoints = model.grad_checkpointing
        # timm's other pooling modules take no mask, by which sizes could be passed to them.
        if self.pooler is not None and type(self.pooler) is not AttentionPoolLatent:
            self.cannot_merge = f"its pooling {type(self.pooler).__name__} cannot weigh merged tokens by size"

    @property
    def bypassed(self) -> Sequence[nn.Module]:
        return (self.model, self.model.blocks)

    @property
    def patch(self) -> Sequence[int] | None:
        return plain_patch(self.model.patch_embed.proj) if type(self.model.patch_embed) is PatchEmbed else None

    def embed(self, images: Tensor) -> Tokens:
        model = self.model
        x = model.patch_embed(check_images(model, images))
        grid = tuple(x.shape[1:3]) if x.ndim == 4 else tuple(model.patch_embed.grid_size)
        x, table = self._positions(x)
        x = model.norm_pre(x) if hasattr(model, "norm_pre") else x
        if x.shape[1] != prod(grid) + self.prefix:
            raise UnsupportedHost(
                f"{type(model).__name__} drops patches at random in training (patch_drop_rate), so tokens cannot be "
                "assigned to patches: build it with patch_drop_rate=0."
            )
        return Tokens(x, self.prefix, grid, table=table)

    def _positions(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Add prefix tokens and position embedding: the tokens and, for rotary hosts, the table over the grid."""
        return self.model.patch_drop(self.model._pos_embed(x)), None

    def features(self, tokens: Tokens) -> Tokens:
        return replace(tokens, x=self.model.norm(tokens.x))

    def head(self, tokens: Tokens) -> Tensor:
        model = self.model
        if tokens.counted is None or type(model) is VisionTransformerDistilled or model.global_pool in ("", "token"):
            return model.forward_head(tokens.x)
        return model.head(model.head_drop(model.fc_norm(self._pool(tokens))))

    def _pool(self, tokens: Tokens) -> Tensor:
        """The host's pooling, in which merged tokens count as many times as their patches: (B, N, d) -> (B, d)."""
        model, x, size = self.model, tokens.x, tokens.counted
        assert size is not None
        # Without this attribute (older timm), attention pooling reads all tokens and other pooling only patch tokens.
        with_prefix = getattr(model, "pool_include_prefix", self.pooler is not None)
        first = 0 if with_prefix else self.prefix
        x, size = x[:, first:], size[:, first:]
        if self.pooler is not None:
            return _attend_weighed(self.pooler, x, size.log().to(x.dtype)[:, None, None, :])
        share = (size / size.sum(1, keepdim=True)).to(x.dtype)
        average = (x * share[..., None]).sum(1)
        if model.global_pool == "avg":
            return average
        largest = x.masked_fill((size == 0)[..., None], float("-inf")).amax(1)  # size 0 is padding
        return largest if model.global_pool == "max" else 0.5 * (largest + average)


@register_host(Eva)
class TimmEva(TimmViT):
    """`Eva` (EVA-02, DINOv3 and others) with absolute, rotary or mixed rotary position embedding."""

    def _positions(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.model._pos_embed(x)


def _attend_weighed(pooler: Any, x: Tensor, mask: Tensor) -> Tensor:
    """timm's `AttentionPoolLatent` with a mask added to its logits: x (B, N, d), mask (B, 1, 1, N) -> (B, d)."""
    if "attn_mask" in signature(pooler.forward).parameters:
        return pooler(x, attn_mask=mask)
    # In an older timm it takes no mask: compute here what all those versions compute.
    if pooler.pos_embed is not None:
        x = x + pooler.pos_embed.to(x.dtype)
    heads = pooler.num_heads
    q = pooler.q(pooler.latent.expand(x.shape[0], -1, -1)).unflatten(2, (heads, -1)).transpose(1, 2)
    k, v = pooler.kv(x).unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(pooler.q_norm(q), pooler.k_norm(k), v, attn_mask=mask)
    x = pooler.proj_drop(pooler.proj(attended.transpose(1, 2).flatten(2)))
    x = x + pooler.mlp(pooler.norm(x))
    return x.mean(1) if pooler.pool == "avg" else x[:, 0] if pooler.pool == "token" else x

"""open_clip's own vision tower, `open_clip.transformer.VisionTransformer`. This file does not import open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor, nn

from .._frozen import replace
from ..attention import BlockQKV
from ..errors import UnsupportedHost
from ..tokens import Tokens
from .base import Host, HostBlock
from .checks import check_images, check_size, plain_patch, unknown_block
from .pooling import key_bias, weighed
from .registry import register_host
from .torch_attention import project, project_out, why_closed

MODEL = ("open_clip.transformer", "VisionTransformer")
"""Module and name of the class."""


@register_host(".".join(MODEL))
class OpenClipViT(Host):
    """The vision tower, `CLIP.visual`, with pooling by class token, average or attention, or without pooling."""

    def __init__(self, model: Any) -> None:
        self.model = model
        transformer = model.transformer
        if not transformer.batch_first:
            raise UnsupportedHost("VisionTransformer runs with tokens first: build it with batch_first=True.")
        self.blocks = [OpenClipBlock(block) for block in transformer.resblocks]
        for block in self.blocks:
            block.checkpoints = transformer.grad_checkpointing
        self.width, self.prefix, self.class_token = transformer.width, 1, True
        self.reads_prefix = model.attn_pool is None and model.pool_type == "tok" and not model.output_tokens
        self.poolers = [pool for pool in (model.attn_pool, getattr(model, "attn_pool_contrastive", None)) if pool]
        for pool in self.poolers:
            if not _of_open_clip(pool, "AttentionalPooler") or type(pool.attn) is not nn.MultiheadAttention:
                self.cannot_merge = f"its pooling {type(pool).__name__} cannot weigh merged tokens by size"

    @property
    def bypassed(self) -> Sequence[nn.Module]:
        return (self.model, self.model.transformer)

    @property
    def patch(self) -> Sequence[int] | None:
        return plain_patch(self.model.conv1)

    def embed(self, images: Tensor) -> Tokens:
        model = self.model
        x = model._embeds(check_size(model, check_images(model, images), model.image_size))
        if x.shape[1] != prod(model.grid_size) + self.prefix:
            raise UnsupportedHost(
                "VisionTransformer drops patches at random in training (patch_dropout), so tokens cannot be assigned "
                "to patches: build it with patch_dropout=0."
            )
        return Tokens(x, self.prefix, tuple(model.grid_size))

    def features(self, tokens: Tokens) -> Tokens:
        # The norm comes before the pooling if there are two attention poolers, after it if there is one.
        norm_first = len(self.poolers) == 2 if self.poolers else not self.model.final_ln_after_pool
        return replace(tokens, x=self.model.ln_post(tokens.x)) if norm_first else tokens

    def head(self, tokens: Tokens) -> Any:
        """The host's own output: the image embedding (B, d); with `output_tokens` a pair, the embedding and tokens."""
        model = self.model
        if len(self.poolers) == 2:
            output_tokens = _attend(model.attn_pool, tokens)
            parallel = model.attn_pool_type == "parallel"
            contrastive = model.attn_pool_contrastive
            pooled = _attend(contrastive, tokens) if parallel else contrastive(output_tokens)
        elif self.poolers:
            pooled, output_tokens = model._global_pool(model.ln_post(_attend(model.attn_pool, tokens)))
        else:
            pooled, output_tokens = model._global_pool(tokens.x)
            if model.pool_type == "avg":
                pooled, _ = model._global_pool(weighed(tokens).x)
            if model.final_ln_after_pool:
                pooled = model.ln_post(pooled)
        if model.proj is not None:
            pooled = pooled @ model.proj
        return (pooled, output_tokens) if model.output_tokens else pooled


class OpenClipBlock(HostBlock):
    """A `ResidualAttentionBlock` with torch's `MultiheadAttention`, which has its projections in one matrix."""

    by_token = True

    def __init__(self, block: Any) -> None:
        self.block, self.bypassed = block, (block, block.attn)
        if not _of_open_clip(block, "ResidualAttentionBlock"):
            self.closed = unknown_block(block, ["ResidualAttentionBlock"])
        else:
            self.closed = why_closed(block.attn)

    def __call__(self, tokens: Tokens) -> Tensor:
        return self.block(tokens.x, attn_mask=None)

    def qkv(self, tokens: Tokens, query_rows: Tensor | None = None) -> BlockQKV:
        return project(self.block.attn, self.block.ln_1(tokens.x), query_rows)

    def attention_out(self, attended: Tensor, attention: BlockQKV, x: Tensor) -> Tensor:
        return x + self.block.ls_1(project_out(self.block.attn, attended))

    def mlp(self, x: Tensor) -> Tensor:
        return x + self.block.ls_2(self.block.mlp(self.block.ln_2(x)))


def _of_open_clip(module: nn.Module, name: str) -> bool:
    return (type(module).__module__, type(module).__name__) == (MODEL[0], name)


def _attend(pool: Any, tokens: Tokens) -> Tensor:
    """open_clip's attention pooling, with log(size) added to the logits of its keys: (B, N, d) -> (B, M, d')."""
    if tokens.counted is None:
        return pool(tokens.x)
    x = pool.ln_k(tokens.x)
    query = pool.ln_q(pool.query).unsqueeze(0).expand(x.shape[0], -1, -1)
    return pool.attn(query, x, x, key_padding_mask=key_bias(tokens), need_weights=False)[0]

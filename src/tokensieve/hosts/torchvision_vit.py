"""torchvision's `VisionTransformer`: the vit_* models, with SWAG weights too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import Encoder, EncoderBlock, VisionTransformer

from .._frozen import replace
from ..attention import BlockQKV
from ..errors import UnsupportedHost
from ..tokens import Tokens
from .base import Host, HostBlock
from .checks import check_images, check_size, plain_patch, unknown_block
from .registry import register_host
from .torch_attention import project, project_out, why_closed


@register_host(VisionTransformer)
class TorchvisionViT(Host):
    """torchvision's ViT: a class token, learned positions, one image size; the head reads only the class token."""

    prefix, class_token, reads_prefix = 1, True, True

    def __init__(self, model: Any) -> None:
        if type(model.encoder) is not Encoder:
            raise UnsupportedHost(
                f"VisionTransformer holds an encoder {type(model.encoder).__name__}, for which no opener is written."
            )
        self.model, self.width = model, model.hidden_dim
        self.blocks = [TorchvisionBlock(block) for block in model.encoder.layers]

    @property
    def bypassed(self) -> Sequence[nn.Module]:
        return (self.model, self.model.encoder, self.model.encoder.layers)

    @property
    def patch(self) -> Sequence[int] | None:
        return plain_patch(self.model.conv_proj)

    def embed(self, images: Tensor) -> Tokens:
        model, side = self.model, self.model.image_size
        x = model._process_input(check_size(model, check_images(model, images), (side, side)))
        x = torch.cat([model.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = model.encoder.dropout(x + model.encoder.pos_embedding)
        return Tokens(x, self.prefix, (side // model.patch_size, side // model.patch_size))

    def features(self, tokens: Tokens) -> Tokens:
        return replace(tokens, x=self.model.encoder.ln(tokens.x))

    def head(self, tokens: Tokens) -> Tensor:
        return self.model.heads(tokens.x[:, 0])


class TorchvisionBlock(HostBlock):
    """An `EncoderBlock`. Types are matched exactly, since a subclass may compute something else."""

    by_token = True

    def __init__(self, block: Any) -> None:
        self.block = block
        if type(block) is not EncoderBlock:
            self.bypassed = (block,)
            self.closed = unknown_block(block, [EncoderBlock.__name__])
        else:
            self.bypassed, self.closed = (block, block.self_attention), why_closed(block.self_attention)

    def __call__(self, tokens: Tokens) -> Tensor:
        return self.block(tokens.x)

    def qkv(self, tokens: Tokens, query_rows: Tensor | None = None) -> BlockQKV:
        return project(self.block.self_attention, self.block.ln_1(tokens.x), query_rows)

    def attention_out(self, attended: Tensor, attention: BlockQKV, x: Tensor) -> Tensor:
        return x + self.block.dropout(project_out(self.block.self_attention, attended))

    def mlp(self, x: Tensor) -> Tensor:
        return x + self.block.mlp(self.block.ln_2(x))

"""timm's `SwinTransformer` and `SwinTransformerV2`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block
from torch import Tensor, nn

from ..errors import UnsupportedHost
from .checks import check_images, plain_patch
from .registry import register_host
from .staged import PixelBlock, Stage, StagedHost, checkpointed


class SwinPixels(PixelBlock):
    """A Swin block: attention in (shifted) windows, then norm and MLP on each pixel."""

    def spatial(self, x: Tensor) -> tuple[Tensor, Tensor]:
        block = self.block
        x = x + block.drop_path1(block._attn(block.norm1(x)))
        return x, x

    def pointwise(self, y: Tensor) -> Tensor:
        return self.block.drop_path2(self.block.mlp(self.block.norm2(y)))


class SwinV2Pixels(SwinPixels):
    """A Swin V2 block: as `SwinPixels`, but with the norms after attention and MLP."""

    def spatial(self, x: Tensor) -> tuple[Tensor, Tensor]:
        block = self.block
        x = x + block.drop_path1(block.norm1(block._attn(x)))
        return x, x

    def pointwise(self, y: Tensor) -> Tensor:
        return self.block.drop_path2(self.block.norm2(self.block.mlp(y)))


BLOCKS: dict[type, type[PixelBlock]] = {SwinTransformerBlock: SwinPixels, SwinTransformerV2Block: SwinV2Pixels}


def swin_stages(model: nn.Module, stages: Iterable[Any]) -> list[Stage]:
    """Open stages of timm's Swin or Swin-V2; `model`, which may be a wrapper, is named in errors."""
    stages = list(stages)
    for block in (block for stage in stages for block in stage.blocks):
        if type(block) not in BLOCKS:
            raise UnsupportedHost(f"{type(model).__name__} cannot be sieved: its block is {type(block).__name__}.")
    opened = [Stage(stage.downsample, [BLOCKS[type(block)](block) for block in stage.blocks]) for stage in stages]
    return checkpointed(opened, [stage.grad_checkpointing for stage in stages])


@register_host(SwinTransformer, SwinTransformerV2)
class TimmSwin(StagedHost):
    """timm's Swin and Swin-V2: patch embedding, stages, norm and head."""

    family = "Swin"
    background = "keep"
    channels_first = False

    def __init__(self, model: Any) -> None:
        self.model = model
        self.widths = [info["num_chs"] for info in model.feature_info]
        self.stages = swin_stages(model, model.layers)

    @property
    def bypassed(self) -> Sequence[nn.Module]:
        return (self.model, self.model.layers, *self.model.layers, *(stage.blocks for stage in self.model.layers))

    @property
    def patch(self) -> Sequence[int] | None:
        return plain_patch(self.model.patch_embed.proj)

    def embed(self, images: Tensor) -> Tensor:
        return self.model.patch_embed(check_images(self.model, images))

    def features(self, x: Tensor) -> Tensor:
        return self.model.norm(x)

    def answer(self, maps: Sequence[Tensor]) -> Tensor:
        return self.model.forward_head(self.features(maps[-1]))

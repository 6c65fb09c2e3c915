"""timm's `ConvNeXt`, its second version with response normalisation too."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import Tensor, nn

from ..errors import UnsupportedHost
from .checks import check_images, no_checkpointing
from .staged import PixelBlock, Stage, StagedHost


class ConvNeXtPixels(PixelBlock):
    """A depth-wise convolution, then norm, MLP and scale on each pixel.

    Global response normalisation, which takes norms over the whole map, takes them over the pixels that are there.
    """

    def around(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.permute(0, 2, 3, 1), self.block.conv_dw(x).permute(0, 2, 3, 1)

    def pixel(self, y: Tensor) -> Tensor:
        block = self.block
        if block.use_conv_mlp:
            y = block.mlp(block.norm(y.transpose(1, 2)[..., None]))[..., 0].transpose(1, 2)
        else:
            y = block.mlp(block.norm(y)[:, None])[:, 0]
        return block.drop_path(y if block.gamma is None else y * block.gamma)


class TimmConvNeXt(StagedHost):
    """Stem, stages and head as timm has them."""

    model_class = ConvNeXt
    family = "ConvNeXt"
    background = "zero"
    channels_first = True

    def __init__(self, model: Any) -> None:
        self.model = model
        blocks = [block for stage in model.stages for block in stage.blocks]
        for block in blocks:
            if type(block) is not ConvNeXtBlock:
                raise UnsupportedHost(f"{type(model).__name__} cannot be sieved: its block is {type(block).__name__}.")
            if not isinstance(block.shortcut, nn.Identity):
                raise UnsupportedHost(f"{type(model).__name__} cannot be sieved: a block changes the size of its map.")
        no_checkpointing(model, *(stage.grad_checkpointing for stage in model.stages))
        self.widths = [info["num_chs"] for info in model.feature_info]
        self.stages = [
            Stage(stage.downsample, [ConvNeXtPixels(block) for block in stage.blocks]) for stage in model.stages
        ]

    def embed(self, images: Tensor) -> Tensor:
        return self.model.stem(check_images(self.model, images))

    def lay_out(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    def features(self, x: Tensor) -> Tensor:
        return self.model.norm_pre(x)

    def head(self, x: Tensor) -> Tensor:
        return self.model.forward_head(x)

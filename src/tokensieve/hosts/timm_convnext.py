"""timm's `ConvNeXt`, versions 1 and 2 (with global response normalisation)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from timm.layers import GlobalResponseNormMlp
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import Tensor, nn

from ..errors import UnsupportedHost
from .checks import check_images, plain_patch
from .registry import register_host
from .staged import PixelBlock, Stage, StagedHost, checkpointed


class ConvNeXtPixels(PixelBlock):
    """A ConvNeXt block: depth-wise convolution, then norm, MLP and scale on each pixel.

    Global response normalisation, which takes norms over the whole map, takes them over the kept pixels only.
    """

    leaves_zeros = True

    def __init__(self, block: Any) -> None:
        super().__init__(block)
        self.pixelwise, self.residual_module = not isinstance(block.mlp, GlobalResponseNormMlp), block.conv_dw

    def spatial(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.permute(0, 2, 3, 1), self.block.conv_dw(x).permute(0, 2, 3, 1)

    def pointwise(self, y: Tensor) -> Tensor:
        block = self.block
        if block.use_conv_mlp:
            # (B, C, 1, K) of these strides counts as channels last; (B, C, K, 1) does not, and would be copied
            y = block.mlp(block.norm(y.transpose(1, 2)[:, :, None]))[:, :, 0].transpose(1, 2)
        else:
            y = block.mlp(block.norm(y)[:, None])[:, 0]
        return block.drop_path(y if block.gamma is None else y * block.gamma)


def convnext_stages(model: nn.Module, stages: Iterable[Any]) -> list[Stage]:
    """Open stages of timm's ConvNeXt; `model`, which may be a wrapper, is named in errors."""
    stages, name = list(stages), type(model).__name__
    for block in (block for stage in stages for block in stage.blocks):
        if type(block) is not ConvNeXtBlock:
            raise UnsupportedHost(f"{name} cannot be sieved: its block is {type(block).__name__}.")
        if not isinstance(block.shortcut, nn.Identity):
            raise UnsupportedHost(f"{name} cannot be sieved: a block changes the size of its map.")
    opened = [Stage(stage.downsample, [ConvNeXtPixels(block) for block in stage.blocks]) for stage in stages]
    return checkpointed(opened, [stage.grad_checkpointing for stage in stages])


@register_host(ConvNeXt)
class TimmConvNeXt(StagedHost):
    """timm's ConvNeXt: stem, stages and head."""

    family = "ConvNeXt"
    background = "zero"
    channels_first = True

    def __init__(self, model: Any) -> None:
        self.model = model
        self.widths = [info["num_chs"] for info in model.feature_info]
        self.stages = convnext_stages(model, model.stages)

    @property
    def bypassed(self) -> Sequence[nn.Module]:
        return (self.model, self.model.stages, *self.model.stages, *(stage.blocks for stage in self.model.stages))

    @property
    def patch(self) -> Sequence[int] | None:
        return plain_patch(self.model.stem[0])

    def embed(self, images: Tensor) -> Tensor:
        return self.model.stem(check_images(self.model, images))

    def features(self, x: Tensor) -> Tensor:
        return self.model.norm_pre(x)

    def answer(self, maps: Sequence[Tensor]) -> Tensor:
        return self.model.forward_head(self.features(maps[-1]))

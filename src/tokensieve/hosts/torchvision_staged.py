"""torchvision's models with stages: `ConvNeXt`, `SwinTransformer` with blocks of both versions, `SwinTransformer3d`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torchvision.models.convnext import CNBlock, ConvNeXt
from torchvision.models.swin_transformer import SwinTransformer, SwinTransformerBlock, SwinTransformerBlockV2
from torchvision.models.video.swin_transformer import SwinTransformer3d
from torchvision.ops.misc import Permute

from ..data.inputs import InputSpec
from ..errors import UnsupportedHost
from .checks import check_images, plain_patch
from .registry import register_host
from .staged import PixelBlock, Stage, StagedHost


class TorchvisionStaged(StagedHost):
    """One sequence, `features`, of stages of blocks and what shrinks the map between them, a stem in front."""

    known: ClassVar[dict[type[nn.Module], type[PixelBlock]]]
    """How a block of a class is opened; of others nothing is guessed."""
    stem: Any
    last: nn.Module
    """The downsampling behind the last stage, where there is one."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.stem, parts = self._parts()
        self.stages, self.sequences = [], []
        self.last = nn.Identity()
        for module in parts:
            if self._shrinks(module):
                self.last = module
            else:
                self.stages.append(Stage(self.last, [self._open(block) for block in self._sequence(module)]))
                self.sequences.append(module)
                self.last = nn.Identity()
        self.widths = [self._width(stage, number) for number, stage in enumerate(self.stages)]

    @property
    def bypassed(self) -> Sequence[nn.Module]:
        return [self.model, self.model.features, *self.sequences]

    @property
    def patch(self) -> Sequence[int] | None:
        return plain_patch(self.stem[0])

    def embed(self, images: Tensor) -> Tensor:
        return self.stem(check_images(self.model, images))

    def _parts(self) -> tuple[Any, list[nn.Module]]:
        """The stem, and what comes behind it."""
        stem, *parts = self._sequence(self.model.features)
        return stem, parts

    @abstractmethod
    def _shrinks(self, module: nn.Module) -> bool:
        """Whether a part of `features` is no stage, but stands between two."""

    @abstractmethod
    def _width(self, stage: Stage, number: int) -> int:
        """Channels of the map of the stage of this number."""

    def _sequence(self, module: nn.Module) -> nn.Sequential:
        if type(module) is not nn.Sequential or len(module) == 0:
            raise self._unknown(module)
        return module

    def _open(self, block: nn.Module) -> PixelBlock:
        if type(block) not in self.known:
            raise self._unknown(block)
        return self.known[type(block)](block)

    def _unknown(self, module: nn.Module) -> UnsupportedHost:
        description = "an empty Sequential" if type(module) is nn.Sequential else f"a {type(module).__name__}"
        return UnsupportedHost(f"{type(self.model).__name__} holds {description}, for which no opener is written.")


class CNPixels(PixelBlock):
    """A depth-wise convolution, then norm, MLP and scale on each pixel."""

    leaves_zeros = True

    def __init__(self, block: Any) -> None:
        super().__init__(block)
        inner: Any = block.block
        if type(inner) is not nn.Sequential or [type(layer) is Permute for layer in inner] != [
            index in (1, 6) for index in range(7)
        ]:
            raise UnsupportedHost(
                "ConvNeXt holds a CNBlock of other parts than torchvision's (a convolution, a permutation, norm, two "
                "linear layers about an activation, a permutation), for which no opener is written."
            )
        self.inner, self.residual_module = inner, inner[0]

    @property
    def bypassed(self) -> Sequence[nn.Module]:
        return (self.block, self.inner, self.inner[1], self.inner[6])

    def spatial(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.permute(0, 2, 3, 1), self.inner[0](x).permute(0, 2, 3, 1)

    def pointwise(self, y: Tensor) -> Tensor:
        for index in range(2, 6):
            y = self.inner[index](y)
        return self.block.stochastic_depth(self.block.layer_scale.flatten() * y)


@register_host(ConvNeXt)
class TorchvisionConvNeXt(TorchvisionStaged):
    """Stem, stages, average and classifier, whose norm comes behind the average."""

    family = "ConvNeXt"
    background = "zero"
    channels_first = True
    known: ClassVar = {CNBlock: CNPixels}

    def features(self, x: Tensor) -> Tensor:
        return self.last(x)

    def answer(self, maps: Sequence[Tensor]) -> Tensor:
        return self.model.classifier(self.model.avgpool(self.features(maps[-1])))

    def _shrinks(self, module: nn.Module) -> bool:
        return type(module) is nn.Sequential and len(module) == 2 and type(module[1]) is nn.Conv2d

    def _width(self, stage: Stage, number: int) -> int:
        return stage.blocks[0].block.layer_scale.numel()


class SwinPixels(PixelBlock):
    """Attention in (shifted) windows, then an MLP on each pixel, its norm in front."""

    def spatial(self, x: Tensor) -> tuple[Tensor, Tensor]:
        block = self.block
        x = x + block.stochastic_depth(block.attn(block.norm1(x)))
        return x, x

    def pointwise(self, y: Tensor) -> Tensor:
        return self.block.stochastic_depth(self.block.mlp(self.block.norm2(y)))


class SwinV2Pixels(PixelBlock):
    """The same with the norms behind."""

    def spatial(self, x: Tensor) -> tuple[Tensor, Tensor]:
        block = self.block
        x = x + block.stochastic_depth(block.norm1(block.attn(x)))
        return x, x

    def pointwise(self, y: Tensor) -> Tensor:
        return self.block.stochastic_depth(self.block.norm2(self.block.mlp(y)))


@register_host(SwinTransformer)
class TorchvisionSwin(TorchvisionStaged):
    """Patch embedding, stages, norm, average and head."""

    family = "Swin"
    background = "keep"
    channels_first = False
    known: ClassVar = {SwinTransformerBlock: SwinPixels, SwinTransformerBlockV2: SwinV2Pixels}

    def features(self, x: Tensor) -> Tensor:
        return self.model.norm(self.last(x))

    def answer(self, maps: Sequence[Tensor]) -> Tensor:
        model = self.model
        return model.head(model.flatten(model.avgpool(model.permute(self.features(maps[-1])))))

    def _shrinks(self, module: nn.Module) -> bool:
        return not isinstance(module, nn.Sequential)

    def _width(self, stage: Stage, number: int) -> int:
        return self.stem[0].out_channels * 2**number


@register_host(SwinTransformer3d)
class TorchvisionSwin3D(TorchvisionSwin):
    """The same on clips (B, C, T, H, W), with maps (B, T, H, W, C)."""

    family = "Swin3D"
    layout = "CTHW"
    known: ClassVar = {SwinTransformerBlock: SwinPixels}

    @property
    def input_spec(self) -> InputSpec:
        """The model states neither frames nor size: those of torchvision's preset for Kinetics."""
        return InputSpec((self.stem.proj.in_channels, 16, 224, 224), self.layout)

    @property
    def patch(self) -> Sequence[int] | None:
        return plain_patch(self.stem.proj)

    def embed(self, images: Tensor) -> Tensor:
        return self.model.pos_drop(self.stem(check_images(self.model, images, self.layout)))

    def answer(self, maps: Sequence[Tensor]) -> Tensor:
        model = self.model
        return model.head(model.avgpool(self.features(maps[-1]).permute(0, 4, 1, 2, 3)).flatten(1))

    def _parts(self) -> tuple[Any, list[nn.Module]]:
        return self.model.patch_embed, list(self._sequence(self.model.features))

    def _width(self, stage: Stage, number: int) -> int:
        return self.stem.proj.out_channels * 2**number

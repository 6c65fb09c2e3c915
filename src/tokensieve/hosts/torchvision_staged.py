"""torchvision's hierarchical models: `ConvNeXt`, `SwinTransformer` (V1 and V2 blocks) and `SwinTransformer3d`."""

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
    """Base class: the model's `features` is a sequence of a stem, then stages with downsampling layers between them."""

    known: ClassVar[dict[type[nn.Module], type[PixelBlock]]]
    """Class of a block -> the `PixelBlock` that opens it; other classes are refused."""
    stem: Any
    last: nn.Module
    """The downsampling layer after the last stage, or an Identity."""

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
        """The stem, and the modules after it."""
        stem, *parts = self._sequence(self.model.features)
        return stem, parts

    @abstractmethod
    def _shrinks(self, module: nn.Module) -> bool:
        """Whether a module of `features` is a downsampling layer, not a stage."""

    @abstractmethod
    def _width(self, stage: Stage, number: int) -> int:
        """Channels of the map of stage `number`, counted from 0."""

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
    """A ConvNeXt block: depth-wise convolution, then norm, MLP and scale on each pixel."""

    leaves_zeros = True

    def __init__(self, block: Any) -> None:
        super().__init__(block)
        inner: Any = block.block
        if type(inner) is not nn.Sequential or [type(layer) is Permute for layer in inner] != [
            index in (1, 6) for index in range(7)
        ]:
            raise UnsupportedHost(
                "ConvNeXt holds a CNBlock of other parts than torchvision's (a convolution, a permutation, norm, two "
                "linear layers with an activation between them, a permutation), for which no opener is written."
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
    """torchvision's ConvNeXt: stem, stages, average pooling and classifier, which starts with the norm."""

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
    """A Swin block: attention in (shifted) windows, then norm and MLP on each pixel."""

    def spatial(self, x: Tensor) -> tuple[Tensor, Tensor]:
        block = self.block
        x = x + block.stochastic_depth(block.attn(block.norm1(x)))
        return x, x

    def pointwise(self, y: Tensor) -> Tensor:
        return self.block.stochastic_depth(self.block.mlp(self.block.norm2(y)))


class SwinV2Pixels(PixelBlock):
    """A Swin V2 block: as `SwinPixels`, but with the norms after attention and MLP."""

    def spatial(self, x: Tensor) -> tuple[Tensor, Tensor]:
        block = self.block
        x = x + block.stochastic_depth(block.norm1(block.attn(x)))
        return x, x

    def pointwise(self, y: Tensor) -> Tensor:
        return self.block.stochastic_depth(self.block.norm2(self.block.mlp(y)))


@register_host(SwinTransformer)
class TorchvisionSwin(TorchvisionStaged):
    """torchvision's Swin: patch embedding, stages, norm, average pooling and head."""

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
    """torchvision's Swin for video: clips (B, C, T, H, W), maps (B, T, H, W, C)."""

    family = "Swin3D"
    layout = "CTHW"
    known: ClassVar = {SwinTransformerBlock: SwinPixels}

    @property
    def input_spec(self) -> InputSpec:
        """The input of torchvision's preset for Kinetics, since the model itself stores neither frames nor size."""
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

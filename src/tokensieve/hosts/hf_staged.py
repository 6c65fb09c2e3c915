"""transformers' hierarchical models: ConvNeXt and Swin, versions 1 and 2.

A model is a base model, a classifier around one, or a backbone. Its embeddings and layers are opened; for the rest its
own forward runs, with a stand-in for the encoder that returns the maps computed by the stream. transformers is imported
only when a model is opened.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import partial
from inspect import signature
from typing import Any

from torch import Tensor, nn

from ..errors import InputError, UnsupportedHost
from .checks import check_images, plain_patch
from .hf_calls import (
    WithParts,
    called_with,
    check_kwargs,
    check_model,
    check_size,
    is_transformers,
    pass_through,
    refuse,
)
from .registry import register_host
from .staged import PixelBlock, Stage, StagedHost, checkpointed

BASES: dict[str, str | None] = {
    **{f"ConvNext{version}{kind}": None for version in ("", "V2") for kind in ("Model", "Backbone")},
    "ConvNextForImageClassification": "convnext",
    "ConvNextV2ForImageClassification": "convnextv2",
    "SwinModel": None,
    "SwinForImageClassification": "swin",
    "SwinBackbone": "swin",
    "Swinv2Model": None,
    "Swinv2ForImageClassification": "swinv2",
    "Swinv2Backbone": None,
}
"""Class name -> the attribute that holds the base model; None for classes that hold embeddings and encoder
themselves."""


class HFStaged(StagedHost):
    """Base class of both families: arguments and outputs of a call."""

    kwargs: tuple[str, ...] = ("output_hidden_states", "return_dict")
    """Names of accepted keyword arguments, besides `pixel_values` and, for classifiers, `labels`."""

    def __init__(self, model: Any) -> None:
        check_model(model)
        self.model, self.name = model, type(model).__name__
        self.inner = BASES[self.name]
        self.base = model if self.inner is None else getattr(model, self.inner)
        self._known(self.base, *(name for name, inner in BASES.items() if inner is None))

    def arguments(self, images: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """A call's arguments -> the images, and the keyword arguments of `answer`.

        Raises:
            InputError: an unknown keyword argument, or one that requests an output which a sieved model lacks.
        """
        images, kwargs = called_with(self.model, images, kwargs)
        refuse(self.model, kwargs, "output_attentions", "since its blocks return only maps")
        labels = ["labels"] if self.name.endswith("ForImageClassification") else []
        check_kwargs(self.model, kwargs, [*self.kwargs, *labels])
        if type(self._hidden(kwargs)) is not bool:
            raise InputError(f"output_hidden_states must be True or False once {self.name} is sieved: all or none.")
        return images, kwargs

    @property
    def bypassed(self) -> Sequence[nn.Module]:
        encoder = self.base.encoder
        stages = encoder.stages if hasattr(encoder, "stages") else encoder.layers
        return [self.model, self.base, encoder, *stages]

    @property
    def patch(self) -> Sequence[int] | None:
        embeddings = self.base.embeddings.patch_embeddings
        return plain_patch(getattr(embeddings, "projection", embeddings))

    def answer(self, maps: Sequence[Tensor], **kwargs: Any) -> Any:
        """The host's own output, in its own type, for the input of stage 0 and the outputs of all stages."""
        model = WithParts(self.base, embeddings=self._embedded, encoder=partial(self._encoded, maps))
        if self.inner is not None:
            model = WithParts(self.model, **{self.inner: model})
        return model(maps[0], **kwargs)

    def _embedded(self, x: Tensor, **_kwargs: Any) -> Any:
        """The input map of stage 0, in the form that the host's embeddings return."""
        return x

    @abstractmethod
    def _encoded(self, maps: Sequence[Tensor], *_inputs: Any, **kwargs: Any) -> Any:
        """The output of the host's encoder for these maps and keyword arguments."""

    def _hidden(self, kwargs: dict[str, Any]) -> Any:
        """Whether all maps are requested."""
        requested = kwargs.get("output_hidden_states")
        return getattr(self.base.config, "output_hidden_states", False) if requested is None else requested

    def _known(self, module: Any, *types: str) -> Any:
        """Return the module; raises UnsupportedHost unless it is of transformers and its class name is in `types`."""
        if not (is_transformers(module) and type(module).__name__ in types):
            raise UnsupportedHost(f"{self.name} holds a {type(module).__name__}, for which no opener is written.")
        return module


class ConvNextPixels(PixelBlock):
    """A ConvNeXt layer: depth-wise convolution, then norm, MLP and scale on each pixel. Version 2 adds global response
    normalisation (GRN)."""

    leaves_zeros = True

    def __init__(self, block: Any) -> None:
        super().__init__(block)
        self.pixelwise, self.residual_module = not hasattr(block, "grn"), block.dwconv

    def spatial(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.permute(0, 2, 3, 1), self.block.dwconv(x).permute(0, 2, 3, 1)

    def pointwise(self, y: Tensor) -> Tensor:
        block = self.block
        y = block.act(block.pwconv1(block.layernorm(y)))
        if hasattr(block, "grn"):
            y = block.grn(y[:, None])[:, 0]
        y = block.pwconv2(y)
        scale = getattr(block, "layer_scale_parameter", None)
        return block.drop_path(y if scale is None else scale * y)


@register_host(*(f"transformers.models.{name}" for name in BASES if name.startswith("ConvNext")))
class HFConvNeXt(HFStaged):
    """ConvNeXt: patch embedding and stages. A base model norms after pooling; a backbone has a norm for each map."""

    family = "ConvNeXt"
    background = "zero"
    channels_first = True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        encoder = self._known(self.base.encoder, "ConvNextEncoder", "ConvNextV2Encoder")
        stages = [self._known(stage, "ConvNextStage", "ConvNextV2Stage") for stage in encoder.stages]
        self.widths = list(self.base.config.hidden_sizes)
        self.stages = [
            Stage(
                partial(_through, stage.downsampling_layer),
                [ConvNextPixels(self._known(layer, "ConvNextLayer", "ConvNextV2Layer")) for layer in stage.layers],
            )
            for stage in stages
        ]
        checkpointed(self.stages, [_checkpoints(encoder, stage, *stage.layers) for stage in stages])

    def embed(self, images: Tensor) -> Tensor:
        return self.base.embeddings(check_images(self.model, images))

    def features(self, x: Tensor) -> Tensor:
        return x

    def _encoded(self, maps: Sequence[Tensor], *_inputs: Any, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithNoAttention

        hidden = tuple(maps) if self._hidden(kwargs) else None
        return BaseModelOutputWithNoAttention(last_hidden_state=maps[-1], hidden_states=hidden)


class SwinPixels(PixelBlock):
    """A Swin layer: attention in (shifted) windows, then norm and MLP on each pixel."""

    always = False
    """Whether windows keep their size and shift even on maps that are not larger than a window."""

    def __call__(self, x: Tensor) -> Tensor:
        size = self._size(x)
        return self.block(x.flatten(1, 2), size, always_partition=self.always)[0].unflatten(1, size)

    def spatial(self, x: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.block
        fits = not self.always and min(self._size(x)) <= layer.window_size
        attended = layer.dropout(_windows(layer, layer.layernorm_before(x), 0 if fits else layer.shift_size))
        x = x + layer.drop_path(attended)
        return x, x

    def pointwise(self, y: Tensor) -> Tensor:
        return self.block.dropout(self.block.mlp(self.block.layernorm_after(y)))

    def _size(self, x: Tensor) -> tuple[int, int]:
        """Height and width of the map; raises InputError if it is smaller than a window, since the layer would then
        shrink its window size permanently, and fail from then on."""
        height, width = x.shape[1:3]
        side = self.block.attention.relative_position_bias.window_size[0]
        if not self.always and min(height, width) < side:
            raise InputError(
                f"A map of {height} x {width} is smaller than the windows of {side} x {side} used for attention: "
                "use larger images."
            )
        return height, width


class AlwaysSwinPixels(SwinPixels):
    """A layer of `SwinBackbone`, which calls its layers with `always_partition=True`."""

    always = True


class SwinV2Pixels(PixelBlock):
    """A Swin V2 layer: norms after attention and MLP; the window size was fixed when the model was created."""

    def __call__(self, x: Tensor) -> Tensor:
        size = (x.shape[1], x.shape[2])
        return self.block(x.flatten(1, 2), size)[0].unflatten(1, size)

    def spatial(self, x: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.block
        x = x + layer.drop_path(layer.layernorm_before(_windows(layer, x, layer.shift_size)))
        return x, x

    def pointwise(self, y: Tensor) -> Tensor:
        layer = self.block
        return layer.drop_path(layer.layernorm_after(layer.output(layer.intermediate(y))))


@register_host(*(f"transformers.models.{name}" for name in BASES if name.startswith("Swin")))
class HFSwin(HFStaged):
    """Swin: patch embedding, stages, norm and average pooling."""

    family = "Swin"
    background = "keep"
    channels_first = False
    kwargs = ("interpolate_pos_encoding", *HFStaged.kwargs)

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        encoder = self._known(self.base.encoder, "SwinEncoder", "Swinv2Encoder")
        stages = [self._known(stage, "SwinStage", "Swinv2Stage") for stage in encoder.layers]
        swin_block = AlwaysSwinPixels if self.name.endswith("Backbone") else SwinPixels
        block_types: dict[str, type[PixelBlock]] = {"SwinLayer": swin_block, "Swinv2Layer": SwinV2Pixels}
        self.widths = [self.base.config.embed_dim * 2**number for number in range(len(stages))]
        self.merges = [None if stage.downsample is None else partial(_merged, stage.downsample) for stage in stages]
        self.stages = [
            Stage(enter or pass_through, [self._block(layer, block_types) for layer in stage.blocks])
            for enter, stage in zip([None, *self.merges[:-1]], stages, strict=True)
        ]
        checkpointed(self.stages, [_checkpoints(encoder, stage) for stage in stages])

    def _block(self, layer: Any, block_types: dict[str, type[PixelBlock]]) -> PixelBlock:
        self._known(self._known(layer, *block_types).attention, "SwinAttention", "Swinv2Attention")
        return block_types[type(layer).__name__](layer)

    def arguments(self, images: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """As `HFStaged.arguments`. If the host has absolute positions, images of another size than its own also need
        `interpolate_pos_encoding=True`."""
        images, kwargs = super().arguments(images, kwargs)
        if not kwargs.pop("interpolate_pos_encoding", False) and images.ndim == 4 and self._resized(images):
            height, width = self.base.embeddings.patch_grid
            patch_height, patch_width = self.base.embeddings.patch_embeddings.patch_size
            check_size(self.model, images, (height * patch_height, width * patch_width))
        return images, kwargs

    def embed(self, images: Tensor) -> Tensor:
        check_images(self.model, images)
        kwargs = {"interpolate_pos_encoding": True} if self._resized(images) else {}
        x, size = self.base.embeddings(images, **kwargs)
        return x.unflatten(1, size)

    def features(self, x: Tensor) -> Tensor:
        return x if self.name.endswith("Backbone") else self.base.layernorm(x)

    def _embedded(self, x: Tensor, **_kwargs: Any) -> tuple[Tensor, tuple[int, int]]:
        height, width = self.size(x)
        return x.flatten(1, 2), (height, width)

    def _encoded(
        self,
        maps: Sequence[Tensor],
        *_inputs: Any,
        output_hidden_states_before_downsampling: bool = False,
        **kwargs: Any,
    ) -> Any:
        from transformers.models.swin.modeling_swin import SwinEncoderOutput

        output = SwinEncoderOutput(last_hidden_state=maps[-1].flatten(1, 2))
        if self._hidden(kwargs):
            stage_maps = maps[1:]
            if not output_hidden_states_before_downsampling:
                stage_maps = [
                    x if merge is None else merge(x) for x, merge in zip(stage_maps, self.merges, strict=True)
                ]
            all_maps = [maps[0], *stage_maps]
            output.hidden_states = tuple(x.flatten(1, 2) for x in all_maps)
            output.reshaped_hidden_states = tuple(self._to_channels_first(x) for x in all_maps)
        return output

    def _to_channels_first(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, C, H, W), in the host's own memory layout, on which later layers may depend."""
        x = x.permute(0, 3, 1, 2)
        return x if self.name.startswith("Swinv2") else x.contiguous()

    def _resized(self, images: Tensor) -> bool:
        """Whether the host has absolute positions, and these images give another grid than these were made for."""
        embeddings = self.base.embeddings
        if embeddings.position_embeddings is None:
            return False
        sides = zip(images.shape[2:], embeddings.patch_embeddings.patch_size, strict=True)
        return tuple(-(-side // patch) for side, patch in sides) != tuple(embeddings.patch_grid)


def _checkpoints(*modules: Any) -> bool:
    """Whether gradient checkpointing is on in any of these modules."""
    return any(module.training and getattr(module, "gradient_checkpointing", False) for module in modules)


def _through(modules: Iterable[Any], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def _merged(merge: Any, x: Tensor) -> Tensor:
    """Patch merging between two stages: a map (B, H, W, C) -> (B, H / 2, W / 2, 2 C), sides rounded up."""
    height, width = x.shape[1:3]
    return merge(x.flatten(1, 2), (height, width)).unflatten(1, ((height + 1) // 2, (width + 1) // 2))


def _windows(layer: Any, x: Tensor, shift: int) -> Tensor:
    """The output of a Swin layer's attention on a map (B, H, W, C), in windows shifted by `shift` pixels."""
    _, height, width, channels = x.shape
    x, _ = layer.maybe_pad(x, height, width)
    x = x.roll((-shift, -shift), (1, 2)) if shift else x
    _, padded_height, padded_width, _ = x.shape
    side = layer.window_size
    windows = x.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)
    mask = _shift_mask(layer, padded_height, padded_width, x) if shift else None
    attended = layer.attention(windows.reshape(-1, side * side, channels), mask)[0]
    x = attended.view(windows.shape).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    x = x.roll((shift, shift), (1, 2)) if shift else x
    return x[:, :height, :width]


def _shift_mask(layer: Any, height: int, width: int, x: Tensor) -> Tensor:
    """The attention mask that separates pixels which only the shift put into one window."""
    # an older transformers takes no device and creates the mask on the CPU
    kwargs = {"device": x.device} if "device" in signature(layer.get_attn_mask).parameters else {}
    return layer.get_attn_mask(height, width, dtype=x.dtype, **kwargs).to(x.device)

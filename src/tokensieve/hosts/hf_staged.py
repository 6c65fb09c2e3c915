"""transformers' models with stages: ConvNeXt and Swin, both in both versions.

A model here is a base model, a classifier around one, or a backbone. Embeddings and layers are opened; of everything
around them its own forward runs, on an encoder that answers with the maps that the sieve has made. Nothing of
transformers is imported before one is opened.
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
    **{f"ConvNext{v}{what}": None for v in ("", "V2") for what in ("Model", "Backbone")},
    "ConvNextForImageClassification": "convnext",
    "ConvNextV2ForImageClassification": "convnextv2",
    "SwinModel": None,
    "SwinForImageClassification": "swin",
    "SwinBackbone": "swin",
    "Swinv2Model": None,
    "Swinv2ForImageClassification": "swinv2",
    "Swinv2Backbone": None,
}
"""By class, the name under which it holds its base model; None where it holds embeddings and encoder itself."""


class HFStaged(StagedHost):
    """The calls and outputs of both families."""

    kwargs: tuple[str, ...] = ("output_hidden_states", "return_dict")
    """Beside `pixel_values` and, with classifiers, `labels`."""

    def __init__(self, model: Any) -> None:
        check_model(model)
        self.model, self.name = model, type(model).__name__
        self.inner = BASES[self.name]
        self.base = model if self.inner is None else getattr(model, self.inner)
        self._know(self.base, *(name for name, inner in BASES.items() if inner is None))

    def arguments(self, images: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """A call's arguments -> the images, and the keyword arguments of `answer`.

        Raises:
            InputError: a word that needs what a sieved model does not have.
        """
        images, kwargs = called_with(self.model, images, kwargs)
        refuse(self.model, kwargs, "output_attentions", "whose blocks give their maps alone")
        labels = ["labels"] if self.name.endswith("ForImageClassification") else []
        check_kwargs(self.model, kwargs, [*self.kwargs, *labels])
        if type(self._hidden(kwargs)) is not bool:
            raise InputError(f"output_hidden_states is True or False once {self.name} is sieved: all of them or none.")
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
        """The host's own output, of the type that it returns."""
        model = WithParts(self.base, embeddings=self._embedded, encoder=partial(self._encoded, maps))
        if self.inner is not None:
            model = WithParts(self.model, **{self.inner: model})
        return model(maps[0], **kwargs)

    def _embedded(self, x: Tensor, **_words: Any) -> Any:
        """The map that goes into stage 0, as the host's embeddings return it."""
        return x

    @abstractmethod
    def _encoded(self, maps: Sequence[Tensor], *_inputs: Any, **kwargs: Any) -> Any:
        """The output of the host's encoder for these maps and keyword arguments."""

    def _hidden(self, kwargs: dict[str, Any]) -> Any:
        """Whether all maps are requested."""
        requested = kwargs.get("output_hidden_states")
        return getattr(self.base.config, "output_hidden_states", False) if requested is None else requested

    def _know(self, module: Any, *types: str) -> Any:
        """The part, if its class is one of these and transformers' own: of others nothing is guessed."""
        if not (is_transformers(module) and type(module).__name__ in types):
            raise UnsupportedHost(f"{self.name} holds a {type(module).__name__}, for which no opener is written.")
        return module


class ConvNextPixels(PixelBlock):
    """A depth-wise convolution, then norm, MLP and scale on each pixel; as timm's, with response normalisation too."""

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
    """Patch embedding and stages; a base model pools and has its norm behind that, a backbone one for each map."""

    family = "ConvNeXt"
    background = "zero"
    channels_first = True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        encoder = self._know(self.base.encoder, "ConvNextEncoder", "ConvNextV2Encoder")
        stages = [self._know(stage, "ConvNextStage", "ConvNextV2Stage") for stage in encoder.stages]
        self.widths = list(self.base.config.hidden_sizes)
        self.stages = [
            Stage(
                partial(_through, stage.downsampling_layer),
                [ConvNextPixels(self._know(layer, "ConvNextLayer", "ConvNextV2Layer")) for layer in stage.layers],
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
    """Attention in (shifted) windows, then an MLP on each pixel, its norm in front."""

    always = False
    """Whether windows keep their size and shift on maps that are no larger."""

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
        """Height and width; refuses what the layer would shrink its windows for, and then fail for good."""
        height, width = x.shape[1:3]
        side = self.block.attention.relative_position_bias.window_size[0]
        if not self.always and min(height, width) < side:
            raise InputError(
                f"A map of {height} x {width} is smaller than the windows of {side} x {side} that are to attend in it: "
                "give larger images."
            )
        return height, width


class AlwaysSwinPixels(SwinPixels):
    """As a backbone calls its layers."""

    always = True


class SwinV2Pixels(PixelBlock):
    """The same with the norms behind, and windows that were settled when the model was made."""

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
    """Patch embedding, stages, norm and average."""

    family = "Swin"
    background = "keep"
    channels_first = False
    kwargs = ("interpolate_pos_encoding", *HFStaged.kwargs)

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        encoder = self._know(self.base.encoder, "SwinEncoder", "Swinv2Encoder")
        stages = [self._know(stage, "SwinStage", "Swinv2Stage") for stage in encoder.layers]
        first = AlwaysSwinPixels if self.name.endswith("Backbone") else SwinPixels
        block_types: dict[str, type[PixelBlock]] = {"SwinLayer": first, "Swinv2Layer": SwinV2Pixels}
        self.widths = [self.base.config.embed_dim * 2**number for number in range(len(stages))]
        self.merges = [None if stage.downsample is None else partial(_merged, stage.downsample) for stage in stages]
        self.stages = [
            Stage(enter or pass_through, [self._block(layer, block_types) for layer in stage.blocks])
            for enter, stage in zip([None, *self.merges[:-1]], stages, strict=True)
        ]
        checkpointed(self.stages, [_checkpoints(encoder, stage) for stage in stages])

    def _block(self, layer: Any, block_types: dict[str, type[PixelBlock]]) -> PixelBlock:
        self._know(self._know(layer, *block_types).attention, "SwinAttention", "Swinv2Attention")
        return block_types[type(layer).__name__](layer)

    def arguments(self, images: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """As of both families; and where the host has absolute positions, images that make another grid than its own
        need `interpolate_pos_encoding=True`."""
        images, kwargs = super().arguments(images, kwargs)
        if not kwargs.pop("interpolate_pos_encoding", False) and images.ndim == 4 and self._resized(images):
            height, width = self.base.embeddings.patch_grid
            tall, wide = self.base.embeddings.patch_embeddings.patch_size
            check_size(self.model, images, (height * tall, width * wide))
        return images, kwargs

    def embed(self, images: Tensor) -> Tensor:
        check_images(self.model, images)
        kwargs = {"interpolate_pos_encoding": True} if self._resized(images) else {}
        x, size = self.base.embeddings(images, **kwargs)
        return x.unflatten(1, size)

    def features(self, x: Tensor) -> Tensor:
        return x if self.name.endswith("Backbone") else self.base.layernorm(x)

    def _embedded(self, x: Tensor, **_words: Any) -> tuple[Tensor, tuple[int, int]]:
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
            behind = maps[1:]
            if not output_hidden_states_before_downsampling:
                behind = [x if merge is None else merge(x) for x, merge in zip(behind, self.merges, strict=True)]
            every = [maps[0], *behind]
            output.hidden_states = tuple(x.flatten(1, 2) for x in every)
            output.reshaped_hidden_states = tuple(self._first(x) for x in every)
        return output

    def _first(self, x: Tensor) -> Tensor:
        """A map with its channels in front, in memory as in the host: what follows may go another way otherwise."""
        x = x.permute(0, 3, 1, 2)
        return x if self.name.startswith("Swinv2") else x.contiguous()

    def _resized(self, images: Tensor) -> bool:
        """Whether absolute positions, where there are any, are those of another grid than these images make."""
        embeddings = self.base.embeddings
        if embeddings.position_embeddings is None:
            return False
        sides = zip(images.shape[2:], embeddings.patch_embeddings.patch_size, strict=True)
        return tuple(-(-side // patch) for side, patch in sides) != tuple(embeddings.patch_grid)


def _checkpoints(*modules: Any) -> bool:
    """Whether gradient checkpointing is switched on in the stage, or around it; layers that do it say so themselves."""
    return any(module.training and getattr(module, "gradient_checkpointing", False) for module in modules)


def _through(parts: Iterable[Any], x: Tensor) -> Tensor:
    for module in parts:
        x = module(x)
    return x


def _merged(merge: Any, x: Tensor) -> Tensor:
    """A map (B, H, W, C) -> (B, H / 2, W / 2, 2 C), sides rounded up, as the layer between two stages makes it."""
    height, width = x.shape[1:3]
    return merge(x.flatten(1, 2), (height, width)).unflatten(1, ((height + 1) // 2, (width + 1) // 2))


def _windows(layer: Any, x: Tensor, shift: int) -> Tensor:
    """The output of a Swin layer's attention on a map (B, H, W, C), in windows shifted by so many pixels."""
    _, height, width, channels = x.shape
    x, _ = layer.maybe_pad(x, height, width)
    x = x.roll((-shift, -shift), (1, 2)) if shift else x
    _, tall, wide, _ = x.shape
    side = layer.window_size
    windows = x.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)
    mask = _apart(layer, tall, wide, x) if shift else None
    attended = layer.attention(windows.reshape(-1, side * side, channels), mask)[0]
    x = attended.view(windows.shape).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    x = x.roll((shift, shift), (1, 2)) if shift else x
    return x[:, :height, :width]


def _apart(layer: Any, height: int, width: int, x: Tensor) -> Tensor:
    """The attention mask between pixels that the shift brought together; an older transformers makes it on the CPU."""
    takes = {"device": x.device} if "device" in signature(layer.get_attn_mask).parameters else {}
    return layer.get_attn_mask(height, width, dtype=x.dtype, **takes).to(x.device)

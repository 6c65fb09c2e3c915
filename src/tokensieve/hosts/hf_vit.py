"""transformers' vision encoders, and the models that wrap one. transformers is imported only when a model is opened.

A model is an encoder, or a wrapper that holds an encoder and reads its output. The encoder is opened; a wrapper's own
forward runs, with a stand-in for the encoder that returns the output computed by the stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .._frozen import replace
from ..errors import UnsupportedHost
from ..tokens import Tokens
from .base import Host
from .checks import check_images
from .hf_block import HFBlock
from .hf_calls import (
    WithParts,
    called_with,
    check_kwargs,
    check_model,
    check_size,
    is_transformers,
    pair,
    pass_through,
    refuse,
)
from .pooling import key_bias, weighed
from .registry import register_host


class Encoder(NamedTuple):
    """The attribute names of an encoder's parts, and how it pools."""

    layers: str = "encoder.layer"
    """Dotted path of the layers."""
    norm: str | None = "layernorm"
    """Path of the norm applied to all final tokens; None if only the pooled token is normed."""
    prefix: int = 1
    """Number of tokens before the patches, without registers."""
    pooling: str = "class"
    """How `pooler_output` is made: the `class` token, a `pooler` layer, the `norm` of the class token or attention
    pooling (`map`). `none`: the output has no `pooler_output`; `masked`: it has ViTMAE's mask instead."""
    fixed: bool = True
    """Whether the encoder takes one image size only, unless called with `interpolate_pos_encoding=True`."""


ENCODERS = {
    "ViTModel": Encoder("layers", pooling="pooler"),
    "DeiTModel": Encoder("layers", prefix=2, pooling="pooler"),
    "ViTMAEModel": Encoder("layers", pooling="masked"),
    "Dinov2Model": Encoder(fixed=False),
    "Dinov2WithRegistersModel": Encoder(fixed=False),
    "DINOv3ViTModel": Encoder("model.layer", "norm", fixed=False),
    "CLIPVisionModel": Encoder("encoder.layers", None, pooling="norm"),
    "SiglipVisionModel": Encoder("encoder.layers", "post_layernorm", prefix=0, pooling="map"),
}


class Wrapper(NamedTuple):
    """A model that holds an encoder and reads its output."""

    encoder: str
    """Name of the attribute that holds the encoder."""
    reads_prefix: bool = True
    """Whether it reads only prefix tokens of the encoder's output."""
    mean: bool = False
    """Whether it averages patch tokens in its own forward."""
    labels: bool = True
    """Whether it takes `labels=` and returns a loss."""


WRAPPERS = {
    "ViTForImageClassification": Wrapper("vit"),
    "DeiTForImageClassification": Wrapper("deit"),
    "DeiTForImageClassificationWithTeacher": Wrapper("deit", labels=False),
    "Dinov2ForImageClassification": Wrapper("dinov2", reads_prefix=False, mean=True),
    "Dinov2WithRegistersForImageClassification": Wrapper("dinov2_with_registers", reads_prefix=False, mean=True),
    "CLIPVisionModelWithProjection": Wrapper("vision_model", reads_prefix=False, labels=False),
    "CLIPForImageClassification": Wrapper("vision_model", reads_prefix=False, mean=True),
    "SiglipForImageClassification": Wrapper("vision_model", reads_prefix=False, mean=True),
}


@register_host(*(f"transformers.models.{name}" for name in (*ENCODERS, *WRAPPERS)))
class HFViT(Host):
    """An encoder of `ENCODERS`, alone or in a model of `WRAPPERS`."""

    encoders: ClassVar[Mapping[str, Encoder]] = ENCODERS
    wrappers: ClassVar[Mapping[str, Wrapper]] = WRAPPERS
    kwargs: Sequence[str] = ("interpolate_pos_encoding",)
    """Names of accepted keyword arguments, besides images, labels and those that all transformers models take."""

    def __init__(self, model: Any) -> None:
        name = type(model).__name__
        check_model(model)
        self.model = model
        self.wrapper = self.wrappers.get(name)
        self.encoder = encoder = model if self.wrapper is None else getattr(model, self.wrapper.encoder)
        if not (is_transformers(encoder) and type(encoder).__name__ in self.encoders):
            raise UnsupportedHost(f"{name} holds a {type(encoder).__name__}, for which no opener is written.")
        self.kind = kind = self.encoders[type(encoder).__name__]
        if getattr(encoder.config, "mask_ratio", 0) != 0:
            raise UnsupportedHost(
                f"{name} hides {encoder.config.mask_ratio:.0%} of the patches at random: set "
                "model.config.mask_ratio = 0, so that it reads all patches in their order."
            )
        self.width = encoder.config.hidden_size
        self.prefix = kind.prefix + getattr(encoder.config, "num_register_tokens", 0)
        self.class_token = kind.prefix > 0
        self.reads_prefix = self.wrapper is not None and self.wrapper.reads_prefix
        self.blocks = [HFBlock(layer, self.prefix) for layer in encoder.get_submodule(kind.layers)]
        if kind.pooling == "map" and encoder.use_head and not _known_pooling(encoder.head):
            self.cannot_merge = f"its pooling {type(encoder.head).__name__} cannot weigh merged tokens by size"

    @property
    def bypassed(self) -> Sequence[nn.Module]:
        path = self.kind.layers.split(".")
        containers = [self.encoder.get_submodule(".".join(path[:count])) for count in range(len(path))]
        return [self.model, *containers]

    def arguments(self, images: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """A call's arguments -> the images, and the keyword arguments of `head`.

        Raises:
            InputError: an unknown keyword argument, one that requests an output which a sieved model lacks, or images
                of another size than the host's without `interpolate_pos_encoding=True`.
        """
        images, kwargs = called_with(self.model, images, kwargs)
        refuse(self.model, kwargs, "output_attentions", "since its blocks have different tokens")
        hidden = kwargs.pop("output_hidden_states", None)
        if hidden is None:
            hidden = getattr(self.model.config, "output_hidden_states", False)
        self._check_size(images, kwargs.pop("interpolate_pos_encoding", False))
        labels = ["labels"] if self.wrapper is not None and self.wrapper.labels else []
        check_kwargs(self.model, kwargs, [*self.kwargs, "output_hidden_states", "return_dict", *labels])
        return images, kwargs | ({"output_hidden_states": True} if hidden else {})

    @property
    def patch(self) -> Sequence[int] | None:
        return self._patch_size()

    def embed(self, images: Tensor) -> Tokens:
        encoder, name = self.encoder, type(self.model).__name__
        check_images(self.model, images)
        grid = tuple(side // patch for side, patch in zip(images.shape[2:], self._patch_size(), strict=True))
        images = images.to(next(encoder.embeddings.parameters()).dtype)
        kwargs: dict[str, Any] = {"interpolate_pos_encoding": True} if self.kind.fixed and self._resized(images) else {}
        if self.kind.pooling == "masked":  # ViTMAE sorts patches by this noise; ascending noise keeps their order
            noise = torch.arange(prod(grid), device=images.device, dtype=torch.float32)
            x, _, _ = encoder.embeddings(images, noise=noise.expand(images.shape[0], -1), **kwargs)
        else:
            x = encoder.embeddings(images, **kwargs)
        if x.shape[1] != prod(grid) + self.prefix:
            raise UnsupportedHost(
                f"{name} embeds {prod(grid)} patches as {x.shape[1]} tokens, so tokens cannot be assigned to patches."
            )
        if hasattr(encoder, "pre_layrnorm"):
            x = encoder.pre_layrnorm(x)
        table = torch.stack(encoder.rope_embeddings(images)) if hasattr(encoder, "rope_embeddings") else None
        return Tokens(x, self.prefix, grid, table=table)

    def features(self, tokens: Tokens) -> Tokens:
        norm = None if self.kind.norm is None else attrgetter(self.kind.norm)(self.encoder)
        return tokens if norm is None else replace(tokens, x=norm(tokens.x))

    def head(
        self,
        tokens: Tokens,
        *,
        return_dict: bool | None = None,
        hidden_states: tuple[Tensor, ...] | None = None,
        **loss: Any,
    ) -> Any:
        """The host's own output, in its own type; with `labels` it includes the loss."""
        if self.wrapper is not None:
            if self.wrapper.mean:
                tokens = weighed(tokens)
            model = WithParts(self.model, **{self.wrapper.encoder: pass_through}, **self._replaced_parts(tokens))
            return model(self._output(tokens, hidden_states), return_dict=return_dict, **loss)
        output = self._output(tokens, hidden_states)
        as_output = self.model.config.return_dict if return_dict is None else return_dict
        return output if as_output else output.to_tuple()

    def _output(self, tokens: Tokens, hidden: tuple[Tensor, ...] | None) -> Any:
        """The output of the encoder, a `ModelOutput`."""
        if self.kind.pooling == "masked":
            return _masked_output(tokens, hidden)
        from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

        if self.kind.pooling == "none":
            return BaseModelOutput(last_hidden_state=tokens.x, hidden_states=hidden)
        pooled = self._pool(tokens)
        return BaseModelOutputWithPooling(last_hidden_state=tokens.x, pooler_output=pooled, hidden_states=hidden)

    def _pool(self, tokens: Tokens) -> Tensor | None:
        """The pooled output (B, d); merged tokens count as many times as the patches they represent."""
        encoder, pooling, x = self.encoder, self.kind.pooling, tokens.x
        if pooling == "pooler":
            return None if encoder.pooler is None else encoder.pooler(x)
        if pooling == "norm":
            return encoder.post_layernorm(x[:, 0, :])
        if pooling == "class":
            return x[:, 0, :]
        if not encoder.use_head:
            return None
        return encoder.head(x) if tokens.counted is None else _attend_weighed(encoder.head, tokens)

    def _replaced_parts(self, tokens: Tokens) -> dict[str, Any]:
        """Further submodules of the wrapper to replace in this call, by attribute name; none by default."""
        return {}

    def _check_size(self, images: Tensor, interpolates: bool) -> None:
        """Raise InputError for images of a size that the host itself would not take."""
        if self.kind.fixed and not interpolates and images.ndim == 4:
            check_size(self.model, images, self._image_size())

    def _patch_size(self) -> tuple[int, int]:
        return pair(self.encoder.config.patch_size)

    def _image_size(self) -> tuple[int, int]:
        return pair(self.encoder.config.image_size)

    def _resized(self, images: Tensor) -> bool:
        return tuple(images.shape[2:]) != self._image_size()


def _masked_output(tokens: Tokens, hidden: tuple[Tensor, ...] | None) -> Any:
    """ViTMAE's output: dropped patches count as masked, and in `ids_restore` they come after the patches kept."""
    from transformers.models.vit_mae.modeling_vit_mae import ViTMAEModelOutput

    patches = torch.arange(prod(tokens.grid), device=tokens.x.device).expand(tokens.x.shape[0], -1)
    mask = torch.zeros(patches.shape, device=patches.device)
    restore = patches
    if tokens.positions is not None:
        indices = torch.arange(tokens.positions.shape[1], device=patches.device).expand_as(tokens.positions)
        token_of_patch = (patches + indices.shape[1]).scatter(1, tokens.positions, indices)
        mask = (token_of_patch >= indices.shape[1]).to(mask.dtype)
        restore = token_of_patch.argsort(dim=1).argsort(dim=1)
    return ViTMAEModelOutput(last_hidden_state=tokens.x, mask=mask, ids_restore=restore, hidden_states=hidden)


def _known_pooling(head: Any) -> bool:
    name = type(head).__name__
    return (
        is_transformers(head)
        and name == "SiglipMultiheadAttentionPoolingHead"
        and type(head.attention) is nn.MultiheadAttention
    )


def _attend_weighed(head: Any, tokens: Tokens) -> Tensor:
    """SigLIP's attention pooling with log(size) added to the logits of its keys: (B, N, d) -> (B, d)."""
    probe = head.probe.repeat(tokens.x.shape[0], 1, 1)
    x = head.attention(probe, tokens.x, tokens.x, key_padding_mask=key_bias(tokens))[0]
    return (x + head.mlp(head.layernorm(x)))[:, 0]

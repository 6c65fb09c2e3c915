"""transformers' models for dense prediction: their heads read the hidden states of several layers on the whole grid.

The model's own forward runs with stand-ins for its embeddings and encoder. These return the hidden states that the
stream computed, with dropped and merged patches put back on the grid. transformers is imported only when a model is
opened.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from .._frozen import replace
from ..errors import UnsupportedHost
from ..tokens import Tokens
from .base import Exit, Host
from .checks import check_images
from .hf_block import HFBlock
from .hf_calls import StandIn, WithParts, called_with, check_kwargs, check_model, is_transformers, pair, refuse
from .registry import register_host

States = Sequence[Tensor | None]
"""The input of block 0 and the output of each block, (B, prefix + P, d) each; None for those that the head ignores."""

REFUSED = ("self", "pixel_values", "attention_mask", "bool_masked_pos", "output_attentions")
"""Parameters of the model's forward that a sieved model does not take as keyword arguments."""


def arguments_of(
    model: Any, images: Tensor | None, kwargs: dict[str, Any], *more: str
) -> tuple[Tensor, dict[str, Any]]:
    """A call's arguments -> the images, and the keyword arguments for the model's own forward.

    Args:
        model: the model.
        images: the positional argument, if any.
        kwargs: the keyword arguments of the call.
        more: names of further keyword arguments that are allowed.

    Raises:
        InputError: an unknown keyword argument, or one that requests an output which a sieved model lacks.
    """
    images, kwargs = called_with(model, images, kwargs)
    refuse(model, kwargs, "output_attentions", "since its blocks have different tokens")
    hidden = kwargs.pop("output_hidden_states", getattr(model.config, "output_hidden_states", False))
    parameters = inspect.signature(type(model).forward).parameters.values()
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in REFUSED]
    check_kwargs(model, kwargs, list(dict.fromkeys([*known, "output_hidden_states", "return_dict", *more])))
    return images, kwargs | ({"output_hidden_states": True} if hidden else {})


class HFDense(Host):
    """Base class of hosts for dense prediction. A dropped patch takes the features of the nearest kept patch, or zeros
    with `fill="zero"`."""

    reads_prefix = False
    class_token = True
    norm: Any
    """The norm after the last layer."""
    holder: Any
    """The module that holds embeddings and layers: the model or a submodule of it."""
    path = "encoder.layer"
    """Dotted path of the layers in `holder`."""

    def __init__(self, model: Any) -> None:
        check_model(model)
        self.model, self.name = model, type(model).__name__
        self.holder = self.holder_of(model)
        config = self.holder.config
        self.width = config.hidden_size
        self.prefix = 1 + getattr(config, "num_register_tokens", 0) + getattr(config, "num_detection_tokens", 0)
        layers = self.holder.get_submodule(self.path)
        self.blocks = [self.block(index, layer) for index, layer in enumerate(layers)]
        self.levels = sorted(set(self.read_levels()))

    def holder_of(self, model: Any) -> Any:
        """The module of the model that holds embeddings and layers."""
        return model

    def block(self, index: int, layer: Any) -> HFBlock:
        """The host block of a layer."""
        return HFBlock(layer, self.prefix)

    @abstractmethod
    def read_levels(self) -> Sequence[int]:
        """Indices of the blocks whose output the head reads; -1 is the input of block 0."""

    @abstractmethod
    def answer(self, states: States, images: Tensor, **kwargs: Any) -> Any:
        """The model's own output for these hidden states; only the shape of `images` is used."""

    @property
    def bypassed(self) -> Sequence[nn.Module]:
        parts = self.path.split(".")
        containers = [self.holder.get_submodule(".".join(parts[:count])) for count in range(len(parts))]
        return [self.model, *containers]

    @property
    def patch(self) -> Sequence[int] | None:
        return pair(self.holder.config.patch_size)

    def arguments(self, images: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """A call's arguments -> the images, and the keyword arguments of `read`.

        Raises:
            InputError: an unknown keyword argument, or one that requests an output which a sieved model lacks.
        """
        return arguments_of(self.model, images, kwargs, "fill")

    def embed(self, images: Tensor) -> Tokens:
        check_images(self.model, images)
        patch = self.patch
        assert patch is not None
        grid = tuple(side // patch_side for side, patch_side in zip(images.shape[2:], patch, strict=True))
        x = self.embedded(images.to(next(self.holder.embeddings.parameters()).dtype))
        if x.shape[1] != prod(grid) + self.prefix:
            raise UnsupportedHost(
                f"{self.name} embeds {prod(grid)} patches as {x.shape[1]} tokens, so tokens cannot be assigned to "
                "patches."
            )
        return Tokens(x, self.prefix, grid, table=self.table(images))

    def embedded(self, images: Tensor) -> Tensor:
        """Images in the dtype of the embeddings -> tokens (B, prefix + P, d), prefix first."""
        return self.holder.embeddings(images)

    def table(self, images: Tensor) -> Tensor | None:
        """The positional table over the whole grid of patches, or None if the model has none."""
        rope = getattr(self.holder, "rope_embeddings", None)
        return None if rope is None else torch.stack(rope(images))

    def features(self, tokens: Tokens) -> Tokens:
        return replace(tokens, x=self.norm(tokens.x))

    def head(self, tokens: Tokens) -> Any:
        raise NotImplementedError("the head of a model for dense prediction reads several blocks: call read()")

    def read(
        self,
        levels: Sequence[Tokens],
        exits: Sequence[Exit],
        size: Sequence[int],
        *,
        fill: str = "nearest",
        hidden_states: tuple[Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> Any:
        count = len(self.blocks) + 1
        states: list[Tensor | None] = [None] * count if hidden_states is None else list(hidden_states)
        for level, tokens in zip(self.levels, levels, strict=True):
            states[level + 1] = tokens.whole_grid(fill).x
        output = self.answer(states, blank(levels[0].x, size), output_hidden_states=hidden_states is not None, **kwargs)
        if hidden_states is None and getattr(output, "hidden_states", None) is not None:
            # an older DPT returns them if its config says so, even if the call does not
            return type(output)(**{name: value for name, value in output.items() if name != "hidden_states"})
        return output


def blank(x: Tensor, size: Sequence[int]) -> Tensor:
    """Images of zeros (B, 3, *size) in the batch size of x, without memory of their own; only their shape is used."""
    return x.new_zeros(()).expand(x.shape[0], 3, *size)


def any_state(states: States) -> Tensor:
    """The first state that is not None, for callers that need only its shape."""
    return next(state for state in states if state is not None)


def encoder_output(states: States, **_kwargs: Any) -> Any:
    """The output of an encoder for these states: a `BaseModelOutput`."""
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=states[-1], hidden_states=tuple(states))


class HFBackbone(HFDense):
    """A backbone: it returns the maps of the stages named in its config, where each layer is a stage."""

    def read_levels(self) -> Sequence[int]:
        return [self.model.stage_names.index(name) - 1 for name in self.model.out_features]


@register_host(
    "transformers.models.Dinov2Backbone",
    "transformers.models.Dinov2WithRegistersBackbone",
)
class HFDinov2Backbone(HFBackbone):
    """DINOv2 as a backbone: maps of several layers, with the final norm if the config says so."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.norm = model.layernorm

    def answer(self, states: States, images: Tensor, **kwargs: Any) -> Any:
        model = self.model
        embeddings = StandIn(model.embeddings, lambda **_kwargs: any_state(states))
        encoder = StandIn(model.encoder, lambda **_kwargs: encoder_output(states))
        return WithParts(model, embeddings=embeddings, encoder=encoder)(images, **kwargs)


@register_host("transformers.models.DINOv3ViTBackbone")
class HFDinov3Backbone(HFBackbone):
    """DINOv3 as a backbone, with rotary positions; the last layer's map always passes the final norm."""

    path = "model.layer"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.norm = model.norm

    def read_levels(self) -> Sequence[int]:
        return [*super().read_levels(), len(self.blocks) - 1]  # `last_hidden_state` needs the last layer

    def answer(self, states: States, images: Tensor, **kwargs: Any) -> Any:
        model = self.model
        return WithParts(
            model,
            embeddings=StandIn(model.embeddings, lambda **_kwargs: any_state(states)),
            rope_embeddings=StandIn(model.rope_embeddings, lambda **_kwargs: None),
            model=StandIn(model.model, lambda **_kwargs: encoder_output(states)),
            norm=lambda state: None if state is None else model.norm(state),  # called for all states, unused ones too
        )(images, **kwargs)


@register_host("transformers.models.DPTForSemanticSegmentation")
class HFDPT(HFDense):
    """DPT with its own vision transformer: its neck and head (classes or depth) read the states of four layers."""

    def holder_of(self, model: Any) -> Any:
        if model.config.is_hybrid:
            raise UnsupportedHost(
                f"{self.name} is a hybrid, whose head also reads maps of its convolutional stem: use a DPT without "
                "is_hybrid."
            )
        if not is_transformers(model.dpt) or type(model.dpt).__name__ != "DPTModel":
            raise UnsupportedHost(f"{self.name} holds a {type(model.dpt).__name__}, for which no opener is written.")
        return model.dpt

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.norm = self.holder.layernorm

    def read_levels(self) -> Sequence[int]:
        return [index for index in range(len(self.blocks)) if index in self.model.config.backbone_out_indices]

    def embedded(self, images: Tensor) -> Tensor:
        return self.holder.embeddings(images).last_hidden_states

    def answer(self, states: States, images: Tensor, **kwargs: Any) -> Any:
        return WithParts(self.model, dpt=StandIn(self.holder, lambda **_kwargs: encoder_output(states)))(
            images, **kwargs
        )

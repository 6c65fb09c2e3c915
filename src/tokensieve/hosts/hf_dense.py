"""transformers' models for dense prediction: their heads read the hidden states of several layers on the whole grid.

Of such a model its own forward runs, on parts that answer with the hidden states which the stream has made and put back
on the grid, each with its own source map. Nothing of transformers is imported before one is opened.
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
"""What block 0 reads, and what each block gives, (B, prefix + P, d) each; None where nobody reads it."""

REFUSED = ("self", "pixel_values", "attention_mask", "bool_masked_pos", "output_attentions")
"""Parameters of such a model's forward that are passed otherwise, or refused."""


def arguments_of(
    model: Any, images: Tensor | None, kwargs: dict[str, Any], *more: str
) -> tuple[Tensor, dict[str, Any]]:
    """A call's arguments -> the images, and the keyword arguments of the model's own forward, and `more` of them.

    Raises:
        InputError: a word that is none of these, or that needs what a sieved model does not have.
    """
    images, kwargs = called_with(model, images, kwargs)
    refuse(model, kwargs, "output_attentions", "in which each block has other tokens")
    hidden = kwargs.pop("output_hidden_states", getattr(model.config, "output_hidden_states", False))
    parameters = inspect.signature(type(model).forward).parameters.values()
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in REFUSED]
    check_kwargs(model, kwargs, list(dict.fromkeys([*known, "output_hidden_states", "return_dict", *more])))
    return images, kwargs | ({"output_hidden_states": True} if hidden else {})


class HFDense(Host):
    """The common base of such hosts. Dropped patches show the nearest kept one (`fill="zero"`: nothing)."""

    reads_prefix = False
    class_token = True
    norm: Any
    """The norm behind the last layer."""
    holder: Any
    """The module that holds embeddings and layers: the model, or a part of it."""
    path = "encoder.layer"
    """The path of the layers, from the holder on."""

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
        """The part of the model that holds embeddings and layers."""
        return model

    def block(self, index: int, layer: Any) -> HFBlock:
        """A layer, opened."""
        return HFBlock(layer, self.prefix)

    @abstractmethod
    def read_levels(self) -> Sequence[int]:
        """The blocks behind which the head reads hidden states; -1 is what block 0 reads."""

    @abstractmethod
    def answer(self, states: States, images: Tensor, **kwargs: Any) -> Any:
        """The model's own output; `images` have the shape of those that were embedded, and nothing in them."""

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
            InputError: a word that the host does not know, or that needs what a sieved model does not have.
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
                f"{self.name} embeds {prod(grid)} patches as {x.shape[1]} tokens, so that none is known."
            )
        return Tokens(x, self.prefix, grid, table=self.table(images))

    def embedded(self, images: Tensor) -> Tensor:
        """Images in the embeddings' own precision -> tokens (B, prefix + P, d), prefix first."""
        return self.holder.embeddings(images)

    def table(self, images: Tensor) -> Tensor | None:
        """The positional table over the whole grid of patches, where there is one."""
        rope = getattr(self.holder, "rope_embeddings", None)
        return None if rope is None else torch.stack(rope(images))

    def features(self, tokens: Tokens) -> Tokens:
        return replace(tokens, x=self.norm(tokens.x))

    def head(self, tokens: Tokens) -> Any:
        raise NotImplementedError("a model for dense prediction is read level by level")

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
            # an older DPT gives them wherever its config asks, also where the call says no
            return type(output)(**{name: value for name, value in output.items() if name != "hidden_states"})
        return output


def blank(x: Tensor, size: Sequence[int]) -> Tensor:
    """Images (B, 3, H, W) of which nothing but their shape is read, of as many as x."""
    return x.new_zeros(()).expand(x.shape[0], 3, *size)


def any_state(states: States) -> Tensor:
    """Any of the states: only its shape is read."""
    return next(state for state in states if state is not None)


def encoder_output(states: States, **_kwargs: Any) -> Any:
    """The output of an encoder: a `ModelOutput` with these states."""
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=states[-1], hidden_states=tuple(states))


class HFBackbone(HFDense):
    """A backbone whose config names the stages of which it returns maps; a stage is a layer."""

    def read_levels(self) -> Sequence[int]:
        return [self.model.stage_names.index(name) - 1 for name in self.model.out_features]


@register_host(
    "transformers.models.Dinov2Backbone",
    "transformers.models.Dinov2WithRegistersBackbone",
)
class HFDinov2Backbone(HFBackbone):
    """Maps of several layers, each through the final norm where the config says so."""

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
    """The same with rotary positions; the last layer's map is always normed."""

    path = "model.layer"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.norm = model.norm

    def read_levels(self) -> Sequence[int]:
        return [*super().read_levels(), len(self.blocks) - 1]  # its `last_hidden_state` is that of the last layer

    def answer(self, states: States, images: Tensor, **kwargs: Any) -> Any:
        model = self.model
        return WithParts(
            model,
            embeddings=StandIn(model.embeddings, lambda **_kwargs: any_state(states)),
            rope_embeddings=StandIn(model.rope_embeddings, lambda **_kwargs: None),
            model=StandIn(model.model, lambda **_kwargs: encoder_output(states)),
            norm=lambda state: None if state is None else model.norm(state),  # it also norms states that are not read
        )(images, **kwargs)


@register_host("transformers.models.DPTForSemanticSegmentation")
class HFDPT(HFDense):
    """DPT over its own vision transformer: four layers' states, its neck and a head for classes or depth."""

    def holder_of(self, model: Any) -> Any:
        if model.config.is_hybrid:
            raise UnsupportedHost(
                f"{self.name} is a hybrid, whose head reads maps of its convolutional stem too: a DPT without "
                "is_hybrid can be sieved."
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

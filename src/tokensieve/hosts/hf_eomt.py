"""transformers' EoMT, over DINOv2 and over DINOv3: segmenters whose last layers read queries beside the patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedHost
from .checks import check_size
from .hf_calls import StandIn, WithParts, pair, refuse
from .hf_dense import HFDense, States
from .registry import register_host


@register_host(
    "transformers.models.EomtForUniversalSegmentation",
    "transformers.models.EomtDinov3ForUniversalSegmentation",
)
class HFEomt(HFDense):
    """The layers before the queries enter; all patches are put back on the grid in front of the others, since masks of
    all patches say there what each query attends to."""

    path = "layers"

    def __init__(self, model: Any) -> None:
        self.first = model.config.num_hidden_layers - model.config.num_blocks
        if self.first < 1:
            raise UnsupportedHost(
                f"{type(model).__name__} reads its queries from the first layer on (num_blocks is "
                f"{model.config.num_blocks} of {model.config.num_hidden_layers}): tokens are reduced before that alone."
            )
        super().__init__(model)
        self.blocks = self.blocks[: self.first]
        self.norm = model.layernorm

    def read_levels(self) -> Sequence[int]:
        return [self.first - 1]

    def arguments(self, images: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """As of other models for dense prediction; images have the one size that the model reads."""
        refuse(self.model, kwargs, "output_hidden_states", "whose last layers read queries too")
        images, kwargs = super().arguments(images, kwargs)
        if images.ndim == 4:
            check_size(self.model, images, pair(self.model.config.image_size))
        return images, kwargs

    def embedded(self, images: Tensor) -> Tensor:
        x = self.model.embeddings(images)
        return self.model.dropout(x) if hasattr(self.model, "dropout") else x

    def table(self, images: Tensor) -> Tensor | None:
        rope = getattr(self.model, "rope_embeddings", None)
        # as the model calls it, whose layers take positions in the precision of the tokens
        return None if rope is None else torch.stack(rope(images.to(next(self.model.embeddings.parameters()).dtype)))

    def answer(self, states: States, images: Tensor, output_hidden_states: bool = False, **kwargs: Any) -> Any:
        model, restored = self.model, states[self.first]
        parts: dict[str, Any] = {
            "embeddings": StandIn(model.embeddings, lambda **_kwargs: restored),
            "layers": [_passed] * self.first + list(model.layers[self.first :]),
        }
        if hasattr(model, "dropout"):
            parts["dropout"] = nn.Identity()
        return WithParts(model, **parts)(images, **kwargs)


def _passed(x: Tensor, *_inputs: Any, **_kwargs: Any) -> Tensor:
    """A stand-in for a layer that has run already."""
    return x

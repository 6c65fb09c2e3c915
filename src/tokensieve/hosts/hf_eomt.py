"""transformers' EoMT with DINOv2 or DINOv3: segmenters whose last layers process mask queries with the patches."""

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
    """EoMT. Tokens are reduced only in the layers before the queries enter. All patches are then put back on the grid,
    because the later layers restrict each query's attention by a mask over all patches."""

    path = "layers"

    def __init__(self, model: Any) -> None:
        self.first = model.config.num_hidden_layers - model.config.num_blocks
        if self.first < 1:
            raise UnsupportedHost(
                f"{type(model).__name__} reads its queries from the first layer on (num_blocks is "
                f"{model.config.num_blocks} of {model.config.num_hidden_layers}): tokens can be reduced only before "
                "the queries enter."
            )
        super().__init__(model)
        self.blocks = self.blocks[: self.first]
        self.norm = model.layernorm

    def read_levels(self) -> Sequence[int]:
        return [self.first - 1]

    def arguments(self, images: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """As `HFDense.arguments`; images must also have the size of the model's config."""
        refuse(self.model, kwargs, "output_hidden_states", "since its last layers process queries too")
        images, kwargs = super().arguments(images, kwargs)
        if images.ndim == 4:
            check_size(self.model, images, pair(self.model.config.image_size))
        return images, kwargs

    def embedded(self, images: Tensor) -> Tensor:
        x = self.model.embeddings(images)
        return self.model.dropout(x) if hasattr(self.model, "dropout") else x

    def table(self, images: Tensor) -> Tensor | None:
        rope = getattr(self.model, "rope_embeddings", None)
        # in the dtype of the tokens, as in the model's own forward
        return None if rope is None else torch.stack(rope(images.to(next(self.model.embeddings.parameters()).dtype)))

    def answer(self, states: States, images: Tensor, output_hidden_states: bool = False, **kwargs: Any) -> Any:
        model, restored = self.model, states[self.first]
        parts: dict[str, Any] = {
            "embeddings": StandIn(model.embeddings, lambda **_kwargs: restored),
            "layers": [_skipped_layer] * self.first + list(model.layers[self.first :]),
        }
        if hasattr(model, "dropout"):
            parts["dropout"] = nn.Identity()
        return WithParts(model, **parts)(images, **kwargs)


def _skipped_layer(x: Tensor, *_inputs: Any, **_kwargs: Any) -> Tensor:
    """Stands in for a layer that has already run; returns its input."""
    return x

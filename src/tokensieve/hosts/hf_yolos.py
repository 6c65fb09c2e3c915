"""transformers' YOLOS: a detector that predicts boxes from detection tokens, which are prefix tokens here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._frozen import replace
from ..errors import UnsupportedHost
from ..tokens import Tokens
from .hf_block import HFBlock
from .hf_calls import StandIn, WithParts, is_transformers
from .hf_dense import HFDense, States, encoder_output
from .registry import register_host


class HFYolosBlock(HFBlock):
    """A layer of YOLOS; the encoder may add position embeddings again before each layer but the first."""

    def __init__(self, layer: Any, prefix: int, index: int, mid_positions: Any) -> None:
        super().__init__(layer, prefix)
        self.index, self.mid_positions = index, mid_positions

    def enter(self, tokens: Tokens) -> Tokens:
        """Add the position embeddings learned for this layer; each token gets those of its position on the grid."""
        if self.mid_positions is None or self.index == 0:
            return tokens
        assert tokens.table is not None
        prefix_table, patches = self.mid_positions[self.index - 1], tokens.table[self.index - 1]
        prefix = torch.cat([prefix_table[:, :1], prefix_table[:, 1 - self.prefix :]], dim=1).expand(
            tokens.x.shape[0], -1, -1
        )
        if tokens.positions is None:
            patches = patches[: tokens.x.shape[1] - self.prefix].expand(tokens.x.shape[0], -1, -1)
        else:
            patches = patches[tokens.positions]
        return replace(tokens, x=tokens.x + torch.cat([prefix, patches], dim=1).to(tokens.x.dtype))

    def __call__(self, tokens: Tokens) -> Tensor:
        if not tokens.whole:
            return self.layer(tokens.x)
        # in the model's own token order, so that the result is bit-equal to the dense model
        return ordered(self.layer(reordered(tokens.x, self.prefix)), self.prefix)


@register_host("transformers.models.YolosForObjectDetection")
class HFYolos(HFDense):
    """YOLOS. Token order here: class token, detection tokens, patches; the model itself has detection tokens last."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.norm = self.holder.layernorm

    def holder_of(self, model: Any) -> Any:
        if not is_transformers(model.vit) or type(model.vit).__name__ != "YolosModel":
            raise UnsupportedHost(f"{self.name} holds a {type(model.vit).__name__}, for which no opener is written.")
        return model.vit

    def block(self, index: int, layer: Any) -> HFYolosBlock:
        return HFYolosBlock(layer, self.prefix, index, self._mid_positions()[0])

    def read_levels(self) -> Sequence[int]:
        return [len(self.blocks) - 1]

    def embedded(self, images: Tensor) -> Tensor:
        return ordered(self.holder.embeddings(images), self.prefix)

    def table(self, images: Tensor) -> Tensor | None:
        """Position embeddings of the patches that are added between layers: (L - 1, P, d), or None."""
        table, arguments = self._mid_positions()
        if table is None:
            return None
        return self.holder.encoder.interpolation(*arguments, tuple(images.shape[2:]))[:, 0, 1 : 1 - self.prefix]

    def _mid_positions(self) -> tuple[Any, list[Any]]:
        """The position embeddings added between layers, (L - 1, 1, 1 + P + D, d) or None; and the first arguments of
        the encoder's `interpolation`: these embeddings, or nothing where `interpolation` itself holds them (an older
        transformers)."""
        encoder = self.holder.encoder
        if hasattr(encoder, "mid_position_embeddings"):
            return encoder.mid_position_embeddings, [encoder.mid_position_embeddings]
        return getattr(encoder.interpolation, "mid_position_embeddings", None), []

    def answer(self, states: States, images: Tensor, **kwargs: Any) -> Any:
        model_order = [None if state is None else reordered(state, self.prefix) for state in states]

        def encoded(output_hidden_states: bool, **_kwargs: Any) -> Any:
            output = encoder_output(model_order)
            output.last_hidden_state = self.norm(model_order[-1])
            output.hidden_states = output.hidden_states if output_hidden_states else None
            return output

        return WithParts(self.model, vit=StandIn(self.holder, encoded))(images, **kwargs)


def ordered(x: Tensor, prefix: int) -> Tensor:
    """The model's order (class token, patches, detection tokens) -> class token, detection tokens, patches."""
    return torch.cat([x[:, :1], x[:, 1 - prefix :], x[:, 1 : 1 - prefix]], dim=1)


def reordered(x: Tensor, prefix: int) -> Tensor:
    """The inverse of `ordered`: back to the model's own order."""
    return torch.cat([x[:, :1], x[:, prefix:], x[:, 1:prefix]], dim=1)

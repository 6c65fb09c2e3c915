"""transformers' BEiT as a backbone and as a segmenter; its attention adds a relative position bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .._frozen import replace
from ..attention import BlockQKV
from ..errors import UnsupportedHost
from ..tokens import Tokens
from .hf_block import HFBlock
from .hf_calls import StandIn, WithParts, is_transformers
from .hf_dense import HFBackbone, HFDense, States, encoder_output
from .pair_bias import gathered
from .registry import register_host


class HFBeitBlock(HFBlock):
    """A layer of transformers' BEiT. Its relative position bias can be the layer's, shared by all layers, both or none.

    A patch keeps the bias of its position; a merged token has that of the token it was merged into.
    """

    def __init__(self, layer: Any, prefix: int, shared: Any, patch: int) -> None:
        super().__init__(layer, prefix)
        self.shared, self.patch = shared, patch
        self.layer_bias = getattr(layer, "relative_position_bias", None)
        self.by_token = not self.biased
        # Called as a whole, a layer adds the bias of the whole grid, so it cannot take fewer tokens: it must be opened.
        if self.biased and self.closed:
            raise UnsupportedHost(f"BEiT cannot be sieved: {self.closed}.")

    @property
    def biased(self) -> bool:
        return self.layer_bias is not None or self.shared is not None

    def __call__(self, tokens: Tokens) -> Tensor:
        if not self.biased or tokens.whole:
            height, width = (side * self.patch for side in tokens.grid)
            shared = None if self.shared is None else self.shared(tokens.grid)
            return self.layer(tokens.x, attention_mask=shared, resolution=(height, width))
        attention = self.qkv(tokens)
        return self.rest(attention.attend(), attention, tokens.x)

    def qkv(self, tokens: Tokens, query_rows: Tensor | None = None) -> BlockQKV:
        attention = super().qkv(tokens, query_rows)
        if not self.biased:
            return attention
        biases = [bias(tokens.grid) for bias in (self.layer_bias, self.shared) if bias is not None]
        return replace(attention, bias=gathered(sum(biases)[0], tokens, query_rows))

    def _add_residual(self, x: Tensor, out: Tensor, branch: int) -> Tensor:
        layer = self.layer
        return x + layer.drop_path((layer.lambda_1, layer.lambda_2)[branch] * layer.dropout(out))


class _HFBeit(HFDense):
    """A model whose layers are in a `BeitModel`."""

    path = "layers"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.norm = self.holder.layernorm
        shared, layers = self.holder.shared_position_bias, self.holder.layers
        if any(bias is not None for bias in (shared, *(layer.relative_position_bias for layer in layers))):
            self.cannot_drop_prefix = "its blocks add a bias to pairs of tokens, the class token among them"

    def holder_of(self, model: Any) -> Any:
        if not is_transformers(model.beit) or type(model.beit).__name__ != "BeitModel":
            raise UnsupportedHost(f"{self.name} holds a {type(model.beit).__name__}, for which no opener is written.")
        return model.beit

    def block(self, index: int, layer: Any) -> HFBeitBlock:
        return HFBeitBlock(layer, self.prefix, self.holder.shared_position_bias, self.holder.config.patch_size)

    def arguments(self, images: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        # the bias is always computed for the grid of these images, so this argument would change nothing
        kwargs.pop("interpolate_pos_encoding", None)
        return super().arguments(images, kwargs)

    def answer(self, states: States, images: Tensor, **kwargs: Any) -> Any:
        return WithParts(self.model, beit=StandIn(self.holder, lambda **_kwargs: encoder_output(states)))(
            images, **kwargs
        )


@register_host("transformers.models.BeitBackbone")
class HFBeitBackbone(_HFBeit, HFBackbone):
    """BEiT as a backbone: maps of several layers, resized to four scales if the config's `add_fpn` is set."""


@register_host("transformers.models.BeitForSemanticSegmentation")
class HFBeitSegmenter(_HFBeit):
    """BEiT for semantic segmentation: an UperNet head on the maps of four layers, resized to four scales."""

    def read_levels(self) -> Sequence[int]:
        return [index - 2 for index in self.model.config.out_indices]  # index 1 is the input of block 0

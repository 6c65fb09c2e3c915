"""transformers' V-JEPA 2: rotary positions in time and space, a predictor after the encoder, attention pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._frozen import replace
from ..data.inputs import InputSpec
from ..errors import InputError
from ..tokens import Tokens
from .hf_block import KERNELS
from .hf_calls import pair
from .hf_video import HFVideo
from .hf_vit import Encoder, Wrapper
from .pooling import key_bias
from .registry import register_host

ENCODERS = {"VJEPA2Model": Encoder("encoder.layer", "encoder.layernorm", prefix=0, pooling="none", fixed=False)}
WRAPPERS = {"VJEPA2ForVideoClassification": Wrapper("vjepa2", reads_prefix=False)}
MASKING = KERNELS[:3]
"""Attention implementations that take a floating-point mask, as needed to weight merged tokens by size."""


@register_host(*(f"transformers.models.{name}" for name in (*ENCODERS, *WRAPPERS)))
class HFVJEPA2(HFVideo):
    """V-JEPA 2's encoder for clips (B, T, C, H, W) of any size, alone or in a classifier.

    The predictor needs the encoder's output at every position: it runs only if every patch still has its own token.
    Otherwise it is skipped, as by the host's own `skip_predictor=True`.
    """

    encoders: ClassVar[Mapping[str, Encoder]] = ENCODERS
    wrappers: ClassVar[Mapping[str, Wrapper]] = WRAPPERS

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        if self.wrapper is None:
            self.kwargs = ("skip_predictor",)
        kernel = getattr(model.config, "_attn_implementation", None)
        if self.wrapper is not None and kernel not in MASKING:
            self.cannot_merge = (
                f'its attention pooling runs as "{kernel}", which cannot weigh merged tokens by size '
                '(after model.set_attn_implementation("sdpa") it can)'
            )

    @property
    def input_spec(self) -> InputSpec:
        config = self.encoder.config
        return InputSpec((config.frames_per_clip, config.in_chans, *self._image_size()), self.layout)

    @property
    def projection(self) -> Any:
        return self.encoder.encoder.embeddings.patch_embeddings.proj

    def embed(self, images: Tensor) -> Tokens:
        tokens = super().embed(self._long_enough(images))
        return replace(tokens, table=_rotary_rows(self.encoder.encoder.layer[0].attention, tokens.x))

    def embedded(self, clips: Tensor) -> Tensor:
        return self.encoder.encoder.embeddings(clips)

    def covered(self, images: Tensor, grid: Sequence[int]) -> Tensor:
        return super().covered(self._long_enough(images), grid)

    def head(self, tokens: Tokens, *, skip_predictor: bool | None = None, **kwargs: Any) -> Any:
        if self.wrapper is not None:
            return super().head(tokens, **kwargs)
        if skip_predictor is False and not tokens.whole:
            raise InputError(
                "skip_predictor=False is not possible with this recipe: VJEPA2Model's predictor reads the encoder's "
                "output at every position, and the recipe drops or merges some. Use the dense model."
            )
        output = super().head(replace(tokens, source=None), **{**kwargs, "return_dict": True})
        if tokens.whole and not skip_predictor:
            output.predictor_output = self._predicted(tokens.x)
        requested = kwargs.get("return_dict")
        return output if (self.model.config.return_dict if requested is None else requested) else output.to_tuple()

    def _output(self, tokens: Tokens, hidden: tuple[Tensor, ...] | None) -> Any:
        from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2WithMaskedInputModelOutput as Output

        return Output(last_hidden_state=tokens.x, masked_hidden_state=tokens.x, hidden_states=hidden)

    def _predicted(self, x: Tensor) -> Any:
        """The predictor's output for all positions, computed from all positions, as the host calls it by default."""
        from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2WithMaskedInputPredictorOutput as Output

        all_positions = [torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)]
        predicted = self.encoder.predictor(
            encoder_hidden_states=x, context_mask=all_positions, target_mask=all_positions
        )
        return Output(last_hidden_state=predicted.last_hidden_state, target_hidden_state=x)

    def _replaced_parts(self, tokens: Tokens) -> dict[str, Any]:
        return {} if tokens.counted is None else {"pooler": partial(_pool_weighed, self.model.pooler, tokens)}

    def _long_enough(self, images: Tensor) -> Tensor:
        """Repeat a clip that has fewer frames than a patch, as the host does."""
        if images.ndim != 5 or images.shape[1] >= self.projection.stride[0]:
            return images
        return images.repeat(1, self.projection.stride[0], 1, 1, 1)

    def _check_size(self, images: Tensor, interpolates: bool) -> None:
        if interpolates or (images.ndim == 5 and min(*images.shape[3:]) < max(self.projection.stride[1:])):
            raise InputError(
                f"Clips have shape {tuple(images.shape)}; {type(self.model).__name__} reads at least one patch of "
                f"{self.projection.stride[1]} x {self.projection.stride[2]} pixels, and does not take "
                "interpolate_pos_encoding=."
            )

    def _image_size(self) -> tuple[int, int]:
        return pair(self.encoder.config.crop_size)


def _rotary_rows(attention: Any, x: Tensor) -> Tensor:
    """(2, N, d_h) cosines and sines of the rotary embedding for every patch.

    The channels of a head are divided among frame, row and column of the patch, about a third each; each third has its
    frequencies twice. Channels left over are not rotated.
    """
    cos, sin = [], []
    position_ids = attention.get_position_ids(x)
    for positions, width in zip(position_ids, (attention.d_dim, attention.h_dim, attention.w_dim), strict=True):
        frequency = 1 / 10000 ** (torch.arange(width // 2, dtype=x.dtype, device=x.device) / (width / 2))
        angle = positions[:, None] * frequency
        cos += [angle.cos()] * 2
        sin += [angle.sin()] * 2
    unrotated = attention.attention_head_size - sum(part.shape[1] for part in cos)
    ones = torch.ones(x.shape[1], unrotated, dtype=x.dtype, device=x.device)
    return torch.stack([torch.cat([*cos, ones], dim=1), torch.cat([*sin, torch.zeros_like(ones)], dim=1)])


def _pool_weighed(pooler: Any, tokens: Tokens, _x: Tensor) -> Tensor:
    """The host's attention pooling with log(size) added to the logits of its keys: (B, N, d) -> (B, d)."""
    x, mask = tokens.x, key_bias(tokens)
    mask = None if mask is None else mask[:, None, None, :]
    for layer in pooler.self_attention_layers:
        x = layer(x, attention_mask=None if mask is None else mask.expand(-1, -1, x.shape[1], -1))[0]
    queries = pooler.query_tokens.repeat(x.shape[0], 1, 1)
    return pooler.cross_attention_layer(queries, x, mask)[0].squeeze(1)

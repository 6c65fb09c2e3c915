"""Maps the names of weights in mmaction2's checkpoints of VideoMAE to transformers' names.

mmaction2                                        transformers
backbone.patch_embed.projection                  videomae.embeddings.patch_embeddings.projection
backbone.blocks.B.norm1, norm2                   videomae.encoder.layer.B.layernorm_before, layernorm_after
    ... attn.qkv (weight alone, (3C, C))             attention.attention.query, key, value
    ... attn.q_bias, attn.v_bias                     attention.attention.query, value (bias)
    ... attn.proj                                    attention.output.dense
    ... mlp.layers.0.0, mlp.layers.1                 intermediate.dense, output.dense
backbone.fc_norm                                 fc_norm
cls_head.fc_cls                                  classifier
backbone.pos_embed                               computed by the model; another table is refused

"backbone." may be missing. The prefixes "module." and "model." are ignored if all names have them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import InputError
from .video_keys import unwrapped

EPS = 1e-6
"""Epsilon of all norms in mmaction2; in transformers it is 1e-12, and 1e-5 in the norm after pooling."""
POSITIONS = "pos_embed"
_OUTSIDE = {
    "patch_embed.projection": "videomae.embeddings.patch_embeddings.projection",
    "fc_norm": "fc_norm",
    "cls_head.fc_cls": "classifier",
}
_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.layers.0.0": "intermediate.dense",
    "mlp.layers.1": "output.dense",
}
_BIASES = {"attn.q_bias": "query", "attn.v_bias": "value"}


def is_mmaction2(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is of mmaction2's VideoMAE, with or without a classifier."""
    return "blocks.0.attn.qkv.weight" in unwrapped(state)


def from_mmaction2(state: Mapping[str, Tensor], positions: Tensor) -> dict[str, Tensor]:
    """The same weights under transformers' names. Names unknown in mmaction2's VideoMAE stay unchanged.

    Args:
        state: the state dict of the checkpoint.
        positions: (1, N, C), the position table that the model computes.

    Raises:
        InputError: the checkpoint has another position table, such as for another number of frames, or a learned one.
    """
    converted: dict[str, Tensor] = {}
    for name, value in unwrapped(state).items():
        module, _, parameter = name.rpartition(".")
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if name == POSITIONS:
            _check_positions(value, positions)
        elif block is None:
            converted[f"{_OUTSIDE[module]}.{parameter}" if module in _OUTSIDE else name] = value
        else:
            layer, part = f"videomae.encoder.layer.{block[1]}", block[2]
            inner = part.rpartition(".")[0]
            if part == "attn.qkv.weight":
                for projection, weight in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    converted[f"{layer}.attention.attention.{projection}.weight"] = weight
            elif part in _BIASES:
                converted[f"{layer}.attention.attention.{_BIASES[part]}.bias"] = value
            else:
                converted[f"{layer}.{_BLOCK[inner]}.{parameter}" if inner in _BLOCK else name] = value
    return converted


def _check_positions(published: Tensor, expected: Tensor) -> None:
    if published.shape != expected.shape:
        raise InputError(
            f"The checkpoint is for {published.shape[1]} patches of width {published.shape[2]}, and the model reads "
            f"{expected.shape[1]} of width {expected.shape[2]}: pass the checkpoint's image_size, num_frames and "
            "hidden_size."
        )
    if not torch.allclose(published.float(), expected.float().to(published.device), atol=1e-4):
        raise InputError(
            "The checkpoint's positions were learned, but transformers' VideoMAE computes its positions: this "
            "checkpoint cannot be used."
        )

"""transformers' vision layers as hosts' blocks, split between attention and MLP so that a method can act there.

This file does not import transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..attention import BlockQKV
from ..tokens import Tokens, rows
from .base import HostBlock
from .checks import unknown_block
from .hf_calls import is_transformers

KERNELS = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
"""Values of transformers' `_attn_implementation` that all compute standard attention; others may compute something
else. None: not set."""


@dataclass(frozen=True)
class LayerParts:
    """Where the parts of one class of layers are: names of attributes, dotted paths from the layer where noted."""

    attention_class: str
    """Class name of the attention module."""
    attention_path: str = "attention"
    """Path of the attention module, which has the projections of queries, keys and values."""
    norm1: str = "norm1"
    """Name of the norm before attention."""
    norm2: str = "norm2"
    """Name of the norm before the MLP."""
    projections: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj")
    """Names of the linear layers of queries, keys and values in the attention module."""
    output_projection: str = "attention.o_proj"
    """Path of the linear layer after attention."""
    head_size: str = "head_dim"
    """Name, in the attention module, of the number of channels of a head."""
    scaling: str = "scaling"
    """Name, in the attention module, of the factor on the logits."""
    dropout: str = "attention_dropout"
    """Name, in the attention module, of the dropout rate of the attention probabilities."""
    layer_scales: tuple[str, ...] = ()
    """Names of the layer scales after attention and after the MLP; empty if there are none."""
    drop_path: str | None = None
    """Name of the drop path, applied before each of the two residual additions."""
    mlp: tuple[str, ...] = ("mlp",)
    """Name of the MLP, or names of its two halves, of which the second adds the residual itself."""
    rotary: Literal["half", "pairs"] | None = None
    """Which channels rotary embedding rotates together: channel i with i + half the width, or neighbouring pairs."""
    older: bool = False
    """Whether the layer has an earlier form, which some classes still have: the attention module is inside another
    module, which has the output projection; the layer takes no attention mask, and its output projection takes a second
    argument that it ignores."""


def _vit(name: str) -> LayerParts:
    return LayerParts(f"{name}Attention", norm1="layernorm_before", norm2="layernorm_after", drop_path="dropout")


def _dino(name: str, dropout: str = "attention_dropout", rotary: Literal["half"] | None = None) -> LayerParts:
    layer_scales = ("layer_scale1", "layer_scale2")
    return LayerParts(
        f"{name}Attention", dropout=dropout, layer_scales=layer_scales, drop_path="drop_path", rotary=rotary
    )


def _older(attention_class: str, **others: Any) -> LayerParts:
    """The parts of layers in the older form, see `LayerParts.older`."""
    return LayerParts(
        attention_class,
        attention_path="attention.attention",
        projections=("query", "key", "value"),
        output_projection="attention.output",
        head_size="attention_head_size",
        dropout="dropout_prob",
        older=True,
        **others,
    )


def _older_dino(name: str) -> LayerParts:
    return _older(f"{name}SelfAttention", layer_scales=("layer_scale1", "layer_scale2"), drop_path="drop_path")


def _clip(name: str) -> LayerParts:
    return LayerParts(
        f"{name}Attention",
        attention_path="self_attn",
        norm1="layer_norm1",
        norm2="layer_norm2",
        output_projection="self_attn.out_proj",
        scaling="scale",
        dropout="dropout",
    )


def _older_vit(name: str) -> LayerParts:
    return _older(
        f"{name}SelfAttention", norm1="layernorm_before", norm2="layernorm_after", mlp=("intermediate", "output")
    )


LAYERS: dict[str, tuple[LayerParts, ...]] = {
    "ViTLayer": (_vit("ViT"),),
    "DeiTLayer": (_vit("DeiT"),),
    "ViTMAELayer": (_vit("ViTMAE"),),
    # in transformers up to 5.13 these have the older form
    **{f"{name}Layer": (_older_dino(name), _dino(name)) for name in ("Dinov2", "Dinov2WithRegisters")},
    "DINOv3ViTLayer": (_dino("DINOv3ViT", "dropout", rotary="half"),),
    "EomtLayer": (replace(_dino("Eomt", "dropout"), output_projection="attention.out_proj", scaling="scale"),),
    "EomtDinov3Layer": (_dino("EomtDinov3", "dropout", rotary="half"),),
    "BeitLayer": (replace(_vit("Beit"), drop_path=None),),
    "DPTViTLayer": (_older_vit("DPT"),),
    "YolosLayer": (_older_vit("Yolos"),),
    "CLIPEncoderLayer": (_clip("CLIP"),),
    "SiglipEncoderLayer": (_clip("Siglip"),),
    # models of video
    "VideoMAELayer": (_older_vit("VideoMAE"),),
    "VivitLayer": (_vit("Vivit"),),
    "VJEPA2Layer": (
        LayerParts(
            "VJEPA2RopeAttention",
            projections=("query", "key", "value"),
            output_projection="attention.proj",
            head_size="attention_head_size",
            dropout="dropout_prob",
            drop_path="drop_path",
            rotary="pairs",
        ),
    ),
}
"""Class name of a layer -> the forms that it has in different releases of transformers. The first form applies whose
attention module exists in the layer."""


class HFBlock(HostBlock):
    """A layer of a transformers vision encoder. Types are matched exactly: a subclass may compute something else.

    Args:
        layer: the layer.
        prefix: number of class, distillation and register tokens in front of the patch tokens.
    """

    checkpoints_itself = True

    def __init__(self, layer: Any, prefix: int) -> None:
        self.layer, self.prefix = layer, prefix
        self.checkpoints = layer.training and getattr(layer, "gradient_checkpointing", False)
        forms = LAYERS.get(type(layer).__name__, (LayerParts(""),))
        matching = (parts for parts in forms if None not in _modules_along(layer, parts.attention_path))
        self.parts = next(matching, forms[-1])
        self.by_token = self.parts.rotary is None
        modules = _modules_along(layer, self.parts.attention_path)
        self.bypassed = [layer, *(module for module in modules if module is not None)]
        attention: Any = self.bypassed[-1]
        kernel = getattr(getattr(attention, "config", None), "_attn_implementation", None)
        if not is_transformers(layer) or type(layer).__name__ not in LAYERS:
            self.closed = unknown_block(layer)
        elif not is_transformers(attention) or type(attention).__name__ != self.parts.attention_class:
            self.closed = (
                f"its attention {type(attention).__name__} is unknown here (known: {self.parts.attention_class})"
            )
        elif kernel not in KERNELS:
            self.closed = (
                f'its attention runs as "{kernel}", which may compute something else than standard attention: '
                'call model.set_attn_implementation("sdpa") first'
            )

    def __call__(self, tokens: Tokens) -> Tensor:
        if self.parts.rotary == "pairs":  # such a layer computes its rotary embedding from the positions
            return self.layer(tokens.x, tokens.positions)[0]
        if self.parts.rotary == "half":
            return self.layer(tokens.x, None, position_embeddings=self._rope(tokens))
        return self.layer(tokens.x) if self.parts.older else self.layer(tokens.x, None)

    def qkv(self, tokens: Tokens, query_rows: Tensor | None = None) -> BlockQKV:
        parts, attention = self.parts, self._part(self.parts.attention_path)
        x = getattr(self.layer, parts.norm1)(tokens.x)
        query_input = x if query_rows is None else rows(x, query_rows)
        query, key, value = (getattr(attention, name) for name in parts.projections)
        head_shape = (-1, getattr(attention, parts.head_size))
        q, k, v = (
            projected.unflatten(2, head_shape).transpose(1, 2) for projected in (query(query_input), key(x), value(x))
        )
        keys = k  # before rotary embedding, see `BlockQKV.keys`
        if parts.rotary:
            cos, sin = self._rope(tokens)
            k = self._rotate(k, cos, sin)
            if query_rows is not None:
                cos, sin = (_table_rows(table, query_rows[:, self.prefix :] - self.prefix) for table in (cos, sin))
            q = self._rotate(q, cos, sin)
        dropout = getattr(attention, parts.dropout) if attention.training else 0.0
        return BlockQKV(q, k, v, keys, dropout=dropout, scale=getattr(attention, parts.scaling))

    def attention_out(self, attended: Tensor, attention: BlockQKV, x: Tensor) -> Tensor:
        project, attended = self._part(self.parts.output_projection), attended.transpose(1, 2).flatten(2)
        return self._add_residual(x, project(attended, attended) if self.parts.older else project(attended), 0)

    def mlp(self, x: Tensor) -> Tensor:
        first, *second = (getattr(self.layer, name) for name in self.parts.mlp)
        y = first(getattr(self.layer, self.parts.norm2)(x))
        return second[0](y, x) if second else self._add_residual(x, y, 1)

    def _part(self, path: str) -> Any:
        return _part(self.layer, path)

    def _add_residual(self, x: Tensor, out: Tensor, branch: int) -> Tensor:
        """x + drop_path(layer_scale(out)), all (B, N, d); `branch` is 0 for attention, 1 for the MLP."""
        if self.parts.layer_scales:
            out = getattr(self.layer, self.parts.layer_scales[branch])(out)
        if self.parts.drop_path is not None:
            out = getattr(self.layer, self.parts.drop_path)(out)
        return x + out

    def _rope(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Cosines and sines at the positions of the n patch tokens, for the D channels of a head.

        (P, D), the host's table of the whole grid, if `tokens.positions` is None; else (B, 1, n, D).
        """
        assert tokens.table is not None
        cos, sin = tokens.table
        if tokens.positions is None:
            return cos, sin
        return cos[tokens.positions].unsqueeze(1), sin[tokens.positions].unsqueeze(1)

    def _rotate(self, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary embedding of queries or keys (B, H, N, D) on all but the prefix tokens."""
        patches = heads[:, :, self.prefix :]
        if self.parts.rotary == "pairs":
            even, odd = patches.unflatten(-1, (-1, 2)).unbind(-1)
            quarter_turn = torch.stack([-odd, even], dim=-1).flatten(-2)
        else:
            first_half, second_half = patches.chunk(2, dim=-1)
            quarter_turn = torch.cat([-second_half, first_half], dim=-1)
        rotated = patches * cos + quarter_turn * sin
        return torch.cat([heads[:, :, : self.prefix], rotated], dim=2)


def _part(layer: Any, path: str) -> Any:
    """The sub-module of a layer at a dotted path, or None if it does not exist."""
    for name in path.split("."):
        layer = getattr(layer, name, None)
    return layer


def _modules_along(layer: Any, path: str) -> list[Any]:
    """The modules along a dotted path, from the layer (excluded) to its end.

    All entries after a module that is missing, or is not of a class of transformers, are None.
    """
    modules = [layer]
    for name in path.split("."):
        modules.append(getattr(modules[-1], name, None) if is_transformers(modules[-1]) else None)
    return modules[1:]


def _table_rows(table: Tensor, query_rows: Tensor) -> Tensor:
    """A table of `_rope`, (P, D) or (B, 1, n, D) -> its rows `query_rows` (B, M) int64: (B, 1, M, D)."""
    return (table[query_rows] if table.ndim == 2 else rows(table[:, 0], query_rows)).unsqueeze(1)

"""transformers' vision layers, split between attention and MLP. This file does not import transformers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..attention import BlockQKV
from ..tokens import Tokens, rows
from .base import HostBlock
from .hf_calls import is_transformers

KERNELS = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
"""Attention implementations of transformers that all compute standard attention; others may compute something else."""


@dataclass(frozen=True)
class Seam:
    """The attribute names of the parts of one class of layers. Dotted names start at the layer."""

    attention: str
    """Class name of the attention module."""
    inner: str = "attention"
    """Path of the attention module; in older layers it is inside another module, which has the output projection."""
    before: str = "norm1"
    """Name of the norm before attention."""
    after: str = "norm2"
    """Name of the norm before the MLP."""
    projections: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj")
    out: str = "attention.o_proj"
    head_size: str = "head_dim"
    scaling: str = "scaling"
    dropout: str = "attention_dropout"
    scales: tuple[str, ...] = ()
    """Names of the layer scales after attention and after the MLP."""
    drop: str | None = None
    """Name of the drop path, applied before each of the two residual additions."""
    mlp: tuple[str, ...] = ("mlp",)
    """Name of the MLP, or names of its two halves, of which the second adds the residual itself."""
    rotary: Literal["half", "pairs"] | None = None
    """Which channels rotary embedding rotates together: channel i with i + half the width, or neighbouring pairs."""
    older: bool = False
    """The layer takes no mask argument, and its output projection takes its input twice."""


def _vit(name: str) -> Seam:
    return Seam(f"{name}Attention", before="layernorm_before", after="layernorm_after", drop="dropout")


def _dino(name: str, dropout: str = "attention_dropout", rotary: Literal["half"] | None = None) -> Seam:
    scales = ("layer_scale1", "layer_scale2")
    return Seam(f"{name}Attention", dropout=dropout, scales=scales, drop="drop_path", rotary=rotary)


def _older(attention: str, **parts: Any) -> Seam:
    """Layers whose attention module is inside another module, which has the output projection."""
    return Seam(
        attention,
        inner="attention.attention",
        projections=("query", "key", "value"),
        out="attention.output",
        head_size="attention_head_size",
        dropout="dropout_prob",
        older=True,
        **parts,
    )


def _older_dino(name: str) -> Seam:
    return _older(f"{name}SelfAttention", scales=("layer_scale1", "layer_scale2"), drop="drop_path")


def _clip(name: str) -> Seam:
    return Seam(
        f"{name}Attention",
        inner="self_attn",
        before="layer_norm1",
        after="layer_norm2",
        out="self_attn.out_proj",
        scaling="scale",
        dropout="dropout",
    )


def _older_vit(name: str) -> Seam:
    return _older(
        f"{name}SelfAttention", before="layernorm_before", after="layernorm_after", mlp=("intermediate", "output")
    )


SEAMS: dict[str, tuple[Seam, ...]] = {
    "ViTLayer": (_vit("ViT"),),
    "DeiTLayer": (_vit("DeiT"),),
    "ViTMAELayer": (_vit("ViTMAE"),),
    # transformers up to 5.13 has the older form
    **{f"{name}Layer": (_older_dino(name), _dino(name)) for name in ("Dinov2", "Dinov2WithRegisters")},
    "DINOv3ViTLayer": (_dino("DINOv3ViT", "dropout", rotary="half"),),
    "EomtLayer": (replace(_dino("Eomt", "dropout"), out="attention.out_proj", scaling="scale"),),
    "EomtDinov3Layer": (_dino("EomtDinov3", "dropout", rotary="half"),),
    "BeitLayer": (replace(_vit("Beit"), drop=None),),
    "DPTViTLayer": (_older_vit("DPT"),),
    "YolosLayer": (_older_vit("Yolos"),),
    "CLIPEncoderLayer": (_clip("CLIP"),),
    "SiglipEncoderLayer": (_clip("Siglip"),),
    # of video
    "VideoMAELayer": (_older_vit("VideoMAE"),),
    "VivitLayer": (_vit("Vivit"),),
    "VJEPA2Layer": (
        Seam(
            "VJEPA2RopeAttention",
            projections=("query", "key", "value"),
            out="attention.proj",
            head_size="attention_head_size",
            dropout="dropout_prob",
            drop="drop_path",
            rotary="pairs",
        ),
    ),
}
"""Class name of a layer -> its possible forms; the one that applies is the first whose attention module exists."""


class HFBlock(HostBlock):
    """A layer of a transformers vision encoder. Types are matched exactly: a subclass may compute something else."""

    checkpoints_itself = True

    def __init__(self, layer: Any, prefix: int) -> None:
        self.layer, self.prefix = layer, prefix
        self.checkpoints = layer.training and getattr(layer, "gradient_checkpointing", False)
        seams = SEAMS.get(type(layer).__name__, (Seam(""),))
        self.seam = next((seam for seam in seams if None not in _along(layer, seam.inner)), seams[-1])
        self.by_token = self.seam.rotary is None
        self.bypassed = [layer, *(module for module in _along(layer, self.seam.inner) if module is not None)]
        inner: Any = self.bypassed[-1]
        kernel = getattr(getattr(inner, "config", None), "_attn_implementation", None)
        if not is_transformers(layer) or type(layer).__name__ not in SEAMS:
            self.closed = f"{type(layer).__name__} has no seam between attention and MLP that is known here"
        elif not is_transformers(inner) or type(inner).__name__ != self.seam.attention:
            self.closed = f"its attention {type(inner).__name__} is unknown here (known: {self.seam.attention})"
        elif kernel not in KERNELS:
            self.closed = (
                f'its attention runs as "{kernel}", which may compute something else than standard attention: '
                'call model.set_attn_implementation("sdpa") first'
            )

    def __call__(self, tokens: Tokens) -> Tensor:
        if self.seam.rotary == "pairs":  # such a layer computes its rotary embedding from the positions
            return self.layer(tokens.x, tokens.positions)[0]
        if self.seam.rotary == "half":
            return self.layer(tokens.x, None, position_embeddings=self._rope(tokens))
        return self.layer(tokens.x) if self.seam.older else self.layer(tokens.x, None)

    def qkv(self, tokens: Tokens, query_rows: Tensor | None = None) -> BlockQKV:
        seam, inner = self.seam, self._part(self.seam.inner)
        x = getattr(self.layer, seam.before)(tokens.x)
        query_input = x if query_rows is None else rows(x, query_rows)
        query, key, value = (getattr(inner, name) for name in seam.projections)
        heads = (-1, getattr(inner, seam.head_size))
        q, k, v = (
            projected.unflatten(2, heads).transpose(1, 2) for projected in (query(query_input), key(x), value(x))
        )
        keys = k
        if seam.rotary:
            cos, sin = self._rope(tokens)
            k = self._rotate(k, cos, sin)
            if query_rows is not None:
                cos, sin = (_table_rows(table, query_rows[:, self.prefix :] - self.prefix) for table in (cos, sin))
            q = self._rotate(q, cos, sin)
        dropout = getattr(inner, seam.dropout) if inner.training else 0.0
        return BlockQKV(q, k, v, keys, dropout=dropout, scale=getattr(inner, seam.scaling))

    def attention_out(self, attended: Tensor, attention: BlockQKV, x: Tensor) -> Tensor:
        out, attended = self._part(self.seam.out), attended.transpose(1, 2).flatten(2)
        return self._add(x, out(attended, attended) if self.seam.older else out(attended), 0)

    def mlp(self, x: Tensor) -> Tensor:
        inner, *outer = (getattr(self.layer, name) for name in self.seam.mlp)
        y = inner(getattr(self.layer, self.seam.after)(x))
        return outer[0](y, x) if outer else self._add(x, y, 1)

    def _part(self, path: str) -> Any:
        return _part(self.layer, path)

    def _add(self, x: Tensor, out: Tensor, branch: int) -> Tensor:
        """Add `out` to x after layer scale and drop path; `branch` is 0 for attention, 1 for the MLP."""
        if self.seam.scales:
            out = getattr(self.layer, self.seam.scales[branch])(out)
        if self.seam.drop is not None:
            out = getattr(self.layer, self.seam.drop)(out)
        return x + out

    def _rope(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Cosines and sines at the positions of the tokens, (P, D) for all patches or (B, 1, n, D)."""
        assert tokens.table is not None
        cos, sin = tokens.table
        if tokens.positions is None:
            return cos, sin
        return cos[tokens.positions].unsqueeze(1), sin[tokens.positions].unsqueeze(1)

    def _rotate(self, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary embedding on all but the prefix tokens."""
        patches = heads[:, :, self.prefix :]
        if self.seam.rotary == "pairs":
            even, odd = patches.unflatten(-1, (-1, 2)).unbind(-1)
            quarter_turn = torch.stack([-odd, even], dim=-1).flatten(-2)
        else:
            low, high = patches.chunk(2, dim=-1)
            quarter_turn = torch.cat([-high, low], dim=-1)
        rotated = patches * cos + quarter_turn * sin
        return torch.cat([heads[:, :, : self.prefix], rotated], dim=2)


def _part(layer: Any, path: str) -> Any:
    """The submodule of a layer at a dotted path, or None."""
    for name in path.split("."):
        layer = getattr(layer, name, None)
    return layer


def _along(layer: Any, path: str) -> list[Any]:
    """The modules along a dotted path. After a module that is missing or not of transformers, the entries are None."""
    parts = [layer]
    for name in path.split("."):
        parts.append(getattr(parts[-1], name, None) if is_transformers(parts[-1]) else None)
    return parts[1:]


def _table_rows(table: Tensor, query_rows: Tensor) -> Tensor:
    """Rows `query_rows` (B, M) of a table (P, D) or (B, 1, n, D) -> (B, 1, M, D)."""
    return (table[query_rows] if table.ndim == 2 else rows(table[:, 0], query_rows)).unsqueeze(1)

"""State dicts of random weights in the layouts of published checkpoints, written from docs/segmentation.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def affine(name: str, *shape: int) -> Shapes:
    """A weight and its bias."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def fused(name: str, width: int) -> Shapes:
    yield f"{name}.in_proj_weight", (3 * width, width)
    yield f"{name}.in_proj_bias", (3 * width,)
    yield from affine(f"{name}.out_proj", width, width)


def backbone(depth: int, width: int, patches: int, patch: int, final_norm: bool = False) -> Shapes:
    yield "backbone.cls_token", (1, 1, width)
    yield "backbone.pos_embed", (1, patches + 1, width)
    yield from affine("backbone.patch_embed.projection", width, 3, patch, patch)
    for index in range(depth):
        name = f"backbone.layers.{index}"
        yield from affine(f"{name}.ln1", width)
        yield from fused(f"{name}.attn.attn", width)
        yield from affine(f"{name}.ln2", width)
        yield from affine(f"{name}.ffn.layers.0.0", 4 * width, width)
        yield from affine(f"{name}.ffn.layers.1", width, 4 * width)
    if final_norm:
        yield from affine("backbone.ln1", width)


def atm(
    head: str, channels: int, classes: int, outputs: int, width: int, layers: int, stages: int, mixes: bool = True
) -> Shapes:
    for stage in range(1, stages + 1):
        yield from affine(f"{head}.input_proj_{stage}", width, channels)
        yield from affine(f"{head}.proj_norm_{stage}", width)
        for index in range(layers):
            layer = f"{head}.decoder_{stage}.layers.{index}"
            if mixes:
                yield from fused(f"{layer}.self_attn", width)
                yield from affine(f"{layer}.norm1", width)
            for part in ("q", "k", "v", "proj"):
                yield from affine(f"{layer}.multihead_attn.{part}", width, width)
            yield from affine(f"{layer}.norm2", width)
            yield from affine(f"{layer}.linear1", 4 * width, width)
            yield from affine(f"{layer}.linear2", width, 4 * width)
            yield from affine(f"{layer}.norm3", width)
    yield f"{head}.q.weight", (classes, width)
    yield from affine(f"{head}.class_embed", outputs, width)


def conv_module(name: str, channels: int, into: int, side: int) -> Shapes:
    """mmcv's ConvModule."""
    yield f"{name}.conv.weight", (into, channels, side, side)
    yield from affine(f"{name}.bn", into)
    yield f"{name}.bn.running_mean", (into,)
    yield f"{name}.bn.running_var", (into,)
    yield f"{name}.bn.num_batches_tracked", ()


def upsampling(head: str, channels: int, classes: int, hidden: int, convs: int, side: int) -> Shapes:
    yield from affine(f"{head}.norm", channels)
    for index in range(convs):
        yield from conv_module(f"{head}.up_convs.{index}.0", hidden if index else channels, hidden, side)
    yield from affine(f"{head}.conv_seg", classes, hidden, 1, 1)


def mla(channels: int, classes: int, hidden: int, levels: int) -> Shapes:
    half = hidden // 2
    for index in range(levels):
        yield from affine(f"neck.norm.{index}", channels)
        yield from conv_module(f"neck.mla.channel_proj.{index}", channels, hidden, 1)
        yield from conv_module(f"neck.mla.feat_extract.{index}", hidden, hidden, 3)
        yield from conv_module(f"decode_head.up_convs.{index}.0", hidden, half, 3)
        yield from conv_module(f"decode_head.up_convs.{index}.1", half, half, 3)
        yield from affine(f"auxiliary_head.{index}.conv_seg", classes, hidden, 1, 1)
    yield from affine("decode_head.conv_seg", classes, half * levels, 1, 1)


def weights(*parts: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Float64, small enough that nothing saturates; variances and counters above zero."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, shape in (each for part in parts for each in part):
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
            continue
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        scale = 0.3 if len(shape) < 2 else 1.2 / _inputs(shape) ** 0.5
        state[name] = drawn.abs() + 0.5 if name.endswith("running_var") else drawn * scale
        if name.endswith(".weight") and len(shape) == 1:
            state[name] += 1
    return state


def _inputs(shape: Sequence[int]) -> int:
    product = 1
    for side in shape[1:]:
        product *= side
    return product

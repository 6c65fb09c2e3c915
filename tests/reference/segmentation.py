"""Segmenters the slow and obvious way, in float64, on weights under their published names.

One image at a time, attention as an explicit softmax, convolutions and resizes as sums over pixels. SegViT (arXiv
2210.05844), DToP's form of it (arXiv 2308.01045), SETR (arXiv 2012.15840) in mmsegmentation's layout of weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(x: Tensor, weights: Weights, name: str, eps: float) -> Tensor:
    rows = [
        (row - row.mean()) / torch.sqrt(((row - row.mean()) ** 2).mean() + eps) for row in x.reshape(-1, x.shape[-1])
    ]
    return torch.stack(rows).reshape(x.shape) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def softmax(row: Tensor) -> Tensor:
    raised = torch.exp(row - row.max())
    return raised / raised.sum()


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> tuple[Tensor, list[Tensor]]:
    """(M, d), (N, d), (N, d) -> (M, d), and each head's scaled logits (M, N)."""
    size = q.shape[1] // heads
    parts, logits = [], []
    for head in range(heads):
        channels = slice(head * size, (head + 1) * size)
        scaled = q[:, channels] @ k[:, channels].T / math.sqrt(size)
        parts.append(torch.stack([softmax(row) @ v[:, channels] for row in scaled]))
        logits.append(scaled)
    return torch.cat(parts, dim=1), logits


def fused_attention(x: Tensor, weights: Weights, name: str, heads: int) -> Tensor:
    """Self-attention with queries, keys and values in one matrix, as `torch.nn.MultiheadAttention` keeps them."""
    q, k, v = (x @ weights[f"{name}.in_proj_weight"].T + weights[f"{name}.in_proj_bias"]).chunk(3, dim=1)
    return linear(attend(q, k, v, heads)[0], weights, f"{name}.out_proj")


def backbone(
    weights: Weights,
    image: Tensor,
    levels: Sequence[int],
    *,
    patch: int,
    heads: int,
    class_token: bool,
    final_norm: bool = False,
) -> list[Tensor]:
    """(C, H, W) -> behind each level its tokens (N, D), the class token in front where it stays."""
    kernel, bias = weights["backbone.patch_embed.projection.weight"], weights["backbone.patch_embed.projection.bias"]
    rows = [
        kernel.flatten(1) @ image[:, top : top + patch, left : left + patch].flatten() + bias
        for top in range(0, image.shape[1], patch)
        for left in range(0, image.shape[2], patch)
    ]
    x = torch.cat([weights["backbone.cls_token"][0], torch.stack(rows)]) + weights["backbone.pos_embed"][0]
    x = x if class_token else x[1:]
    depth = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("backbone.layers."))
    kept = []
    for index in range(depth):
        name = f"backbone.layers.{index}"
        x = x + fused_attention(layer_norm(x, weights, f"{name}.ln1", 1e-6), weights, f"{name}.attn.attn", heads)
        hidden = linear(layer_norm(x, weights, f"{name}.ln2", 1e-6), weights, f"{name}.ffn.layers.0.0")
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = x + linear(hidden, weights, f"{name}.ffn.layers.1")
        last = final_norm and index == depth - 1
        if index in levels:
            kept.append(layer_norm(x, weights, "backbone.ln1", 1e-6) if last else x)
    return kept


def decoder(
    weights: Weights,
    head: str,
    stage: int,
    queries: Tensor,
    tokens: Tensor,
    heads: int,
    self_attention: bool = True,
) -> tuple[Tensor, Tensor]:
    """One stage of an ATM head: queries (K, d) and tokens (N, D) -> queries, mask logits (K, N)."""
    x = linear(tokens, weights, f"{head}.input_proj_{stage}")
    x = layer_norm(x, weights, f"{head}.proj_norm_{stage}", 1e-5)
    name = f"{head}.decoder_{stage}.layers"
    depth = 1 + max(int(key.removeprefix(f"{name}.").split(".")[0]) for key in weights if key.startswith(f"{name}."))
    logits: list[Tensor] = []
    for layer in (f"{name}.{index}" for index in range(depth)):
        if self_attention:
            mixed = fused_attention(queries, weights, f"{layer}.self_attn", heads)
            queries = layer_norm(queries + mixed, weights, f"{layer}.norm1", 1e-5)
        q, k, v = (
            linear(each, weights, f"{layer}.multihead_attn.{part}")
            for each, part in ((queries, "q"), (x, "k"), (x, "v"))
        )
        read, logits = attend(q, k, v, heads)
        read = linear(read, weights, f"{layer}.multihead_attn.proj")
        queries = layer_norm(queries + read, weights, f"{layer}.norm2", 1e-5)
        hidden = linear(queries, weights, f"{layer}.linear1").clamp(min=0)
        queries = layer_norm(queries + linear(hidden, weights, f"{layer}.linear2"), weights, f"{layer}.norm3", 1e-5)
    return queries, sum(logits) / heads


def atm_head(weights: Weights, head: str, tokens: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """DToP's head on tokens (N, D) -> class logits (K, 2), mask logits (K, N)."""
    queries, masks = decoder(weights, head, 1, weights[f"{head}.q.weight"], tokens, heads)
    return linear(queries, weights, f"{head}.class_embed"), masks


def cascade(
    weights: Weights, levels: Sequence[Tensor], heads: int, self_attention: bool
) -> list[tuple[Tensor, Tensor]]:
    """A cascade on tokens of each level, the shallowest first -> (class logits, summed mask logits) of each stage."""
    queries, total, stages = weights["decode_head.q.weight"], 0, []
    for stage, tokens in enumerate(list(levels)[::-1], 1):
        queries, masks = decoder(weights, "decode_head", stage, queries, tokens, heads, self_attention)
        total = total + masks
        stages.append((linear(queries, weights, "decode_head.class_embed"), total))
    return stages


def present(classes: Tensor) -> Tensor:
    """(K, 2) -> (K,)"""
    return torch.stack([softmax(row)[0] for row in classes])


def probability(classes: Tensor, masks: Tensor) -> Tensor:
    """DToP's assembly: (K, 2), (K, ...) -> (K, ...)."""
    return torch.stack([one * sigmoid(mask) for one, mask in zip(present(classes), masks, strict=True)])


def contracted(classes: Tensor, masks: Tensor) -> Tensor:
    """SegViT v1's assembly: (Q, K + 1), (Q, H, W) -> (K, H, W), over all queries."""
    scores = torch.zeros(classes.shape[1] - 1, *masks.shape[1:], dtype=masks.dtype)
    for row, mask in zip(classes, masks, strict=True):
        for index, weight in enumerate(softmax(row)[:-1]):
            scores[index] += weight * sigmoid(mask)
    return scores


def on_grid(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """(P, D) -> (D, h, w)"""
    height, width = grid
    return torch.stack([tokens[row * width : (row + 1) * width].T for row in range(height)], dim=1)


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear between pixel centres: (K, h, w) -> (K, *size)."""

    def places(old: int, new: int) -> list[tuple[int, int, float]]:
        found = []
        for index in range(new):
            place = max(0.0, (index + 0.5) * old / new - 0.5)
            first = min(int(place), old - 1)
            found.append((first, min(first + 1, old - 1), place - first))
        return found

    rows = places(maps.shape[1], size[0])
    maps = torch.stack([maps[:, a] * (1 - share) + maps[:, b] * share for a, b, share in rows], dim=1)
    columns = places(maps.shape[2], size[1])
    return torch.stack([maps[:, :, a] * (1 - share) + maps[:, :, b] * share for a, b, share in columns], dim=2)


def convolve(maps: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """(C, h, w), (O, C, s, s) -> (O, h, w), with zeros around."""
    side, (_, height, width) = kernel.shape[2], maps.shape
    border = side // 2
    padded = torch.zeros(maps.shape[0], height + 2 * border, width + 2 * border, dtype=maps.dtype)
    padded[:, border : border + height, border : border + width] = maps
    out = torch.zeros(kernel.shape[0], height, width, dtype=maps.dtype)
    for row in range(side):
        for column in range(side):
            part = padded[:, row : row + height, column : column + width]
            out += torch.einsum("oc,chw->ohw", kernel[:, :, row, column], part)
    return out if bias is None else out + bias[:, None, None]


def conv_norm_relu(maps: Tensor, weights: Weights, name: str) -> Tensor:
    maps = convolve(maps, weights[f"{name}.conv.weight"])
    scale = weights[f"{name}.bn.weight"] / torch.sqrt(weights[f"{name}.bn.running_var"] + 1e-5)
    shift = weights[f"{name}.bn.bias"] - weights[f"{name}.bn.running_mean"] * scale
    return (maps * scale[:, None, None] + shift[:, None, None]).clamp(min=0)


def classified(maps: Tensor, weights: Weights, name: str) -> Tensor:
    return convolve(maps, weights[f"{name}.weight"], weights[f"{name}.bias"])


def larger(maps: Tensor, scale: int) -> Tensor:
    return resize(maps, (maps.shape[1] * scale, maps.shape[2] * scale))


def upsampling_head(weights: Weights, head: str, tokens: Tensor, grid: Sequence[int], scale: int) -> Tensor:
    """SETR naive and PUP on patch tokens (P, D) -> class logits (K, h', w')."""
    maps = on_grid(layer_norm(tokens, weights, f"{head}.norm", 1e-6), grid)
    index = 0
    while f"{head}.up_convs.{index}.0.conv.weight" in weights:
        maps = larger(conv_norm_relu(maps, weights, f"{head}.up_convs.{index}.0"), scale)
        index += 1
    return classified(maps, weights, f"{head}.conv_seg")


def mla(weights: Weights, levels: Sequence[Tensor], grid: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """SETR MLA on patch tokens (P, D) of each level -> class logits (K, 4 h, 4 w), and those of the auxiliary heads."""
    narrow = []
    for index, tokens in enumerate(levels):
        maps = on_grid(layer_norm(tokens, weights, f"neck.norm.{index}", 1e-6), grid)
        narrow.append(conv_norm_relu(maps, weights, f"neck.mla.channel_proj.{index}"))
    total, aggregated = 0, []
    for index, maps in enumerate(narrow[::-1]):
        total = total + maps
        aggregated.append(conv_norm_relu(total, weights, f"neck.mla.feat_extract.{index}"))
    wide = []
    for index, maps in enumerate(aggregated):
        for conv in (0, 1):
            maps = conv_norm_relu(maps, weights, f"decode_head.up_convs.{index}.{conv}")
        wide.append(larger(maps, 4))
    auxiliary = [classified(maps, weights, f"auxiliary_head.{i}.conv_seg") for i, maps in enumerate(aggregated)]
    return classified(torch.cat(wide), weights, "decode_head.conv_seg"), auxiliary

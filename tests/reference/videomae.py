"""VideoMAE as mmaction2 has it: random weights under its names, and the slow forward in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def mmaction2_state(width: int = 24, depth: int = 2, classes: int = 3, patches: int = 8) -> dict[str, Tensor]:
    """Random weights of tubelets of 2 x 16 x 16 pixels, with "backbone." in front of the network's names."""
    torch.manual_seed(11)
    shapes = {
        "backbone.patch_embed.projection.weight": (width, 3, 2, 16, 16),
        "backbone.patch_embed.projection.bias": (width,),
        "backbone.fc_norm.weight": (width,), "backbone.fc_norm.bias": (width,),
        "cls_head.fc_cls.weight": (classes, width), "cls_head.fc_cls.bias": (classes,),
    }  # fmt: skip
    for block in range(depth):
        start = f"backbone.blocks.{block}."
        for norm in ("norm1", "norm2"):
            shapes |= {f"{start}{norm}.weight": (width,), f"{start}{norm}.bias": (width,)}
        shapes |= {f"{start}attn.q_bias": (width,), f"{start}attn.v_bias": (width,)}
        shapes |= {f"{start}attn.qkv.weight": (3 * width, width)}
        shapes |= {f"{start}attn.proj.weight": (width, width), f"{start}attn.proj.bias": (width,)}
        shapes |= {f"{start}mlp.layers.0.0.weight": (2 * width, width), f"{start}mlp.layers.0.0.bias": (2 * width,)}
        shapes |= {f"{start}mlp.layers.1.weight": (width, 2 * width), f"{start}mlp.layers.1.bias": (width,)}
    state = {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    return {**state, "backbone.pos_embed": positions(patches, width)[None].float()}


def positions(count: int, width: int) -> Tensor:
    """(N, C): sine in even places and cosine in odd ones, of the position over 10000^(2 floor(c / 2) / C)."""
    table = torch.zeros(count, width, dtype=torch.float64)
    for place in range(count):
        for c in range(width):
            angle = torch.tensor(place / 10000 ** (2 * (c // 2) / width), dtype=torch.float64)
            table[place, c] = angle.cos() if c % 2 else angle.sin()
    return table


def forward(state: dict[str, Tensor], clip: Tensor, heads: int) -> Tensor:
    """Logits (K,) of one clip (T, 3, H, W), patches in the order time, row, column."""
    w = {name.removeprefix("backbone."): value.double() for name, value in state.items()}
    clip = clip.double()
    kernel, found = w["patch_embed.projection.weight"], []
    for t in range(0, clip.shape[0], 2):
        for y in range(0, clip.shape[2], 16):
            for x in range(0, clip.shape[3], 16):
                piece = clip[t : t + 2, :, y : y + 16, x : x + 16].transpose(0, 1)
                found.append((kernel * piece).flatten(1).sum(1) + w["patch_embed.projection.bias"])
    x = torch.stack(found)
    x = x + positions(len(x), x.shape[1])
    width = x.shape[1]
    for block in range(sum(name.endswith("attn.qkv.weight") for name in w)):
        b = f"blocks.{block}."
        bias = torch.cat([w[b + "attn.q_bias"], torch.zeros(width, dtype=torch.float64), w[b + "attn.v_bias"]])
        q, k, v = (norm(x, w, b + "norm1") @ w[b + "attn.qkv.weight"].T + bias).chunk(3, dim=1)
        out = []
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            scores = q[:, part] @ k[:, part].T / (width // heads) ** 0.5
            out.append(scores.softmax(1) @ v[:, part])
        x = x + torch.cat(out, 1) @ w[b + "attn.proj.weight"].T + w[b + "attn.proj.bias"]
        hidden = norm(x, w, b + "norm2") @ w[b + "mlp.layers.0.0.weight"].T + w[b + "mlp.layers.0.0.bias"]
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        x = x + hidden @ w[b + "mlp.layers.1.weight"].T + w[b + "mlp.layers.1.bias"]
    pooled = norm(x.mean(0, keepdim=True), w, "fc_norm")[0]
    return w["cls_head.fc_cls.weight"] @ pooled + w["cls_head.fc_cls.bias"]


def norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

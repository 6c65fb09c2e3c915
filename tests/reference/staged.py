"""PaPr on hosts with stages, the slow way: timm's ConvNeXt, ConvNeXt-V2, Swin and Swin-V2, one image at a time.

Only the weights are taken from the model, and its stem, downsampling and head as they are; the blocks are written out.
Other libraries' models come as a view that names their weights as timm does (`hf_staged.py`, `torchvision_hosts.py`).
A map keeps its full size; the MLP of a block runs on the stage's most significant pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from tests.reference.significance import patch_significance

Grid = tuple[int, int]
Kept = list[int] | None
Choice = Callable[[int, Grid], Kept]
"""From a stage and the size of its map to the pixels that are kept, ascending and row-major; None is all of them."""


@dataclass(frozen=True)
class Staged:
    """What the host makes of the images; maps are (B, C, H, W)."""

    output: Tensor
    features: Tensor
    """What `forward_features` of the host returns."""
    maps: list[Tensor]
    """Behind each stage."""
    kept: list[list[Kept]]
    """For each stage, for each image."""
    pixels: list[int]
    """That each block's MLP read."""


def staged_reference(model: Any, images: Tensor, choices: Sequence[Choice], background: str | None = None) -> Staged:
    """The host's forward on images (B, 3, H, W) with one choice of pixels an image.

    `background` is what becomes of the other pixels: None is the published code's. Training keeps them in any case.
    """
    convnext = hasattr(model, "stages")
    zero = (background or ("zero" if convnext else "keep")) == "zero" and not model.training
    features, maps, kept, pixels = [], [], [], []
    for image, choice in zip(images, choices, strict=True):
        forward = _convnext if convnext else _swin
        last, behind, chosen, pixels = forward(model, image, choice, zero)
        features.append(last)
        maps.append(behind)
        kept.append(chosen)
    last = torch.stack(features)
    if not convnext:
        maps = [[x.permute(2, 0, 1) for x in behind] for behind in maps]
    behind = [torch.stack(stage) for stage in zip(*maps, strict=True)]
    return Staged(model.head(last), last, behind, [list(stage) for stage in zip(*kept, strict=True)], pixels)


def ranked_pixels(values: Sequence[float], share: float) -> list[int]:
    """The `int(pixels * share)` highest, at least one, ties to the lower index; refuses ties that rounding makes."""
    count = max(int(len(values) * share), 1)
    ranked = sorted(range(len(values)), key=lambda j: (-values[j], j))
    if count < len(values):
        lead = values[ranked[count - 1]] - values[ranked[count]]
        assert lead == 0 or lead > 1e-6 * max(abs(value) for value in values), f"the last one leads by {lead}"
    return sorted(ranked[:count])


def choice_of(
    stages: int, keep: float | Sequence[float], acting: Sequence[int] | None, values: Callable[[Grid], Sequence[float]]
) -> Choice:
    """PaPr's: in each of the stages `acting` (None is all) a share of the pixels by their significance `values`."""
    acting = range(stages) if acting is None else acting
    shares = dict(zip(acting, [keep] * len(acting) if isinstance(keep, float) else keep, strict=True))

    def choose(stage: int, grid: Grid) -> Kept:
        share = shares.get(stage, 1.0)
        return None if share == 1 else ranked_pixels(values(grid), share)

    return choose


def enlarged(map: Tensor) -> Callable[[Grid], list[float]]:
    """A map (h, w) resized to any grid."""
    return lambda grid: patch_significance(map[None, None], grid)[0].tolist()


def significance(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 5, 6): bumps that differ from image to image, and no two cells alike."""
    bumps = torch.randn(5, 6, generator=torch.Generator().manual_seed(5), dtype=images.dtype)
    return nn.functional.adaptive_avg_pool2d(images.mean(dim=1), (5, 6)) + bumps


def centre(grid: Grid) -> list[float]:
    """Minus the squared distance from the middle of the map: exact in binary, and full of ties."""
    height, width = grid
    return [
        -((i - (height - 1) / 2) ** 2) - (j - (width - 1) / 2) ** 2 for i in range(height) for j in range(width)
    ]  # fmt: skip


def _convnext(model: Any, image: Tensor, choice: Choice, zero: bool) -> tuple:
    x = model.stem(image[None])[0]
    maps, kept, pixels = [], [], []
    for number, stage in enumerate(model.stages):
        x = stage.downsample(x[None])[0]
        chosen = choice(number, tuple(x.shape[1:]))
        for block in stage.blocks:
            x = _convnext_block(block, x, chosen, zero)
            pixels.append(x[0].numel() if chosen is None else len(chosen))
        maps.append(x)
        kept.append(chosen)
    return model.norm_pre(x[None])[0], maps, kept, pixels


def _convnext_block(block: Any, x: Tensor, chosen: Kept, zero: bool) -> Tensor:
    channels, height, width = x.shape
    conv = block.conv_dw
    side, dilation = conv.kernel_size[0], conv.dilation[0]
    padding = dilation * (side - 1) // 2
    y = F.conv2d(x[None], conv.weight, conv.bias, padding=padding, dilation=dilation, groups=channels)[0]
    chosen = list(range(height * width)) if chosen is None else chosen
    rows = torch.stack([y[:, j // width, j % width] for j in chosen])
    branch = _mlp(block.mlp, _norm(block.norm, rows))
    out = torch.zeros_like(x) if zero else x.clone()
    for row, j in zip(branch, chosen, strict=True):
        row = row if block.gamma is None else block.gamma * row
        out[:, j // width, j % width] = x[:, j // width, j % width] + row
    return out


def _swin(model: Any, image: Tensor, choice: Choice, zero: bool) -> tuple:
    post = isinstance(model, SwinTransformerV2) or getattr(model, "norms_behind", False)
    x = model.patch_embed(image[None])[0]
    maps, kept, pixels = [], [], []
    for number, stage in enumerate(model.layers):
        x = stage.downsample(x[None])[0]
        chosen = choice(number, tuple(x.shape[:2]))
        for block in stage.blocks:
            x = _swin_block(block, x, chosen, zero, post)
            pixels.append(x[..., 0].numel() if chosen is None else len(chosen))
        maps.append(x)
        kept.append(chosen)
    return x if isinstance(model.norm, nn.Identity) else _norm(model.norm, x), maps, kept, pixels


def _swin_block(block: Any, x: Tensor, chosen: Kept, zero: bool, post: bool) -> Tensor:
    height, width, _ = x.shape
    if post:
        x = x + _norm(block.norm1, _windows(block, x, _cosine_attention))
    else:
        x = x + _windows(block, _norm(block.norm1, x), _biased_attention)
    chosen = list(range(height * width)) if chosen is None else chosen
    rows = torch.stack([x[j // width, j % width] for j in chosen])
    branch = _norm(block.norm2, _mlp(block.mlp, rows)) if post else _mlp(block.mlp, _norm(block.norm2, rows))
    out = torch.zeros_like(x) if zero else x.clone()
    for row, j in zip(rows + branch, chosen, strict=True):
        out[j // width, j % width] = row
    return out


def _windows(block: Any, x: Tensor, attend: Callable[..., Tensor]) -> Tensor:
    """Shift the map (H, W, C) round its edges, fill it up with zeros to whole windows, attend in each, shift back.

    Some hosts fill it up first; some do not shift a map, and some not in the one direction, where one window has room
    at most.
    """
    height, width, channels = x.shape
    fills_first = getattr(block, "fills_first", False)
    (tall, wide), (down, right) = block.window_size, block.shift_size
    if getattr(block, "rests_on_small_maps", False) and min(height, width) <= tall:
        down = right = 0
    if getattr(block, "rests_along_small_sides", False):
        down, right = 0 if height <= tall else down, 0 if width <= wide else right
    rows, columns = math.ceil(height / tall) * tall, math.ceil(width / wide) * wide
    filling = (0, 0, 0, columns - width, 0, rows - height)
    if fills_first:
        filled = F.pad(x, filling).roll((-down, -right), (0, 1))
    else:
        filled = F.pad(x.roll((-down, -right), (0, 1)), filling)
    out = torch.zeros_like(filled)
    # what the shift has brought together from opposite edges does not see each other
    parts = torch.tensor(
        [[3 * _part(i, rows, tall, down) + _part(j, columns, wide, right) for j in range(columns)] for i in range(rows)]
    )
    for top in range(0, rows, tall):
        for left in range(0, columns, wide):
            window = slice(top, top + tall), slice(left, left + wide)
            part = parts[window].flatten()
            apart = -100.0 * (part[:, None] != part[None, :]).to(x.dtype)
            answer = attend(block.attn, filled[window].reshape(-1, channels), apart, tall, wide)
            out[window] = answer.view(tall, wide, channels)
    if fills_first:
        return out.roll((down, right), (0, 1))[:height, :width]
    return out[:height, :width].roll((down, right), (0, 1))


def _part(i: int, size: int, window: int, shift: int) -> int:
    if shift == 0 or i < size - window:
        return 0
    return 1 if i < size - shift else 2


def _biased_attention(attn: nn.Module, x: Tensor, apart: Tensor, tall: int, wide: int) -> Tensor:
    """Swin: one learned number for each head and offset."""
    heads = attn.num_heads
    q, k, v = (part.unflatten(1, (heads, -1)) for part in F.linear(x, attn.qkv.weight, attn.qkv.bias).chunk(3, dim=1))
    bias = attn.relative_position_bias_table[_offsets(tall, wide)]
    mixed = []
    for h in range(heads):
        logits = q[:, h] @ k[:, h].T / math.sqrt(q.shape[2]) + bias[..., h] + apart
        mixed.append(_softmax(logits) @ v[:, h])
    return F.linear(torch.cat(mixed, dim=1), attn.proj.weight, attn.proj.bias)


def _cosine_attention(attn: nn.Module, x: Tensor, apart: Tensor, tall: int, wide: int) -> Tensor:
    """Swin-V2: cosines with a temperature, and a bias that a small network makes of the offset; keys have no bias."""
    heads = attn.num_heads
    qkv = F.linear(x, attn.qkv.weight)
    if attn.q_bias is not None:
        qkv = qkv + torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
    q, k, v = (part.unflatten(1, (heads, -1)) for part in qkv.chunk(3, dim=1))
    # timm rounds the logarithms of the offsets to float32, so they are read and not made anew
    first, _, last = attn.cpb_mlp
    hidden = F.linear(attn.relative_coords_table.flatten(0, 2), first.weight, first.bias).clamp(min=0)
    bias = 16 / (1 + torch.exp(-F.linear(hidden, last.weight)))[_offsets(tall, wide)]
    mixed = []
    for h in range(heads):
        length = [part[:, h].norm(dim=1, keepdim=True).clamp(min=1e-12) for part in (q, k)]
        cosine = (q[:, h] / length[0]) @ (k[:, h] / length[1]).T
        logits = cosine * attn.logit_scale[h, 0, 0].clamp(max=math.log(100)).exp() + bias[..., h] + apart
        mixed.append(_softmax(logits) @ v[:, h])
    return F.linear(torch.cat(mixed, dim=1), attn.proj.weight, attn.proj.bias)


@cache
def _offsets(tall: int, wide: int) -> Tensor:
    """For each pair of a window's pixels the row of the table that holds their offset."""
    places = [(i, j) for i in range(tall) for j in range(wide)]
    return torch.tensor(
        [[(i - k + tall - 1) * (2 * wide - 1) + j - m + wide - 1 for k, m in places] for i, j in places]
    )


def _softmax(logits: Tensor) -> Tensor:
    raised = torch.exp(logits - logits.max(dim=1, keepdim=True).values)
    return raised / raised.sum(dim=1, keepdim=True)


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Over the last axis: LayerNorm, or RMSNorm where its name says so."""
    if "rms" in type(norm).__name__.lower():
        return x / (x.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt() * norm.weight
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def _mlp(mlp: nn.Module, rows: Tensor) -> Tensor:
    """Linear layers, written as 1 x 1 convolutions or not, about a GELU; over the pixels (P, C) that are there."""
    hidden = F.linear(rows, mlp.fc1.weight.flatten(1), mlp.fc1.bias)
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    if hasattr(mlp, "grn"):
        strength = hidden.square().sum(dim=0).sqrt()  # of each channel over the pixels
        hidden = hidden + mlp.grn.weight * hidden * strength / (strength.mean() + mlp.grn.eps) + mlp.grn.bias
    return F.linear(hidden, mlp.fc2.weight.flatten(1), mlp.fc2.bias)


@dataclass(frozen=True)
class Form:
    """How a host is made, and the images it is tried on."""

    make: Callable[[], nn.Module]
    size: Grid


def staged_forms() -> dict[str, Form]:
    """Small hosts with stages by name, as far as timm can build them; no dropout and no stochastic depth."""
    return {name: form for name, form in _forms().items() if name not in absent_staged_forms()}


@cache
def absent_staged_forms() -> dict[str, str]:
    """Why some forms cannot be built here, by name: before 1.0.31 timm's Swin-V2 wants maps of whole windows."""
    absent = {}
    for name, form in _forms().items():
        if name in ("swin-v2-padded", "swin-v2-partition", "swin-v2-small"):
            try:
                form.make()
            except RuntimeError as error:
                absent[name] = f"timm {timm.__version__} cannot build it: {error}"
    return absent


def _forms() -> dict[str, Form]:
    convnext = partial(ConvNeXt, depths=(1, 2, 2, 1), dims=(8, 16, 24, 32), num_classes=5, ls_init_value=0.1)
    swins = {"embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4, "num_classes": 5}
    odd, small = (70, 94), (38, 66)  # the stem leaves out what is no whole patch: 17 x 23, 8 x 11, 4 x 5, 2 x 2
    forms = {
        "convnext": Form(convnext, odd),
        "convnext-conv": Form(partial(convnext, conv_mlp=True), small),
        "convnext-conv-rms": Form(partial(convnext, conv_mlp=True, norm_layer="rmsnorm2d"), small),
        "convnext-rms": Form(partial(convnext, norm_layer="rmsnorm", conv_bias=False), small),
        "convnext-dilated": Form(
            partial(convnext, output_stride=16, kernel_sizes=(7, 5, 3, 7), head_norm_first=True), small
        ),
        "convnext-overlap": Form(partial(convnext, stem_type="overlap_act", head_hidden_size=12), small),
        "convnext-v2": Form(partial(convnext, use_grn=True, ls_init_value=None), odd),
        "convnext-v2-conv": Form(partial(convnext, use_grn=True, conv_mlp=True), small),
    }
    for name, kind in (("swin", SwinTransformer), ("swin-v2", SwinTransformerV2)):
        swin = partial(kind, **swins, drop_path_rate=0.0)
        forms |= {
            name: Form(partial(swin, img_size=(32, 64)), (32, 64)),
            # maps of 9 x 14 and, filled up before they are halved, 5 x 7: no whole windows
            f"{name}-padded": Form(partial(swin, img_size=(36, 56)), (36, 56)),
            f"{name}-free": Form(partial(swin, img_size=64, strict_img_size=False), (28, 44)),
            # the second stage's map is smaller than a window, which is filled up and shifted all the same
            f"{name}-partition": Form(partial(swin, img_size=(24, 56), always_partition=True), (24, 56)),
            # and here the window shrinks to the map
            f"{name}-small": Form(partial(swin, img_size=(24, 40), window_size=(4, 3)), (24, 40)),
        }
    forms["swin-heads"] = Form(
        partial(SwinTransformer, **swins, drop_path_rate=0.0, img_size=32, head_dim=6, qkv_bias=False), (32, 32)
    )
    forms["swin-v2-pretrained"] = Form(
        partial(SwinTransformerV2, **swins, drop_path_rate=0.0, img_size=32, pretrained_window_sizes=(6, 3)), (32, 32)
    )
    return forms

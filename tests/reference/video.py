"""X3D and SlowOnly in float64 from their weights by the names of public checkpoints, convolutions as sums over offsets.

Written from the papers and the list of weight names; shares no code with the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

State = dict[str, Tensor]
Names = Callable[[str], str]


def convolve(x: Tensor, weight: Tensor, stride: tuple[int, int, int] = (1, 1, 1), bias: Tensor | None = None) -> Tensor:
    """(B, C, T, H, W) by (K, C / groups, t, h, w), zeros around it so that stride 1 keeps its size."""
    sizes = weight.shape[2:]
    padded = torch.zeros(*x.shape[:2], *(n + s - 1 for n, s in zip(x.shape[2:], sizes, strict=True)), dtype=x.dtype)
    t, h, w = (s // 2 for s in sizes)
    padded[:, :, t : t + x.shape[2], h : h + x.shape[3], w : w + x.shape[4]] = x
    out = 0
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            for k in range(sizes[2]):
                part = padded[:, :, i : i + x.shape[2], j : j + x.shape[3], k : k + x.shape[4]]
                part = part[:, :, :: stride[0], :: stride[1], :: stride[2]]
                tap = weight[:, :, i, j, k]
                if weight.shape[1] == x.shape[1]:
                    out = out + torch.einsum("bcthw,kc->bkthw", part, tap)
                else:  # depthwise
                    assert weight.shape[1] == 1
                    out = out + part * tap[:, 0, None, None, None]
    return out if bias is None else out + bias[:, None, None, None]


def normalise(state: State, name: str, x: Tensor) -> Tensor:
    """BatchNorm in evaluation."""
    mean, var = (state[f"{name}.running_{which}"][:, None, None, None] for which in ("mean", "var"))
    weight, bias = (state[f"{name}.{which}"][:, None, None, None] for which in ("weight", "bias"))
    return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def x3d(state: State, clips: Tensor, depths: tuple[int, ...], layout: str) -> Tensor:
    """Features (B, 432, T, h, w)."""
    state, names = {key: value.double() for key, value in state.items()}, NAMES[layout]
    x = convolve(clips.double(), state[names("spatial")], (1, 2, 2))
    x = relu(normalise(state, names("stem_norm"), convolve(x, state[names("temporal")])))
    for stage, depth in enumerate(depths):
        for block in range(depth):
            stride = (1, 2, 2) if block == 0 else (1, 1, 1)

            def of(part: str, stage: int = stage, block: int = block) -> str:
                return names(part).format(stage + 1, block)

            y = relu(normalise(state, of("norm1"), convolve(x, state[of("conv1")])))
            y = normalise(state, of("norm2_x3d"), convolve(y, state[of("conv2")], stride))
            if block % 2 == 0:
                gate = y.mean((2, 3, 4), keepdim=True)
                gate = relu(convolve(gate, state[f"{of('fc1')}.weight"], bias=state[f"{of('fc1')}.bias"]))
                gate = convolve(gate, state[f"{of('fc2')}.weight"], bias=state[f"{of('fc2')}.bias"])
                y = y / (1 + torch.exp(-gate))
            y = y / (1 + torch.exp(-y))
            y = normalise(state, of("norm3"), convolve(y, state[of("conv3")]))
            if of("shortcut") in state:
                x = convolve(x, state[of("shortcut")], stride)
                if f"{of('shortcut_norm')}.weight" in state:
                    x = normalise(state, of("shortcut_norm"), x)
            x = relu(x + y)
    return relu(normalise(state, names("norm5"), convolve(x, state[names("conv5")])))


def slowonly(state: State, clips: Tensor, depths: tuple[int, ...], layout: str) -> Tensor:
    """Features (B, 2048, T, h, w)."""
    state, names = {key: value.double() for key, value in state.items()}, NAMES[layout]
    x = convolve(clips.double(), state[names("conv")], (1, 2, 2))
    x = relu(normalise(state, names("conv_norm"), x))
    x = torch.nn.functional.max_pool2d(x.transpose(1, 2).flatten(0, 1), 3, 2, 1).unflatten(0, (len(x), -1))
    x = x.transpose(1, 2)
    for stage, depth in enumerate(depths):
        for block in range(depth):
            stride = (1, 2, 2) if block == 0 and stage > 0 else (1, 1, 1)

            def of(part: str, stage: int = stage, block: int = block) -> str:
                return names(part).format(stage + 1, block)

            y = relu(normalise(state, of("norm1"), convolve(x, state[of("conv1")])))
            y = relu(normalise(state, of("norm2"), convolve(y, state[of("conv2")], stride)))
            y = normalise(state, of("norm3"), convolve(y, state[of("conv3")]))
            if block == 0:
                x = normalise(state, of("shortcut_norm"), convolve(x, state[of("shortcut")], stride))
            x = relu(x + y)
    return x


PYTORCHVIDEO = {
    "spatial": "blocks.0.conv.conv_t.weight",
    "temporal": "blocks.0.conv.conv_xy.weight",
    "stem_norm": "blocks.0.norm",
    "conv": "blocks.0.conv.weight",
    "conv_norm": "blocks.0.norm",
    "conv1": "blocks.{}.res_blocks.{}.branch2.conv_a.weight",
    "norm1": "blocks.{}.res_blocks.{}.branch2.norm_a",
    "conv2": "blocks.{}.res_blocks.{}.branch2.conv_b.weight",
    "norm2": "blocks.{}.res_blocks.{}.branch2.norm_b",
    "norm2_x3d": "blocks.{}.res_blocks.{}.branch2.norm_b.0",
    "fc1": "blocks.{}.res_blocks.{}.branch2.norm_b.1.block.0",
    "fc2": "blocks.{}.res_blocks.{}.branch2.norm_b.1.block.2",
    "conv3": "blocks.{}.res_blocks.{}.branch2.conv_c.weight",
    "norm3": "blocks.{}.res_blocks.{}.branch2.norm_c",
    "shortcut": "blocks.{}.res_blocks.{}.branch1_conv.weight",
    "shortcut_norm": "blocks.{}.res_blocks.{}.branch1_norm",
    "conv5": "blocks.5.pool.pre_conv.weight",
    "norm5": "blocks.5.pool.pre_norm",
}
MMACTION2 = {
    "spatial": "backbone.conv1_s.conv.weight",
    "temporal": "backbone.conv1_t.conv.weight",
    "stem_norm": "backbone.conv1_t.bn",
    "conv": "backbone.conv1.conv.weight",
    "conv_norm": "backbone.conv1.bn",
    "conv1": "backbone.layer{}.{}.conv1.conv.weight",
    "norm1": "backbone.layer{}.{}.conv1.bn",
    "conv2": "backbone.layer{}.{}.conv2.conv.weight",
    "norm2": "backbone.layer{}.{}.conv2.bn",
    "norm2_x3d": "backbone.layer{}.{}.conv2.bn",
    "fc1": "backbone.layer{}.{}.se_module.fc1",
    "fc2": "backbone.layer{}.{}.se_module.fc2",
    "conv3": "backbone.layer{}.{}.conv3.conv.weight",
    "norm3": "backbone.layer{}.{}.conv3.bn",
    "shortcut": "backbone.layer{}.{}.downsample.conv.weight",
    "shortcut_norm": "backbone.layer{}.{}.downsample.bn",
    "conv5": "backbone.conv5.conv.weight",
    "norm5": "backbone.conv5.bn",
}
NAMES: dict[str, Names] = {"PyTorchVideo": PYTORCHVIDEO.__getitem__, "mmaction2": MMACTION2.__getitem__}


def x3d_state(layout: str, depths: tuple[int, ...] = (3, 5, 11, 7), classes: int = 400) -> State:
    """Random weights under the names and of the shapes of a public checkpoint of X3D."""
    names, weights = NAMES[layout], {}
    weights[names("spatial")] = (24, 3, 1, 3, 3)
    weights[names("temporal")] = (24, 1, 5, 1, 1)
    weights.update(_norm(names("stem_norm"), 24))
    inward = 24
    for stage, (width, depth, hidden) in enumerate(zip((24, 48, 96, 192), depths, (8, 8, 16, 32), strict=True)):
        inner = width * 9 // 4
        for block in range(depth):
            shapes: dict[str, tuple[int, ...]] = {
                names("conv1"): (inner, inward, 1, 1, 1), names("conv2"): (inner, 1, 3, 3, 3),
                names("conv3"): (width, inner, 1, 1, 1),
                **_norm(names("norm1"), inner), **_norm(names("norm2_x3d"), inner), **_norm(names("norm3"), width),
            }  # fmt: skip
            if block % 2 == 0:
                shapes[f"{names('fc1')}.weight"], shapes[f"{names('fc1')}.bias"] = (hidden, inner, 1, 1, 1), (hidden,)
                shapes[f"{names('fc2')}.weight"], shapes[f"{names('fc2')}.bias"] = (inner, hidden, 1, 1, 1), (inner,)
            if block == 0:
                shapes[names("shortcut")] = (width, inward, 1, 1, 1)
                if stage > 0 or layout == "mmaction2":
                    shapes.update(_norm(names("shortcut_norm"), width))
            weights.update({key.format(stage + 1, block): shape for key, shape in shapes.items()})
            inward = width
    weights[names("conv5")] = (432, 192, 1, 1, 1)
    weights.update(_norm(names("norm5"), 432))
    if layout == "PyTorchVideo":
        weights["blocks.5.pool.post_conv.weight"] = (2048, 432, 1, 1, 1)
        weights["blocks.5.proj.weight"], weights["blocks.5.proj.bias"] = (classes, 2048), (classes,)
    else:
        weights["cls_head.fc1.weight"] = (2048, 432)
        weights["cls_head.fc2.weight"], weights["cls_head.fc2.bias"] = (classes, 2048), (classes,)
    return dict(_random(weights))


def slowonly_state(layout: str, depths: tuple[int, ...] = (3, 4, 6, 3), classes: int = 400) -> State:
    """Random weights under the names and of the shapes of a public checkpoint of SlowOnly."""
    names, weights = NAMES[layout], {}
    weights[names("conv")] = (64, 3, 1, 7, 7)
    weights.update(_norm(names("conv_norm"), 64))
    inward = 64
    for stage, depth in enumerate(depths):
        inner = 64 * 2**stage
        width, length = 4 * inner, 3 if stage >= 2 else 1
        for block in range(depth):
            shapes: dict[str, tuple[int, ...]] = {
                names("conv1"): (inner, inward, length, 1, 1), names("conv2"): (inner, inner, 1, 3, 3),
                names("conv3"): (width, inner, 1, 1, 1),
                **_norm(names("norm1"), inner), **_norm(names("norm2"), inner), **_norm(names("norm3"), width),
            }  # fmt: skip
            if block == 0:
                shapes[names("shortcut")] = (width, inward, 1, 1, 1)
                shapes.update(_norm(names("shortcut_norm"), width))
            weights.update({key.format(stage + 1, block): shape for key, shape in shapes.items()})
            inward = width
    head = "blocks.5.proj" if layout == "PyTorchVideo" else "cls_head.fc_cls"
    weights[f"{head}.weight"], weights[f"{head}.bias"] = (classes, 2048), (classes,)
    return dict(_random(weights))


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{each}": (width,) for each in ("weight", "bias", "running_mean", "running_var")} | {
        f"{name}.num_batches_tracked": ()
    }


def _random(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            yield name, torch.tensor(7)
        elif name.endswith("running_var"):
            yield name, 0.5 + torch.rand(shape, generator=generator)
        elif len(shape) == 1:
            yield name, 0.5 * torch.randn(shape, generator=generator)
        else:
            inputs = shape[1] * (shape[2] * shape[3] * shape[4] if len(shape) == 5 else 1)
            yield name, torch.randn(shape, generator=generator) * (2 / inputs) ** 0.5

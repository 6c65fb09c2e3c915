"""Multiply-accumulates of one image through a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from math import prod
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import InputError
from ..stream import Sieved
from .limit import SlicingLimit

aten = torch.ops.aten


def macs(
    module: nn.Module,
    input_size: Sequence[int] = (3, 224, 224),
    *,
    proposal: bool = True,
    selection: bool = False,
    fvcore_compat: bool = False,
    images: Tensor | None = None,
) -> float:
    """Count multiply-accumulates for each image: what papers print as "GFLOPs" is this over 1e9.

    Counted by running an image: every convolution and matrix product, attention's two included. One
    multiply-accumulate counts as one.

    Args:
        module: a dense model, a sieved one, or any module that takes images.
        input_size: (3, H, W) of the image.
        proposal: False leaves out what computes the significance map.
        selection: True adds the arithmetic of choosing tokens (ToMe's similarity scores, 0.03 to 0.5 %), which the
            papers' tables leave out.
        fvcore_compat: add what the papers' counter adds: 5 for each element of a LayerNorm's output, 2 for each of a
            BatchNorm's, 4 for each of a bilinear resize. Channels-first LayerNorm is left out, as there.
        images: (B, 3, H, W) to count on instead, and the mean over them. Where the count depends on the data (`ats`),
            it is the most that can be without them.

    Returns:
        MACs for each image.
    """
    given = images is not None
    if images is None:
        if len(input_size) != 3:
            raise InputError(f"input_size is (3, height, width), not {tuple(input_size)}.")
        parameter = next(module.parameters(), torch.empty(0))
        images = torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)
    parts: list[tuple[nn.Module, Callable[[], Any]]] = []
    if not isinstance(module, Sieved):
        parts.append((module, partial(module, images)))
    else:
        # The host on as many tokens is what the papers count; the significance map comes on top.
        lengths = [(SlicingLimit(module), images)]
        if given and any(method.varies for _, method in module.plan.methods):  # each image on what it keeps itself
            lengths = [(SlicingLimit.on(module, one), one) for one in images.split(1)]
        parts.append((module.model, lambda: [limit(some) for limit, some in lengths]))
        if module.significance is not None and (proposal or selection):
            parts.append((module.significance, module.asking(images)))
    total = sum(_count(owner, call, fvcore_compat) for owner, call in parts[: 2 if proposal else 1])
    if isinstance(module, Sieved) and module.parts:  # learned layers of a method's own
        total += _count(module, partial(module, images), fvcore_compat, within="parts")
    if selection and isinstance(module, Sieved):
        counted = sum(_count(owner, call, False) for owner, call in parts)
        total += _count(module, partial(module, images), False) - counted
    return total / images.shape[0]


@torch.no_grad()
def _count(owner: nn.Module, call: Callable[[], Any], fvcore_compat: bool, within: str = "") -> float:
    """MACs of one call; `owner` holds the modules that it runs, `within` names one of them to count alone."""
    counted = {torch.ops.mkldnn._linear_pointwise: lambda x, *_a, out_shape=None, **_k: 2 * prod(x) * out_shape[-1]}
    extra = {
        aten.native_layer_norm: lambda x, *_a, out_shape=None, **_k: 2 * 5 * prod(x),
        aten.native_batch_norm: lambda x, *_a, out_shape=None, **_k: 2 * 2 * prod(x),
        aten.cudnn_batch_norm: lambda x, *_a, out_shape=None, **_k: 2 * 2 * prod(x),
        aten.upsample_bilinear2d: lambda *_a, out_shape=None, **_k: 2 * 4 * prod(out_shape),
    }
    counter = FlopCounterMode(display=False, custom_mapping={**counted, **extra} if fvcore_compat else counted)
    uncounted = 0

    def leave_out(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal uncounted
        uncounted += 5 * output.numel()

    with ExitStack() as hooks:
        # torch's own multi-head attention has a fast path that the counter sees nothing of.
        hooks.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        # The counter's hooks stumble over a parameter that is read as it is (a pooling's latent), grad mode or not.
        for parameter in owner.parameters():
            if parameter.requires_grad:
                hooks.callback(parameter.requires_grad_, True)
                parameter.requires_grad_(False)
        if fvcore_compat:
            for name, part in owner.named_modules():
                if isinstance(part, LayerNorm2d) and name.startswith(within):
                    hooks.callback(part.register_forward_hook(leave_out).remove)
        with counter:
            call()
    if within:
        # Modules by their dotted names; one inside another that was called is counted with that one.
        counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
        named = [name for name in counts if name.startswith(f"{type(owner).__name__}.{within}.")]
        return sum(counts[name] for name in named if name.rpartition(".")[0] not in counts) / 2 - uncounted
    return counter.get_total_flops() / 2 - uncounted

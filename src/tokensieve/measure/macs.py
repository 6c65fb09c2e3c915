"""Multiply-accumulates of one image through a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from math import prod
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import InputError
from ..stream import Sieved

aten = torch.ops.aten


def macs(
    module: nn.Module,
    input_size: Sequence[int] = (3, 224, 224),
    *,
    proposal: bool = True,
    fvcore_compat: bool = False,
    images: Tensor | None = None,
) -> float:
    """Count multiply-accumulates for each image: what papers print as "GFLOPs" is this over 1e9.

    Counted by running one image through the module: every matrix product and convolution, attention's two included.

    Args:
        module: a dense model, a sieved one, or any module that takes images.
        input_size: (3, H, W) of the image.
        proposal: False leaves out what computes the significance map.
        fvcore_compat: add what the papers' counter adds: 5 for each element of a LayerNorm's output, 2 for each of a
            BatchNorm's, 4 for each of a bilinear resize. Channels-first LayerNorm is left out, as there.
        images: (B, 3, H, W) to count on instead, where the count depends on the data; the mean over them.

    Returns:
        MACs for one image. One multiply-accumulate counts as one.
    """
    if images is None:
        if len(input_size) != 3:
            raise InputError(f"input_size is (3, height, width), not {tuple(input_size)}.")
        parameter = next(module.parameters(), torch.empty(0))
        images = torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)
    total = _count(module, images, fvcore_compat)
    if not proposal and isinstance(module, Sieved) and module.significance is not None:
        grid = module.host.embed(images[:1]).grid
        total -= _count(lambda x: module.significance(x, grid), images, fvcore_compat, module)
    return total / images.shape[0]


@torch.no_grad()
def _count(
    call: Callable[[Tensor], Any], images: Tensor, fvcore_compat: bool, module: nn.Module | None = None
) -> float:
    extra = {
        aten.native_layer_norm: lambda x, *_a, out_shape=None, **_k: 2 * 5 * prod(x),
        aten.native_batch_norm: lambda x, *_a, out_shape=None, **_k: 2 * 2 * prod(x),
        aten.cudnn_batch_norm: lambda x, *_a, out_shape=None, **_k: 2 * 2 * prod(x),
        aten.upsample_bilinear2d: lambda *_a, out_shape=None, **_k: 2 * 4 * prod(out_shape),
    }
    counter = FlopCounterMode(display=False, custom_mapping=extra if fvcore_compat else None)
    owner = module if module is not None else call
    with ExitStack() as stack:
        uncounted = [0]
        if fvcore_compat and isinstance(owner, nn.Module):

            def leave_out(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
                uncounted[0] += 5 * output.numel()

            for part in owner.modules():
                if isinstance(part, LayerNorm2d):
                    stack.callback(part.register_forward_hook(leave_out).remove)
        with counter:
            call(images)
        return counter.get_total_flops() / 2 - uncounted[0]

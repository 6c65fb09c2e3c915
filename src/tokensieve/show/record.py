"""What every result says of itself: machine, versions, and what the recipe does to the model."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from .. import __version__
from ..measure import macs
from ..stream import Sieved


@torch.no_grad()
def describe(fast: Sieved, dense: nn.Module, size: tuple[int, int]) -> dict[str, Any]:
    """Facts about a pair of models that read images of `size` (height, width), as plain JSON.

    `macs` are for each image, the proposal's included in `sieved`; `tokens` has the dense count and what each block's
    MLP reads, prefix included.
    """
    like = next(dense.parameters())
    trace = fast.trace(torch.zeros(1, 3, *size, device=like.device, dtype=like.dtype))
    assert trace.tokens is not None
    before, after = macs(dense, (3, *size)), macs(fast, (3, *size))
    without = macs(fast, (3, *size), proposal=False)
    return {
        "recipe": str(fast.recipe),
        "input_size": [3, *size],
        "device": str(like.device),
        "machine": machine_name(like.device),
        "threads": torch.get_num_threads(),
        "versions": {
            "tokensieve": __version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "python": platform.python_version(),
        },
        "macs": {
            "dense": before,
            "sieved": after,
            "proposal": after - without,
            "ratio": before / after,
            "ratio_without_proposal": before / without,
        },
        "tokens": {"dense": trace.tokens.prefix + trace.source.shape[1], "per_block": trace.tokens_per_block},
    }


def machine_name(device: torch.device) -> str:
    """The GPU, or the processor with the matrix units on which its speed in bf16 depends."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"^model name\s*: (.*)$", info, re.MULTILINE)
    units = re.search(r" (amx_bf16|avx512_bf16)\b", info)
    return (name[1] if name else platform.machine()) + (f" ({units[1]})" if units else "")

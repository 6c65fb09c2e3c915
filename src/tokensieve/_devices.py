"""Checks that a module and its input are on one device, and which precisions a processor computes natively."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ._recording import recording
from .errors import InputError

UNITS = {"bf16": ("avx512_bf16", "amx_bf16"), "fp16": ("avx512_fp16", "amx_fp16")}
"""Precision -> the x86 processor features that compute in it."""


def check_device(module: nn.Module, x: Tensor, what: str) -> None:
    """Raise `InputError` if a tensor is not on the device of a module; the message begins with `what`.

    A forward that is being recorded into a graph is not checked: its modules ran before.
    """
    tensor = None if recording() else next(chain(module.parameters(), module.buffers()), None)
    if tensor is not None and tensor.device != x.device:
        raise InputError(
            f"{what} on {tensor.device}, and its input is on {x.device}: move the sieved model, fast.to(...), not only "
            "its host, and move the images to the same device."
        )


def lacks_units(dtype: str, device: str) -> bool:
    """Whether a processor is known to have no units for `bf16` or `fp16`; False where that is not known."""
    if device.startswith("cuda"):
        return dtype == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return capabilities.get("architecture") == "x86_64" and not any(capabilities.get(name) for name in UNITS[dtype])

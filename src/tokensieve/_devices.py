"""Whether a module is where the tensors are that it is given; what a processor has units for."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ._recording import recording
from .errors import InputError

UNITS = {"bf16": ("avx512_bf16", "amx_bf16"), "fp16": ("avx512_fp16", "amx_fp16")}
"""What x86 processors call their units for a precision."""


def check_device(module: nn.Module, x: Tensor, what: str) -> None:
    """Refuse a tensor that is not on the device of a module, which `what` names in the sentence. Raises `InputError`.

    A forward that is recorded is not checked: a graph is made of modules that ran before.
    """
    tensor = None if recording() else next(chain(module.parameters(), module.buffers()), None)
    if tensor is not None and tensor.device != x.device:
        raise InputError(
            f"{what} on {tensor.device}, and its input is on {x.device}: move what sieve() returned, fast.to(...), "
            "and not its host alone; and the images with it."
        )


def lacks_units(dtype: str, device: str) -> bool:
    """Whether a processor is known to have no units for `bf16` or `fp16`; what is not known is not claimed."""
    if device.startswith("cuda"):
        return dtype == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return capabilities.get("architecture") == "x86_64" and not any(capabilities.get(name) for name in UNITS[dtype])

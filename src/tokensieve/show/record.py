"""What every result says of itself: machine, versions, and what the recipe does to the model."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from .. import __version__
from ..data.inputs import InputSize, own_input
from ..measure import Fidelity, macs
from ..measure.intervals import Interval
from ..stream import Sieved


@torch.no_grad()
def describe(fast: Sieved, dense: nn.Module, size: InputSize) -> dict[str, Any]:
    """Facts about a pair of models that read images or clips of `size`, as `own_input` takes it, as plain JSON.

    `macs` are for each image or clip, the proposal's included in `sieved`; `tokens` has the dense count and what each
    block's MLP reads, prefix included. A host with stages has `stages` instead: the pixels of each stage's map, and
    those that its blocks' point-wise operators run on. The other one of the two is None.
    """
    like = next(dense.parameters())
    spec = own_input(dense, size)
    images = torch.zeros(1, *spec, device=like.device, dtype=like.dtype)
    before, after = macs(dense, spec), macs(fast, spec)
    without = macs(fast, spec, proposal=False)
    return {
        "recipe": str(fast.recipe),
        "input_size": list(spec),
        "layout": spec.layout,
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
        **_reads(fast, images),
    }


def compared(result: Fidelity) -> dict[str, Any]:
    """How far a sieved model is from its dense one, as plain JSON: NAME, and NAME_low and NAME_high of its interval.

    `dense` and `sieved` have a percentage for each top-k, or the figures of a `MapScore`, and `change` what they differ
    by; None without labels. `kind` says what the outputs are.
    """
    found: dict[str, Any] = {"images": result.count}
    for name, scores in (("dense", result.dense_accuracy), ("sieved", result.accuracy)):
        found[name] = None if scores is None else dict(scores.figures)
        found |= _ends(name, None if scores is None else scores.figure_intervals)
    found["change"] = {_figure(name): change for name, change in result.changes.items()} or None
    found |= _ends("change", {_figure(name): ends for name, ends in result.change_intervals.items()} or None)
    for name in ("agreement", "kl", "cosine", "divergence", "neighbours"):
        interval: Interval | None = getattr(result, f"{name}_interval")
        found[name] = getattr(result, name)
        found |= {f"{name}_{end}": interval and getattr(interval, end) for end in Interval._fields}
    return {**found, "agreement_stderr": result.agreement_stderr, "kind": result.kind}


def _figure(name: int | str) -> str:
    """The k of top-k as a name."""
    return f"top{name}" if isinstance(name, int) else name


def _ends(name: str, intervals: Mapping[str, Interval] | None) -> dict[str, Any]:
    return {
        f"{name}_{end}": intervals and {figure: getattr(interval, end) for figure, interval in intervals.items()}
        for end in Interval._fields
    }


def _reads(fast: Sieved, images: Tensor) -> dict[str, Any]:
    if fast.units == "pixels":
        pixels = [prod(size) for size in fast.sizes(images)]
        blocks = [[reads.mlp for reads in fast.plan.reads(stage, count)] for stage, count in enumerate(pixels)]
        stages = [{"pixels": count, "per_block": each} for count, each in zip(pixels, blocks, strict=True)]
        return {"tokens": None, "stages": stages}
    trace = fast.trace(images)
    assert trace.tokens is not None
    dense = trace.tokens.prefix + trace.source.shape[1]
    return {"tokens": {"dense": dense, "per_block": trace.tokens_per_block}, "stages": None}


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

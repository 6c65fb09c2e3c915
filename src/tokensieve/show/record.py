"""What every result says of itself: machine, versions, and what the recipe does to the model."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any

import timm
import torch
from torch import Tensor, nn

from .. import __version__
from ..cascades.cascade import Cascade
from ..data.inputs import InputSize, own_input
from ..measure import Fidelity, macs
from ..measure.intervals import Interval
from ..measure.macs import reading_macs
from ..stream import Sieved

COUNTED = 24
"""Pictures on which MACs and tokens are counted, where they depend on the picture."""


@torch.no_grad()
def describe(fast: Sieved, dense: nn.Module, size: InputSize) -> dict[str, Any]:
    """Facts about a pair of models that read images or clips of `size`, as `own_input` takes it, as plain JSON.

    `macs` are for each image or clip, the proposal's included in `sieved`; `tokens` has the dense count and what each
    block's MLP reads, prefix included. A host with stages has `stages` instead: the pixels of each stage's map, and
    those that its blocks' point-wise operators run on. The other one of the two is None. A cascade has neither, but
    `cascade`: its members with what each adds to an image that comes to it, and its MACs are of the shares that it was
    calibrated with, or else of images that all are read by all. Where a recipe reads as many
    tokens as each picture needs, MACs are the most that can be, and tokens those of a black picture: `on_pictures`
    knows better.
    """
    parameter = next(dense.parameters())
    spec = own_input(dense, size)
    images = torch.zeros(1, *spec, device=parameter.device, dtype=parameter.dtype)
    if isinstance(fast, Cascade):
        shares = fast.shares or tuple(float(index in fast.active) for index in range(len(fast.members)))
        costs = cascade_reads(fast, spec, shares)
    else:
        after, without = macs(fast, spec), macs(fast, spec, proposal=False)
        costs = {"macs": _macs(macs(dense, spec), after, after - without), **_reads(fast, images)}
    return {
        "recipe": str(fast.recipe),
        "input_size": list(spec),
        "layout": spec.layout,
        "device": str(parameter.device),
        "machine": machine_name(parameter.device),
        "threads": torch.get_num_threads(),
        "versions": {
            "tokensieve": __version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "python": platform.python_version(),
        },
        "cascade": None,
        **costs,
    }


def _macs(dense: float, sieved: float, proposal: float) -> dict[str, float]:
    return {
        "dense": dense,
        "sieved": sieved,
        "proposal": proposal,
        "ratio": dense / sieved,
        "ratio_without_proposal": dense / (sieved - proposal),
    }


def cascade_reads(fast: Cascade, spec: InputSize, shares: Sequence[float]) -> dict[str, Any]:
    """The parts `macs`, `tokens`, `stages` and `cascade` of `describe`, where each member reads this share of the
    images. Members whose count depends on the image count as the most that can be."""
    added = reading_macs(fast, spec)
    proposals = [macs(member, spec) - macs(member, spec, proposal=False) for member in fast.members]
    sieved, proposal = (sum(s * cost for s, cost in zip(shares, each, strict=True)) for each in (added, proposals))
    recipe = fast.recipe
    members = [
        {"recipe": str(member.recipe), "macs": cost, "share": share}
        for member, cost, share in zip(fast.members, added, shares, strict=True)
    ]
    settings = {
        name: getattr(recipe, name) for name in ("score", "thresholds", "agree", "confidence", "images", "shares")
    }
    cascade = {**settings, "members": members, "one_host": fast.one_host}
    return {"macs": _macs(macs(fast.dense, spec), sieved, proposal), "tokens": None, "stages": None, "cascade": cascade}


def on_pictures(fast: Sieved, dense: nn.Module, images: Tensor) -> dict[str, Any]:
    """The parts `macs` and `tokens` of `describe` as means over images (B, 3, H, W), `COUNTED` of them at most, where
    the recipe reads as many tokens as each image needs, and of a cascade of as many as it reads; nothing where all
    images cost the same."""
    if isinstance(fast, Cascade):
        like = next(dense.parameters())
        with torch.no_grad():
            parts = [fast.trace(chunk).shares for chunk in images.to(like.device, like.dtype).split(COUNTED)]
        sizes = [min(COUNTED, len(images) - start) for start in range(0, len(images), COUNTED)]
        means = [
            sum(n * part[i] for n, part in zip(sizes, parts, strict=True)) / len(images) for i in range(len(parts[0]))
        ]
        return cascade_reads(fast, tuple(images.shape[1:]), means)
    if not fast.plan.varies:
        return {}
    parameter = next(dense.parameters())
    single_images = images[:COUNTED].to(parameter.device, parameter.dtype).split(1)
    with torch.no_grad():
        lengths = [fast.trace(image).lengths for image in single_images]
    counts = [
        {"macs": macs(fast, images=image), "tokens_per_block": [int(count) for count in length]}
        for image, length in zip(single_images, lengths, strict=True)
    ]
    return averaged(fast, macs(dense, tuple(images.shape[1:])), single_images[0], counts)


def averaged(fast: Sieved, dense_macs: float, image: Tensor, counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`on_pictures` of what is known of each.

    Args:
        fast: under such a recipe.
        dense_macs: of the dense model.
        image: one of the images, (1, 3, H, W).
        counts: of each picture its `macs` and its `tokens_per_block`.
    """
    (grid,) = fast.sizes(image)
    mean = fmean(count["macs"] for count in counts)
    proposal = macs(fast, images=image) - macs(fast, images=image, proposal=False)
    blocks = zip(*(count["tokens_per_block"] for count in counts), strict=True)
    return {
        "macs": {
            "dense": dense_macs,
            "sieved": mean,
            "proposal": proposal,
            "ratio": dense_macs / mean,
            "ratio_without_proposal": dense_macs / (mean - proposal),
            "pictures": len(counts),
        },
        "tokens": {"dense": fast.host.prefix + prod(grid), "per_block": [round(fmean(block)) for block in blocks]},
    }


def compared(result: Fidelity) -> dict[str, Any]:
    """How far a sieved model is from its dense one, as plain JSON: NAME, and NAME_low and NAME_high of its interval.

    `dense` and `sieved` have a percentage for each top-k, or the figures of a `MapScore`, and `change` what they differ
    by; None without labels. `kind` says what the outputs are.
    """
    comparison: dict[str, Any] = {"images": result.count}
    for name, scores in (("dense", result.dense_accuracy), ("sieved", result.accuracy)):
        comparison[name] = None if scores is None else dict(scores.figures)
        comparison |= _ends(name, None if scores is None else scores.figure_intervals)
    comparison["change"] = {_figure(name): change for name, change in result.changes.items()} or None
    comparison |= _ends("change", {_figure(name): ends for name, ends in result.change_intervals.items()} or None)
    for name in ("agreement", "kl", "cosine", "divergence", "neighbours"):
        interval: Interval | None = getattr(result, f"{name}_interval")
        comparison[name] = getattr(result, name)
        comparison |= {f"{name}_{end}": interval and getattr(interval, end) for end in Interval._fields}
    return {**comparison, "agreement_stderr": result.agreement_stderr, "kind": result.kind}


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
        stages = [{"pixels": count, "per_block": per_block} for count, per_block in zip(pixels, blocks, strict=True)]
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

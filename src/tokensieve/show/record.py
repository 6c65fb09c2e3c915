"""The part that all records share: machine, versions, and the effect of the recipe on the model."""

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
"""Number of pictures on which MACs and tokens are counted, if they depend on the picture."""


@torch.no_grad()
def describe(fast: Sieved, dense: nn.Module, size: InputSize) -> dict[str, Any]:
    """Facts about a sieved and a dense model for images or clips of `size` (see `own_input`), as plain JSON.

    `macs` are per image or clip, with the proposal's included in `sieved`; `tokens` has the dense count and the tokens
    that each block's MLP reads, prefix included. A host with stages has `stages` instead: the pixels of each stage's
    map, and those that its blocks' point-wise operators run on. The other one of the two is None. A cascade has
    `cascade` instead of both: its members with the MACs that each adds for an image that reaches it; its MACs use the
    shares of its calibration, or else assume that every image reaches every member. If the number of tokens depends on
    the picture, MACs are an upper bound and tokens those of a black picture; `on_pictures` measures them.
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
    """The parts `macs`, `tokens`, `stages` and `cascade` of `describe`, if each member reads the given share of the
    images. For members whose cost depends on the image, the upper bound is used."""
    added = reading_macs(fast, spec)
    proposals = [macs(member, spec) - macs(member, spec, proposal=False) for member in fast.members]
    sieved, proposal = (sum(s * cost for s, cost in zip(shares, costs, strict=True)) for costs in (added, proposals))
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
    """The parts of `describe` that depend on the images (B, 3, H, W), as means over them; empty if all images cost the
    same. If token counts depend on the image, at most `COUNTED` images are used; for a cascade all of them."""
    if isinstance(fast, Cascade):
        weight = next(dense.parameters())
        with torch.no_grad():
            parts = [fast.trace(chunk).shares for chunk in images.to(weight.device, weight.dtype).split(COUNTED)]
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
    """The result of `on_pictures` from the counts of single pictures.

    Args:
        fast: a sieved model whose token counts depend on the picture.
        dense_macs: MACs of the dense model.
        image: one of the images, (1, 3, H, W).
        counts: for each picture its `macs` and its `tokens_per_block`.
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
    """A `Fidelity` as plain JSON: NAME for each figure, NAME_low and NAME_high for its interval.

    `dense` and `sieved` have a percentage for each top-k, or the figures of a `MapScore`, and `change` has their
    differences; None without labels. `kind` is the kind of the outputs.
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
    """The name of a figure; top-k accuracy is given by its k."""
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
    """The name of the GPU, or of the processor with its bf16 units, if any."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"^model name\s*: (.*)$", info, re.MULTILINE)
    units = re.search(r" (amx_bf16|avx512_bf16)\b", info)
    return (name[1] if name else platform.machine()) + (f" ({units[1]})" if units else "")

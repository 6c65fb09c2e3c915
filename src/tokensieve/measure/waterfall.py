"""The waterfall: the speed gained step by step by the recipe, a lower precision, the compiler and a larger batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..data.inputs import InputSpec, check_images
from ..errors import InputError, SieveError, first_line
from ..export.packing import prepack
from ..stream import Sieved
from .attention import attention_kernels
from .comparison import kind_of, relative_difference
from .limit import SlicingLimit
from .memory import peak_memory
from .outputs import collect_outputs
from .pair import check_pair
from .speed import Speed, interleaved, summarise

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Row:
    """A row of the waterfall: the setup of the row before plus one step. Ratios are medians over rounds of the time per
    image."""

    step: str
    """The added step: `dense`, `recipe`, `bf16` or `fp16`, `prepack`, `compile`, `batch`."""
    batch: int
    dtype: str
    ratio: float
    """Time of the first row divided by the time of this one; `low` and `high` are its 10th and 90th percentile."""
    low: float
    high: float
    gain: float
    """Time of the row before divided by the time of this one, with percentiles."""
    gain_low: float
    gain_high: float
    limit: float | None
    """Time of the first row divided by that of the slicing limit in this row's precision, packing, compilation and
    batch."""
    of_limit: float | None
    """Time of the limit divided by the time of this row."""
    map_share: float | None
    """Time of the significance map divided by the time of this row; None if there is no map, or if it is compiled
    together with the model."""
    images_per_second: float
    seconds: dict[str, float]
    """Median seconds per batch of the `row`, its `limit` and its `map`. Comparable only within one run."""
    memory_bytes: int
    """Peak memory of a call, without the weights."""
    attention: tuple[str, ...]
    """Attention kernels that torch selected."""
    difference: float | None
    """Largest change of an output against the recipe's row in fp32, divided by the largest output of that row."""
    agreement: float | None
    """Percent of the images, or pixels, with the same class as the dense model's; None unless requested."""
    compared: int
    """Number of images compared for `difference` and `agreement`."""


@dataclass(frozen=True)
class Skipped:
    """A step that cannot run on this machine; the next step is added to the last row that could."""

    step: str
    reason: str


@dataclass(frozen=True)
class Waterfall:
    """The rows in order, and the speed of the recipe's step alone."""

    rows: list[Row | Skipped]
    recipe: Speed


@dataclass(frozen=True)
class _Setup:
    step: str
    model: nn.Module
    """The model that runs: dense, sieved, packed or compiled."""
    limit: nn.Module | None
    images: Tensor
    sieved: Sieved
    """The sieved model in this precision, before packing and compiling."""
    packed: bool = False
    compiled: bool = False

    def calls(self) -> dict[str, Callable[[], Any]]:
        calls: dict[str, Callable[[], Any]] = {"row": partial(self.model, self.images)}
        if self.limit is not None:
            calls["limit"] = partial(self.limit, self.images)
            if self.sieved.significance is not None and not self.compiled:
                calls["map"] = self.sieved.map_call(self.images)
        return calls


@torch.no_grad()
def waterfall(
    fast: Sieved,
    dense: nn.Module,
    images: Tensor,
    *,
    batch: int,
    dtype: torch.dtype = torch.bfloat16,
    prepacked: bool = False,
    agreement: bool = False,
    seconds: float = 10.0,
    min_rounds: int = 7,
    max_rounds: int = 200,
    progress: Callable[[str], None] = lambda _: None,
) -> Waterfall:
    """Measure the speed that each step adds, all rows and their limits interleaved in the same rounds.

    Args:
        fast, dense: the sieved and the dense model that shares its weights, in fp32.
        images: (M, 3, H, W) fp32 on the models' device: the batch of the last row; the other rows use the first
            `batch`.
        batch: batch size of all rows but the last.
        dtype: the lower precision of model and images; a proposal keeps its own.
        prepacked: add a row with linear weights packed once (CPUs). Packed layers cannot be compiled; in the compiled
            rows the compiler packs the weights itself.
        agreement: compare classes with the dense model; needs real weights and pictures.
        seconds: time to spend after the first calls; at least `min_rounds` rounds are run.
        min_rounds, max_rounds: number of rounds at least and at most.
        progress: called with a message about the current step.

    Raises:
        InputError: `batch` is not smaller than the number of images, or a model cannot run at all.
    """
    check_pair(fast, dense, "waterfall")
    check_images(images, InputSpec.of(dense).layout)
    if not 0 < batch < len(images):
        raise InputError(f"The waterfall ends with a larger batch: {len(images)} images are not more than {batch}.")
    if next(dense.parameters()).dtype != torch.float32 or images.dtype != torch.float32:
        raise InputError("The waterfall begins in fp32: give it model and images in float32.")
    steps: dict[str, Callable[[_Setup], _Setup]] = {PRECISIONS[dtype]: partial(_lower, dtype=dtype)}
    if prepacked:
        steps["prepack"] = _packed
    steps |= {"compile": _compiled, "batch": partial(_larger, images=images)}
    base = images[:batch]
    setups = [_Setup("dense", dense, None, base, fast), _Setup("recipe", fast, SlicingLimit(fast), base, fast)]
    outputs = []
    for setup in setups:
        progress(f"{setup.step}: first call")
        outputs.append(_outputs(setup, images, batch))
    skipped = {}
    for step, add in steps.items():
        progress(f"{step}: {'compiling' if step == 'compile' or setups[-1].compiled else 'first call'}")
        try:
            setup = replace(add(setups[-1]), step=step)
            output = _outputs(setup, images, batch)
            setup.calls()["limit"]()
        except (
            SieveError,
            RuntimeError,
        ) as error:  # raised by the compiler, for a missing kernel, and if memory is full
            skipped[step] = Skipped(step, first_line(error))
        else:
            setups.append(setup)
            outputs.append(output)

    progress(f"{len(setups)} rows and their limits: measuring for {seconds:g} s or longer")
    calls = {f"{setup.step} {name}": call for setup in setups for name, call in setup.calls().items()}
    times = interleaved(calls, seconds=seconds, min_rounds=min_rounds, max_rounds=max_rounds)
    progress("measuring memory")
    agreement = agreement and getattr(dense, "num_classes", 0) > 1
    rows = {}
    for index, (setup, output) in enumerate(zip(setups, outputs, strict=True)):
        compared: dict[str, Any] = {
            "difference": relative_difference(output, outputs[1]) if index > 1 else None,
            "agreement": _agreement(output, outputs[0]) if agreement else None,
            "compared": len(output),
        }
        rows[setup.step] = _row(setup, setups[0], setups[max(0, index - 1)], times, compared)
    names = {"dense": "dense row", "sieved": "recipe row", "limit": "recipe limit", "proposal": "recipe map"}
    recipe = summarise({name: times[key] for name, key in names.items() if key in times}, batch)
    return Waterfall([skipped.get(step) or rows[step] for step in ("dense", "recipe", *steps)], recipe)


def _lower(setup: _Setup, dtype: torch.dtype) -> _Setup:
    sieved = copy.deepcopy(setup.sieved)
    sieved.model.to(dtype)
    return replace(setup, model=sieved, limit=SlicingLimit(sieved), images=setup.images.to(dtype), sieved=sieved)


def _packed(setup: _Setup) -> _Setup:
    packed = cast(Sieved, prepack(setup.sieved))
    return replace(setup, model=packed, limit=SlicingLimit(packed), packed=True)


def _compiled(setup: _Setup) -> _Setup:
    # Else dynamo, after seeing the same code with other token counts, treats them as dynamic.
    torch._dynamo.reset()
    options: dict[str, Any] = {"freezing": True} if setup.packed else {}  # freezing packs constant weights

    def compiled(module: nn.Module) -> nn.Module:
        return cast(nn.Module, torch.compile(module, fullgraph=True, dynamic=False, options=options))

    return replace(setup, model=compiled(setup.sieved), limit=compiled(SlicingLimit(setup.sieved)), compiled=True)


def _larger(setup: _Setup, images: Tensor) -> _Setup:
    return replace(setup, images=images.to(setup.images.dtype))


def _outputs(setup: _Setup, images: Tensor, batch: int) -> Tensor:
    """Outputs (n, ...) fp32 on the CPU, in batches of the setup's size, for the images of the first rows' batches."""
    count, size = len(images) // batch * batch, len(setup.images)
    return collect_outputs(setup.model, images[: max(count, size)].split(size))[:count].float()


def _agreement(outputs: Tensor, dense: Tensor) -> float | None:
    shares = kind_of(dense, classes=True).agreement(dense, outputs)
    return None if shares is None else 100 * float(shares.mean())


def _row(setup: _Setup, first: _Setup, before: _Setup, times: dict[str, list[float]], compared: dict[str, Any]) -> Row:
    def of_image(setup: _Setup, name: str = "row") -> list[float]:
        return [value / len(setup.images) for value in times[f"{setup.step} {name}"]]

    calls, size = setup.calls(), len(setup.images)
    seconds_of = {name: of_image(setup, name) for name in calls}
    limit = seconds_of.get("limit", seconds_of["row"])
    total = summarise({"dense": of_image(first), "sieved": seconds_of["row"], "limit": limit}, size)
    step = summarise({"dense": of_image(before), "sieved": seconds_of["row"], "limit": limit}, size)
    return Row(
        step=setup.step,
        batch=size,
        dtype=PRECISIONS[setup.images.dtype],
        ratio=total.ratio,
        low=total.low,
        high=total.high,
        gain=step.ratio,
        gain_low=step.low,
        gain_high=step.high,
        limit=total.limit if "limit" in seconds_of else None,
        of_limit=total.of_limit if "limit" in seconds_of else None,
        map_share=median(m / r for m, r in zip(seconds_of["map"], seconds_of["row"], strict=True))
        if "map" in seconds_of
        else None,
        images_per_second=1 / median(seconds_of["row"]),
        seconds={name: size * median(values) for name, values in seconds_of.items()},
        memory_bytes=peak_memory(calls["row"], setup.images.device),
        attention=attention_kernels(calls["row"]),
        **compared,
    )

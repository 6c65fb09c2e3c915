"""`tokensieve bench`: measure the speed of a recipe relative to the dense model, and explain it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..model_spec import PRECISIONS, ModelSpec, OpenedModel
from .opening import Media, is_cascade_recipe, read_spec, record_of
from .options import ClipOptions, JsonOption, MachineOptions, ModelOptions, PretrainedOption, numbers
from .output import print_record

if TYPE_CHECKING:  # heavy imports wait until the command runs, so that --help answers at once
    from torch import Tensor

    from ..measure.decoding import Decoding

DECODED = 8
"""Pictures that a worker prepares at a time: few, so that the rate is soon known."""
COMPARED = 100
"""Maximum number of pictures of --data on which the loss is measured."""
POOL = 128
"""Number of pictures of --data, if there are as many, on which a cascade is timed: its time depends on the picture."""


@dataclass(frozen=True)
class BenchedModel(ModelOptions):
    """A model with random weights by default: speed does not depend on them."""

    pretrained: PretrainedOption = False


def bench(
    *,
    network: BenchedModel,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Batch sizes; default 8, for a cascade 1,8,32; for the waterfall one or two, default N and 4 N.",
        ),
    ] = None,
    machine: MachineOptions,
    seconds: Annotated[
        float, typer.Option(min=0, help="Time for each batch size, for the waterfall and for decoding.")
    ] = 10.0,
    waterfall: Annotated[
        bool,
        typer.Option(
            "--waterfall", help="Add the recipe, bf16 (or --dtype fp16), torch.compile and a larger batch, in turn."
        ),
    ] = False,
    prepack: Annotated[
        bool, typer.Option("--prepack", help="Pack linear weights of both models once (CPUs); a row of the waterfall.")
    ] = False,
    memory: Annotated[bool, typer.Option(help="Measure peak memory as well; the waterfall always does.")] = False,
    data: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Measure on these pictures or videos, and measure decoding speed."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Processes that decode --data; default 0: the main process.")
    ] = None,
    clips: ClipOptions,
    as_json: JsonOption = False,
) -> None:
    """Measure how much faster a recipe is than the dense model in the same process, and what limits it.

    Weights are random by default: speed does not depend on them. With weights and --data it also measures the loss.
    """
    batches = numbers(batch or "8", "--batch")
    if waterfall:
        batches = batches if batches[1:] else [batches[0], 4 * batches[0]]
        if len(batches) > 2 or batches[0] >= batches[1]:
            raise InputError(f"--batch of the waterfall must be one size, or a small and a larger one, not {batch!r}.")
    if workers is not None and data is None:
        raise InputError("--workers decode the pictures of --data: give both, or neither.")
    dtype = machine.dtype
    first_dtype = "fp32" if waterfall and dtype in PRECISIONS else dtype  # --dtype is the waterfall's lower precision
    spec = read_spec(network, replace(machine, dtype=first_dtype), clips, cascades=True)
    cascaded = is_cascade_recipe(network)
    if cascaded:
        batches = numbers(batch or "1,8,32", "--batch")
        _check_cascade(spec, data, waterfall, memory)
    if prepack and spec.torch_device().type != "cpu":
        raise InputError("--prepack is for CPUs: leave it out, or give --device cpu.")
    import torch

    from ..data.scanning import PICTURES
    from ..export.packing import prepack as pack
    from ..show.files import files_record
    from ..show.progress import list_failures, working
    from ..show.record import on_pictures
    from ..show.tables import units

    with working("opening the model"):
        media = None if data is None else Media(data)
        opened = spec.open()
        record = {**record_of(spec, opened), "prepacked": prepack, "data": data, "decoding": None, "loss": None}
        if prepack and not waterfall:
            opened = spec.sieve(pack(opened.dense), opened.preprocessing, opened.fast.recipe)
    decoded, kind = None, PICTURES
    if media is None:
        images = torch.randn(max(batches), *record["input_size"])
    else:
        source = media.prepared(opened.preprocessing)
        kind = source.kind
        scored = not waterfall and (spec.pretrained or spec.weights is not None)
        with working(f"decoding {kind.many}") as work:
            keep = max(*batches, COMPARED) if scored else max(batches)
            keep = max(keep, 2 * max(batches), POOL) if cascaded else keep
            decoded, images = _decode(source, keep, workers or 0, seconds)
            if scored:
                work.update("comparing outputs")
                record["loss"] = _loss(opened, images[: min(COMPARED, decoded.pictures)])
        record["decoding"] = asdict(decoded)
        record |= files_record(source, decoded.pictures, decoded.failures)
    record |= {"runs": [], "waterfall": None}
    record |= on_pictures(opened.fast, opened.dense, images)
    images = (images if cascaded else images[: max(batches)]).to(opened.device, opened.dtype)
    context = {
        "macs_ratio": record["macs"]["ratio"],
        "host_macs_ratio": record["macs"]["ratio_without_proposal"],
        "device": record["device"],
        "network": getattr(opened.fast.significance, "proposal", None) is not None,
        "decoded": decoded,
        "units": units(record),
    }
    if cascaded:
        for count in batches:
            with working(f"batch {count}: measuring for {seconds:g} s"):
                record["runs"].append(_cascade_run(opened, images, count, seconds))
    elif waterfall:
        settings = {
            "dtype": torch.float16 if dtype == "fp16" else torch.bfloat16,
            "prepacked": prepack,
            "agreement": data is not None and (spec.pretrained or spec.weights is not None),
            "seconds": seconds,
        }
        with working("measuring") as status:
            record["waterfall"] = _waterfall(opened, images, batches[0], settings, context, status.update)
    else:
        context |= {"dtype": dtype, "prepacked": prepack}
        for count in batches:
            with working(f"batch {count}: measuring for {seconds:g} s"):
                record["runs"].append(_run(opened, images[:count], seconds, memory, context))
    print_record(record, "bench_view.bench_view", as_json)
    list_failures(decoded.failures if decoded else (), kind)


def _run(opened: OpenedModel, images: Tensor, seconds: float, memory: bool, context: dict[str, Any]) -> dict[str, Any]:
    """Measurements for one batch size, dense, sieved and limit interleaved, with an explanation of the result."""
    import torch

    from ..measure import peak_memory, speed
    from ..measure.attention import attention_kernels
    from ..show.verdict import verdict

    with torch.no_grad():
        result = speed(opened.fast, opened.dense, images, seconds=seconds)
        calls = {"dense": partial(opened.dense, images), "sieved": partial(opened.fast, images)}
        peaks = {name: peak_memory(call, images.device) for name, call in calls.items()} if memory else None
        kernels = {name: attention_kernels(call) for name, call in calls.items()}
    return {
        **{field.name: getattr(result, field.name) for field in fields(result) if field.name != "times"},
        "images_per_second": {name: result.batch / result.seconds[name] for name in calls},
        "memory_bytes": peaks,
        "attention": kernels,
        "verdict": verdict(result, **context, attention=kernels),
    }


def _check_cascade(spec: ModelSpec, data: str | None, waterfall: bool, memory: bool) -> None:
    """Check the options for a cascade, whose cost depends on the pictures and on the weights."""
    if data is None or not (spec.pretrained or spec.weights is not None):
        raise InputError(
            "The cost of a cascade depends on its pictures and its answers: give --data FOLDER, and weights by "
            "--pretrained or --weights FILE."
        )
    if waterfall or memory:
        raise InputError(
            f"{'--waterfall' if waterfall else '--memory'} cannot measure a cascade: give one of the cascade's recipes."
        )


def _cascade_run(opened: OpenedModel, images: Tensor, batch: int, seconds: float) -> dict[str, Any]:
    """Measurements of a cascade and the dense model for one batch size."""
    from ..measure.cascade_speed import cascade_speed

    return asdict(cascade_speed(opened.fast, opened.dense, images, batch, seconds=seconds))  # type: ignore[arg-type]


def _loss(opened: OpenedModel, images: Tensor) -> dict[str, Any]:
    """Fidelity of the sieved model to the dense one on some pictures."""
    from ..measure import fidelity
    from ..show.record import compared

    return compared(fidelity(opened.fast, opened.dense, list(images.split(DECODED))))


def _waterfall(
    opened: OpenedModel,
    images: Tensor,
    batch: int,
    settings: dict[str, Any],
    context: dict[str, Any],
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """A row for each step, with an explanation."""
    from ..measure.waterfall import waterfall
    from ..show.waterfall_verdict import waterfall_verdicts

    result = waterfall(opened.fast, opened.dense, images, batch=batch, progress=progress, **settings)
    verdicts = waterfall_verdicts(result, **context)
    return [{**asdict(row), "verdict": sentences} for row, sentences in zip(result.rows, verdicts, strict=True)]


def _decode(pictures: Any, keep: int, workers: int, seconds: float) -> tuple[Decoding, Tensor]:
    """Speed of decoding and preprocessing pictures or videos, and the first `keep` of them as tensors."""
    from ..data import load_batches
    from ..measure.decoding import decoding

    batches = load_batches(pictures, DECODED, workers)
    return decoding(batches, keep=keep, workers=workers, seconds=seconds)

"""`tokensieve bench`: how much faster, and why not more."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Annotated

import typer

from ..errors import InputError
from ..job import Job, numbers
from .options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    PretrainedOption,
    ProposalWeightsOption,
    RecipeOption,
    SizeOption,
    ThreadsOption,
    WeightsOption,
)
from .output import print_record


def bench(
    model: ModelOption = "vit_base_patch16_224",
    recipe: RecipeOption = "papr(keep=0.5)",
    weights: WeightsOption = None,
    pretrained: PretrainedOption = False,
    proposal_weights: ProposalWeightsOption = None,
    batch: Annotated[str, typer.Option(metavar="N,...", help="Batch sizes to measure.")] = "8",
    size: SizeOption = None,
    dtype: DtypeOption = "fp32",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    seconds: Annotated[float, typer.Option(min=0, help="Time to spend on each batch size.")] = 10.0,
    prepack: Annotated[bool, typer.Option("--prepack", help="Pack linear weights once, on CPUs, for both.")] = False,
    memory: Annotated[bool, typer.Option(help="Measure peak memory as well.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how much faster a model gets, beside the dense model in the same process, and say why not more.

    Weights are random unless asked for: speed does not depend on them.
    """
    batches = numbers(batch, "--batch")
    job = Job(model, recipe, weights, pretrained, proposal_weights, size, dtype, device, threads)
    if prepack and job.where.type != "cpu":
        raise InputError("--prepack is for CPUs: leave it out, or give --device cpu.")
    import torch
    from rich.console import Console

    from ..measure import peak_memory, speed
    from ..measure.verdict import verdict
    from ..packing import prepack as pack

    console = Console(stderr=True)
    with console.status("opening the model"):
        opened = job.open()
        record = {**job.record(opened), "prepacked": prepack}
        if prepack:
            opened = job.sieve(pack(opened.dense), opened.own)
    runs = []
    for count in batches:
        with console.status(f"batch {count}: measuring for {seconds:g} s"), torch.no_grad():
            images = torch.randn(count, 3, *opened.own.input_size, device=job.where, dtype=job.precision)
            result = speed(opened.fast, opened.dense, images, seconds=seconds)
            calls = {"dense": partial(opened.dense, images), "sieved": partial(opened.fast, images)}
            peaks = {name: peak_memory(call, job.where) for name, call in calls.items()} if memory else None
        measured = {field.name: getattr(result, field.name) for field in fields(result) if field.name != "times"}
        ratios = {"macs_ratio": record["macs"]["ratio"], "host_macs_ratio": record["macs"]["ratio_without_proposal"]}
        said = verdict(result, **ratios, dtype=dtype, device=record["device"], prepacked=prepack)
        runs.append({**measured, "memory_bytes": peaks, "verdict": said})
    print_record({**record, "runs": runs}, "bench_view", as_json)

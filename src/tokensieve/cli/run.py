"""`tokensieve run`: write a row of outputs for each picture or video, in a job that can be resumed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from ..errors import InputError
from .opening import read_spec
from .options import (
    BatchOption,
    JsonOption,
    MachineOptions,
    ModelOptions,
    PreprocessingOption,
    SetOptions,
)
from .output import print_record, say


def run(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="Folders, tars, lists, Parquet files, pictures, videos, hfds/NAME or URLs."
        ),
    ],
    *,
    network: ModelOptions,
    out: Annotated[str | None, typer.Option(metavar="FOLDER", help="Folder or URL to write rows to.")] = None,
    output: Annotated[
        str, typer.Option(metavar="classes|embeddings|features|maps", help="The output in each row.")
    ] = "classes",
    form: Annotated[str, typer.Option("--format", metavar="parquet|jsonl", help="Format of the files.")] = "parquet",
    k: Annotated[int, typer.Option(min=1, metavar="K", help="Classes per row, the most likely first.")] = 5,
    classes: Annotated[
        str | None, typer.Option(metavar="FILE", help="Names of the classes, if the model has none.")
    ] = None,
    pooling: Annotated[
        str | None, typer.Option(metavar="token|avg|max|...", help="Pooling of embeddings; default the model's own.")
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Scale embeddings to length 1.")] = False,
    store: Annotated[str, typer.Option(metavar="fp32|fp16", help="Precision in which numbers are stored.")] = "fp32",
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most N items, evenly spread.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate the time, and write nothing.")] = False,
    batch: BatchOption = 32,
    shard: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Items per output file; default 1024, for maps 128.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Decoding processes per device; 0: the main process.")
    ] = None,
    max_errors: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Stop if more than N items are unreadable; default never.")
    ] = None,
    devices: Annotated[
        str | None, typer.Option(metavar="0,1|cpu,cpu", help="One process per device; a number is a CUDA device.")
    ] = None,
    engine: Annotated[
        str, typer.Option(metavar="local|ray", help="Run on this machine, or on a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(metavar="auto|HOST:PORT", help="Address of the Ray cluster; default a local one.")
    ] = None,
    actors: Annotated[
        str | None, typer.Option(metavar="N|N-M", help="Ray: number of actors, or its range; default 1.")
    ] = None,
    actor_cpus: Annotated[float | None, typer.Option(metavar="N", help="Ray: CPUs per actor.")] = None,
    actor_gpus: Annotated[
        float | None, typer.Option(metavar="N", help="Ray: GPUs per actor; with 0.5 two actors share a GPU.")
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split of a dataset (hfds/).")] = "train",
    image_column: Annotated[str | None, typer.Option(metavar="NAME", help="Tables: column with the pictures.")] = None,
    id_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Tables: column with the ids; default row numbers.")
    ] = None,
    preprocessing: PreprocessingOption = "timm",
    clips: SetOptions,
    machine: MachineOptions,
    as_json: JsonOption = False,
) -> None:
    """Write classes, embeddings, patch features or maps of every picture or video, as Parquet or JSON lines.

    If it is stopped, the same command resumes it: no row is lost or written twice.
    """
    if out is None and not dry_run:
        raise InputError("Give --out FOLDER to write the rows to, or --dry-run.")
    device_names = [] if devices is None else [part.strip() for part in devices.split(",")]
    if not all(device_names):
        raise InputError(f"--devices must be names of devices, joined by commas, not {devices!r}.")
    cluster = _cluster(address, actors, actor_cpus, actor_gpus)
    spec = read_spec(network, machine, clips, preprocessing=preprocessing, cascades=True)
    from ..about.machine import cores
    from ..jobs import estimate, job_of
    from ..jobs import run as run_job
    from ..show.files import tell_files
    from ..show.progress import working

    workers = max(1, cores() // (2 * max(1, len(device_names)))) if workers is None else workers
    settings: dict[str, Any] = {
        "output": output,
        "format": form,
        "k": k,
        "classes": classes,
        "pooling": pooling,
        "normalize": normalize,
        "store": store,
        "batch": batch,
        "shard": shard,
        "limit": limit,
        "root": clips.root,
        "split": split,
        "image_column": image_column,
        "id_column": id_column,
    }
    if dry_run:
        job = job_of(spec, sources, out or "", **settings)
        with working("running a few items"):
            estimated = estimate(job, workers=workers, devices=max(1, len(device_names)))
        print_record(asdict(estimated), "run_view.estimate_view", as_json)
        return
    assert out is not None
    running: dict[str, Any] = {"workers": workers, "devices": device_names, "engine": engine, "max_errors": max_errors}
    running |= {"ray": cluster, "progress": True, "opened": tell_files}
    result = run_job(spec, sources, out, **running, **settings)
    print_record(asdict(result), "run_view.run_view", as_json)
    if not as_json:
        for sentence in result.notes:
            say(sentence)


def _cluster(address: str | None, actors: str | None, cpus: float | None, gpus: float | None) -> dict[str, Any]:
    """The Ray options that were given."""
    cluster: dict[str, Any] = {"address": address, "cpus": cpus, "gpus": gpus}
    if actors is not None:
        ends = actors.split("-")
        if not all(end.strip().isdecimal() for end in ends) or len(ends) > 2:
            raise InputError(f"--actors must be a number, or the fewest and the most as in 2-8, not {actors!r}.")
        cluster["actors"] = int(ends[0]) if len(ends) == 1 else (int(ends[0]), int(ends[1]))
    return {name: value for name, value in cluster.items() if value is not None}

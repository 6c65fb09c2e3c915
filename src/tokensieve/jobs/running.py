"""Runs a job, or resumes an interrupted one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any

import torch

from ..data.remote import is_url
from ..data.scanning import PICTURES
from ..errors import InputError
from ..model_spec import ModelSpec
from . import manifest
from .devices import device_name, run_devices
from .files import finished, gathered_errors, write_gathered
from .output_folder import OutputFolder, open_output
from .progress import Progress
from .ray_engine import RaySettings, run_ray
from .rows import pyarrow
from .settings import Job, RowSettings, RunSettings
from .shards import Work, describe, open_work, run_shards
from .sources import SourceSettings


@dataclass(frozen=True)
class Result:
    """The result of a job.

    Attributes:
        out: output folder.
        items: number of pictures or videos in the sources.
        rows: number of rows, those of earlier runs included.
        errors: number of items without a row.
        shards: number of files of rows.
        before: number of items finished by earlier runs.
        seconds: duration of this run, from the first item read to the last file written.
        per_second: items of this run per second.
        waited: share of the models' time spent waiting for items.
        skipped: number of files and folders in the sources that were skipped.
        notes: sentences about the run, such as whether decoding was the limit, or whether library versions changed.
    """

    out: str
    items: int
    rows: int
    errors: int
    shards: int
    before: int
    seconds: float
    per_second: float
    waited: float
    skipped: int
    notes: tuple[str, ...]


def run(
    model: ModelSpec | str,
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    workers: int = 1,
    devices: Sequence[str] = (),
    engine: str = "local",
    max_errors: int | None = None,
    ray: dict[str, Any] | None = None,
    progress: bool = False,
    opened: Callable[[Any], None] | None = None,
    **settings: Any,
) -> Result:
    """Run a model on pictures or videos, and write a row for each.

    An interrupted job resumes when it is started again: files of rows are written atomically, and a folder with rows of
    other settings is refused.

    Args:
        model: a `ModelSpec`, or a model's name.
        sources: folders, tars, lists, Parquet files, files, datasets or URLs; see `sources.open_items`.
        out: output folder or its URL; it gets `rows/`, `errors.parquet` (or .jsonl), `manifest.json`, `log.txt`.
        workers: decoding processes for each device.
        devices: such as ("cuda:0", "cuda:1"), with a process for each; by default the spec's device, in this process.
        engine: "local", or "ray".
        max_errors: number of failed items above which the job stops.
        ray: settings of the cluster, see `RaySettings`.
        progress: show the progress on stderr.
        opened: called with the dataset of items once it is open.
        settings: those of `RowSettings` and `SourceSettings`.

    Raises:
        InputError, RecipeError, UnsupportedHost: the model, a source, the folder or a setting cannot be used; or,
            during the run, disk or memory is full, or there are more errors than `max_errors`.
    """
    running = RunSettings(workers, tuple(map(device_name, devices)), engine, max_errors, dict(ray or {}))
    job = job_of(model, sources, out, **settings)
    if job.rows.format == "parquet":
        pyarrow()
    output = open_output(job.out)
    output.prepare()
    output.lock()
    other_processes = running.devices or engine == "ray"
    # If other processes run the model it is only opened here for the manifest, on the CPU, which has the most memory.
    work = describe(job._replace(spec=replace(job.spec, device="cpu"))) if other_processes else open_work(job)
    if opened is not None:
        opened(work.items)
    job_manifest = work.manifest()
    version_notes = manifest.begin(output, job_manifest)
    done = finished(output, job.rows.format)
    before = sum(work.items_of(number) for number in done)
    failed = len(gathered_errors(output, sorted(done)))
    remaining = [number for number in range(work.shards) if number not in done]
    kind = getattr(work.items, "kind", PICTURES)
    counts = {"done": before, "errors": failed, "max_errors": max_errors}
    with Progress(kind, len(work.items), output, **counts, shown=progress) as meter:  # type: ignore[arg-type]
        meter.log(f"started: {len(work.items) - before} of {len(work.items)} {kind.many} remain, {asdict(running)}")
        for note in version_notes:
            meter.say(note)
        start = perf_counter()
        try:
            if remaining:
                _run_engine(job, work, job_manifest["settings"], remaining, meter, running)
                output.tidy()
        finally:
            complete = finished(output, job.rows.format)
            errors = gathered_errors(output, sorted(complete))
            write_gathered(output, job.rows.format, errors)
        _check_complete(work, complete, output)
        seconds = perf_counter() - start
        notes = [*version_notes, *meter.limit(running.workers, max(1, len(running.devices)))]
        if not other_processes and job.spec.torch_device().type == "cpu":
            notes += meter.shared_cores(running.workers)
        result = Result(
            job.out,
            len(work.items),
            len(work.items) - len(errors),
            len(errors),
            work.shards,
            before,
            seconds,
            (len(work.items) - before) / seconds if remaining else 0.0,
            meter.waited / max(meter.waited + meter.computed, 1e-9),
            len(work.items.skipped),
            tuple(notes),
        )
        meter.log(
            f"done: {result.rows} rows, {result.errors} errors, {result.per_second:.4g} a second. {' '.join(notes)}"
        )
    return result


def job_of(
    model: ModelSpec | str,
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    **settings: Any,
) -> Job:
    """Create a job, with absolute paths. Raises `RecipeError` for invalid settings."""
    spec = ModelSpec(model) if isinstance(model, str) else model
    spec.check()
    source_list = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    if not source_list:
        raise InputError("No source is given: give a folder, a tar, a list, a Parquet file or pictures.")
    for name in ("classes", "root"):
        if settings.get(name) is not None:
            settings[name] = _absolute(settings[name])
    reading = {name: settings.pop(name) for name in SourceSettings.__dataclass_fields__ if name in settings}
    paths = tuple(_absolute(os.fspath(source)) for source in source_list)
    path = os.fspath(out)
    path = path if is_url(path) or not path else os.path.abspath(path)
    return Job(spec.absolute(), paths, path, RowSettings(**settings), SourceSettings(**reading))


def _absolute(path: str) -> str:
    """The absolute path; URLs and names of datasets are unchanged."""
    return os.path.abspath(path) if not is_url(path) and os.path.exists(path) else path


def _run_engine(
    job: Job, work: Work, settings: dict[str, Any], shards: Sequence[int], meter: Progress, running: RunSettings
) -> None:
    """Run these shards with the selected engine."""
    if running.engine == "ray":
        run_ray(job, settings, shards, meter, RaySettings(**running.ray), workers=running.workers)
    elif running.devices:
        threads = max(1, torch.get_num_threads() // len(running.devices))
        run_devices(job, settings, shards, running.devices, meter, workers=running.workers, threads=threads)
    else:
        run_shards(work, shards, meter, workers=running.workers)


def _check_complete(work: Work, complete: set[int], output: OutputFolder) -> None:
    """Raise `InputError` unless the rows of every shard are written."""
    missing = [number for number in range(work.shards) if number not in complete]
    if missing:
        raise InputError(
            f"{len(missing)} of {work.shards} files of rows are missing in {output.name}: run the same command again."
        )

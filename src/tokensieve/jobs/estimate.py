"""Estimates the duration and size of a job from a few of its items, without writing anything."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from ..data import load_batches
from ..measure.decoding import decoding
from ..show.verdict import decoding_limit
from . import manifest
from .files import ENDINGS, finished, write_rows
from .output_folder import open_output
from .settings import Job
from .shards import InParts, open_work

DECODED = 8
"""Batch size for decoding: small, so that the rate is known soon."""
ROUNDS = 3
"""Smallest number of batches for timing the model, after a warm-up."""


@dataclass(frozen=True)
class Estimate:
    """The expected time and size of a job.

    Attributes:
        items, shards: number of all items, and of all shards.
        left: number of items that remain to be processed.
        decoded_per_second, model_per_second: items per second of decoding alone, and of the model alone.
        per_second: items per second of the job.
        seconds: duration for the remaining items.
        bytes: size of all files of rows.
        failed: number of items that could not be read during the estimate.
        notes: sentences about what limits the job, and whether memory was too small for the batch.
    """

    items: int
    shards: int
    left: int
    decoded_per_second: float
    model_per_second: float
    per_second: float
    seconds: float
    bytes: int
    failed: int
    notes: tuple[str, ...]


def estimate(job: Job, *, workers: int = 1, devices: int = 1, seconds: float = 10.0) -> Estimate:
    """Measure decoding and the model for about `seconds` each.

    Args:
        job: the job; its finished shards are left out of the estimate.
        workers: decoding processes for each device.
        devices: number of devices, each assumed to be as fast as this one.
        seconds: duration of each of the two measurements.

    Raises:
        InputError: as `running.run` before it starts, such as for a folder with rows of other settings; or none of the
            items could be read.
    """
    work = open_work(job)
    output = open_output(job.out) if job.out else None
    existing = None if output is None else manifest.read(output)
    if output is not None and existing is not None:
        manifest.check_same(output, existing, work.manifest())
    sentences: list[str] = []
    batches = load_batches(work.items, DECODED, workers)
    decoded, images = decoding(batches, keep=work.batch_size, workers=workers, seconds=seconds)
    predict = InParts(work.predict, work.batch_size, sentences.append)
    columns, start, rounds = predict(images), perf_counter(), 0
    while rounds < ROUNDS or perf_counter() - start < min(seconds, 3.0):
        predict(images)
        rounds += 1
    model_rate = devices * rounds * len(images) / (perf_counter() - start)
    items_per_second = min(decoded.per_second, model_rate) if workers else 1 / (1 / decoded.per_second + 1 / model_rate)
    done = finished(output, job.rows.format) if output is not None and existing is not None else set()
    left = len(work.items) - sum(work.items_of(number) for number in done)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"rows{ENDINGS[job.rows.format]}"
        write_rows(file, {"id": [work.items.path(0)] * len(images)} | columns, job.rows.format)
        size = round(file.stat().st_size / len(images) * len(work.items))
    return Estimate(
        len(work.items),
        work.shards,
        left,
        decoded.per_second,
        model_rate,
        items_per_second,
        left / items_per_second,
        size,
        len(decoded.failures),
        (*sentences, *decoding_limit(decoded, "the model", model_rate)),
    )

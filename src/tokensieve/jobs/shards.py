"""Runs shards on one device: reads items, runs the model, writes rows. Every engine calls this."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..data import ImageSet
from ..errors import InputError
from ..model_spec import OpenedModel
from . import manifest
from .columns import Columns, Predict, blank, concatenated, open_predictor
from .files import no_rows, shard_name, write_errors, write_rows
from .output_folder import OutputFolder, open_output
from .reading import Batch, Reader
from .settings import Job
from .sources import open_items

MAX_PENDING = 2
"""Shards that may wait to be written while the model runs on."""


class ShardProgress(NamedTuple):
    """Progress in a shard since the last report: finished items, failures among them, seconds that the model spent
    waiting for items, and computing."""

    shard: int
    items: int
    errors: int
    waited: float
    computed: float

    def and_then(self, more: ShardProgress) -> ShardProgress:
        """The sum of two reports on one shard."""
        items, errors = self.items + more.items, self.errors + more.errors
        return ShardProgress(self.shard, items, errors, self.waited + more.waited, self.computed + more.computed)


class Listener(Protocol):
    """Receives the progress of a job, and messages for its user."""

    def advance(self, progress: ShardProgress) -> None:
        """Add a report on a shard."""

    def say(self, sentence: str) -> None:
        """Show a message to the user."""


class Work(NamedTuple):
    """A job, opened on one device."""

    job: Job
    opened: OpenedModel
    items: ImageSet
    predict: Predict
    example: Columns
    """Columns of one item: the names and types of all."""

    @property
    def batch_size(self) -> int:
        """Items that go through the model at once."""
        return self.job.rows.items_together(self.opened.views)

    @property
    def shard_size(self) -> int:
        """Items of a shard; the last may have fewer."""
        return self.job.rows.shard_size(self.opened.views)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-len(self.items) // self.shard_size)

    def items_of(self, number: int) -> int:
        """How many items a shard has."""
        return min((number + 1) * self.shard_size, len(self.items)) - number * self.shard_size

    def manifest(self) -> dict[str, Any]:
        return manifest.manifest_of(self.job, self.opened, self.items)


def open_work(job: Job) -> Work:
    """Open a job's model and sources, and run the model on a blank item, to check that it gives the output.

    Raises:
        InputError, RecipeError, UnsupportedHost: the model cannot be opened, or gives no such output; the sources
            cannot be read.
    """
    work = describe(job)
    return work._replace(example=work.predict(blank(work.opened)))


def describe(job: Job) -> Work:
    """Open a job without running its model, for a process that leaves that to others."""
    opened, predict = open_predictor(job.spec, job.rows)
    return Work(job, opened, open_items(job.sources, opened.preprocessing, job.reading), predict, {})


class InParts:
    """Runs `predict` on parts of a batch; halves their size when memory is full, and reports it."""

    def __init__(self, predict: Predict, batch: int, say: Callable[[str], None]) -> None:
        self.predict, self.batch, self.say = predict, batch, say

    def __call__(self, images: Tensor) -> Columns:
        parts, start = [], 0
        while start < len(images):
            piece = images[start : start + self.batch]
            if (columns := self._fits(piece)) is None:
                self._halve(len(piece))
            else:
                parts.append(columns)
                start += len(piece)
        return concatenated(parts)

    def _fits(self, images: Tensor) -> Columns | None:
        """The model's columns, or None where memory is too small for these images."""
        try:
            return self.predict(images)
        except Exception as error:
            if not out_of_memory(error):
                raise
            return None

    def _halve(self, size: int) -> None:
        if size == 1:
            raise InputError("Out of memory, with one item at a time: give a smaller --size, or another --device.")
        self.batch = size // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.say(f"Out of memory with a batch of {size}: {self.batch} go through together from now on.")


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error or one of its causes is out-of-memory; torch has a type for GPUs alone."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(word in str(error) for word in ("out of memory", "allocate memory")):
            return True
        error = error.__cause__
    return False


def run_shards(
    work: Work,
    shards: Iterable[int],
    listener: Listener,
    *,
    workers: int,
    written: Callable[[int], None] = lambda number: None,
) -> None:
    """Read shards, run the model on them and write its rows, one after the other; a shard's file is written while the
    model runs on the next.

    Args:
        work: the job.
        shards: numbers; an iterator is consumed as the run proceeds.
        listener: gets a report after each batch.
        workers: processes that decode.
        written: called in this thread with the number of each shard once its rows are written.

    Raises:
        InputError: the model does not run on the items, rows cannot be written, or one item is too much for memory.
    """
    output = open_output(work.job.out)
    predict = InParts(work.predict, work.batch_size, listener.say)
    pin = work.opened.device.type == "cuda"
    reader = Reader(work.items, shards, shard=work.shard_size, batch=work.batch_size, workers=workers, pin=pin)
    pending: list[tuple[int, Future[None]]] = []
    parts: list[Columns] = []
    errors: list[dict[str, str]] = []
    waited = 0.0

    def settle(most: int) -> None:
        while len(pending) > most:
            number, future = pending.pop(0)
            future.result()
            written(number)

    with ThreadPoolExecutor(1) as writer:
        try:
            for batch in reader:
                began = perf_counter()
                if batch.images is not None:
                    parts.append(rows_of(work, batch, predict(batch.images)))
                computed = perf_counter() - began
                errors += [{"id": failure.path, "error": failure.reason} for failure in batch.failures]
                items = len(batch.indices) + len(batch.failures)
                listener.advance(
                    ShardProgress(batch.shard, items, len(batch.failures), reader.waited - waited, computed)
                )
                waited = reader.waited
                if batch.last:
                    columns = concatenated(parts) if parts else no_rows(_framed(work, work.example))
                    save = partial(_save, output, batch.shard, work.job.rows.format, columns, errors)
                    pending.append((batch.shard, writer.submit(save)))
                    parts, errors = [], []
                settle(MAX_PENDING)
            settle(0)
        except BaseException:
            with suppress(Exception):  # finished shards are kept
                settle(0)
            raise


def rows_of(work: Work, batch: Batch, columns: Columns) -> Columns:
    """The columns of a batch, `id` first; of videos then when their first and last frames are shown, in seconds."""
    row_columns: Columns = {"id": [work.items.path(index) for index in batch.indices]}
    if batch.times is not None:
        row_columns |= {name: batch.times[:, column].numpy() for column, name in enumerate(("start", "end"))}
    return row_columns | columns


def _framed(work: Work, columns: Columns) -> Columns:
    """Columns of one item with those that `rows_of` adds."""
    times = torch.zeros(1, 2, dtype=torch.float64) if hasattr(work.items, "attempt_timed") else None
    return rows_of(work, Batch(0, [0], None, times, [], True), columns)


def _save(output: OutputFolder, number: int, form: str, columns: Columns, errors: list[dict[str, str]]) -> None:
    write_errors(output, number, errors)
    output.write(shard_name(number, form), lambda path: write_rows(path, columns, form))

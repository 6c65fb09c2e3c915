"""Runs shards on one device: reads items, runs the model, writes rows. All engines use it."""

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
"""Largest number of shards that wait to be written while the model continues."""


class ShardProgress(NamedTuple):
    """Progress in a shard since the last report: finished items, failures among them, and seconds that the model spent
    waiting for items and computing."""

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
    """Receives the progress of a job, and messages for the user."""

    def advance(self, progress: ShardProgress) -> None:
        """Add a report on a shard."""

    def say(self, sentence: str) -> None:
        """Show a message to the user."""


class Work(NamedTuple):
    """A job whose model and items are open, on one device."""

    job: Job
    opened: OpenedModel
    items: ImageSet
    predict: Predict
    example: Columns
    """Columns of one blank item, which give the names and types of all columns."""

    @property
    def batch_size(self) -> int:
        """Number of items in a batch."""
        return self.job.rows.items_together(self.opened.views)

    @property
    def shard_size(self) -> int:
        """Number of items in a shard; the last one may have fewer."""
        return self.job.rows.shard_size(self.opened.views)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-len(self.items) // self.shard_size)

    def items_of(self, number: int) -> int:
        """Number of items in a shard."""
        return min((number + 1) * self.shard_size, len(self.items)) - number * self.shard_size

    def manifest(self) -> dict[str, Any]:
        return manifest.manifest_of(self.job, self.opened, self.items)


def open_work(job: Job) -> Work:
    """Open a job's model and sources, and run the model on a blank item to check its output.

    Raises:
        InputError, RecipeError, UnsupportedHost: the model cannot be opened, or does not return the requested output;
            or the sources cannot be read.
    """
    work = describe(job)
    return work._replace(example=work.predict(blank(work.opened)))


def describe(job: Job) -> Work:
    """Open a job without running its model, for a process that does not run it."""
    opened, predict = open_predictor(job.spec, job.rows)
    return Work(job, opened, open_items(job.sources, opened.preprocessing, job.reading), predict, {})


class InParts:
    """Runs `predict` on parts of a batch. When memory is full it halves their size and reports it by `say`."""

    def __init__(self, predict: Predict, batch: int, say: Callable[[str], None]) -> None:
        self.predict, self.batch, self.say = predict, batch, say

    def __call__(self, images: Tensor) -> Columns:
        parts, start = [], 0
        while start < len(images):
            chunk = images[start : start + self.batch]
            if (columns := self._try(chunk)) is None:
                self._halve(len(chunk))
            else:
                parts.append(columns)
                start += len(chunk)
        return concatenated(parts)

    def _try(self, images: Tensor) -> Columns | None:
        """The model's columns, or None if memory is too small for these images."""
        try:
            return self.predict(images)
        except Exception as error:
            if not out_of_memory(error):
                raise
            return None

    def _halve(self, size: int) -> None:
        if size == 1:
            raise InputError("Out of memory, even with one item at a time: give a smaller --size, or another --device.")
        self.batch = size // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.say(f"Out of memory with a batch of {size}: the batch size is {self.batch} from now on.")


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error or one of its causes is an out-of-memory error, for which torch has a class only on GPUs."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(text in str(error) for text in ("out of memory", "allocate memory")):
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
    """Read shards, run the model on them and write the rows. A shard is written while the model runs on the next one.

    Args:
        work: the open job.
        shards: numbers of the shards; an iterator is consumed as the run proceeds.
        listener: receives a report after each batch.
        workers: number of decoding processes.
        written: called in this thread with the number of each shard once its rows are written.

    Raises:
        InputError: the model does not run on the items, rows cannot be written, or memory is too small for one item.
    """
    output = open_output(work.job.out)
    predict = InParts(work.predict, work.batch_size, listener.say)
    pin = work.opened.device.type == "cuda"
    reader = Reader(work.items, shards, shard=work.shard_size, batch=work.batch_size, workers=workers, pin=pin)
    pending: list[tuple[int, Future[None]]] = []
    parts: list[Columns] = []
    errors: list[dict[str, str]] = []
    waited = 0.0

    def finish_writing(max_pending: int) -> None:
        while len(pending) > max_pending:
            number, future = pending.pop(0)
            future.result()
            written(number)

    with ThreadPoolExecutor(1) as writer:
        try:
            for batch in reader:
                start = perf_counter()
                if batch.images is not None:
                    parts.append(rows_of(work, batch, predict(batch.images)))
                computed = perf_counter() - start
                errors += [{"id": failure.path, "error": failure.reason} for failure in batch.failures]
                items = len(batch.indices) + len(batch.failures)
                listener.advance(
                    ShardProgress(batch.shard, items, len(batch.failures), reader.waited - waited, computed)
                )
                waited = reader.waited
                if batch.last:
                    columns = concatenated(parts) if parts else no_rows(_example_rows(work, work.example))
                    save = partial(_save, output, batch.shard, work.job.rows.format, columns, errors)
                    pending.append((batch.shard, writer.submit(save)))
                    parts, errors = [], []
                finish_writing(MAX_PENDING)
            finish_writing(0)
        except BaseException:
            with suppress(Exception):  # write the shards that are finished
                finish_writing(0)
            raise


def rows_of(work: Work, batch: Batch, columns: Columns) -> Columns:
    """The columns of a batch with `id` first, and for videos then `start` and `end`, the times of the first and last
    frame in seconds."""
    row_columns: Columns = {"id": [work.items.path(index) for index in batch.indices]}
    if batch.times is not None:
        row_columns |= {name: batch.times[:, column].numpy() for column, name in enumerate(("start", "end"))}
    return row_columns | columns


def _example_rows(work: Work, columns: Columns) -> Columns:
    """The columns of one item with those that `rows_of` adds."""
    times = torch.zeros(1, 2, dtype=torch.float64) if hasattr(work.items, "attempt_timed") else None
    return rows_of(work, Batch(0, [0], None, times, [], True), columns)


def _save(output: OutputFolder, number: int, form: str, columns: Columns, errors: list[dict[str, str]]) -> None:
    write_errors(output, number, errors)
    output.write(shard_name(number, form), lambda path: write_rows(path, columns, form))

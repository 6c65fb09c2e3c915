"""Decodes items in worker processes and collects them into full batches, shard by shard."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data import Failure, ImageSet
from ..errors import InputError, first_line

AT_ONCE = 32
"""The most items that a worker decodes at a time; memory holds a few times as many."""


class Batch(NamedTuple):
    """Items of one shard that go through the model together.

    Attributes:
        shard: its number.
        indices: of the B items.
        images: (B, ...) as the model reads them; None if no item is left.
        times: of videos (B, 2) float64: when their first and last frames are shown; else None.
        failures: items of this shard since the previous batch that could not be read.
        last: whether it is the shard's last batch.
    """

    shard: int
    indices: list[int]
    images: Tensor | None
    times: Tensor | None
    failures: list[Failure]
    last: bool


class _Chunk(NamedTuple):
    """Neighbouring items that a worker decodes at once."""

    shard: int
    indices: range
    last: bool


class _Decoded(NamedTuple):
    """The decoded items of a chunk, and its failures."""

    chunk: _Chunk
    indices: list[int]
    images: Tensor | None
    times: Tensor | None
    failures: list[Failure]


class _Chunks(Dataset[_Decoded]):
    """A data set that is indexed by chunks."""

    def __init__(self, items: ImageSet) -> None:
        self.items = items

    def __getitem__(self, chunk: Any) -> _Decoded:
        good, images, times, failures = [], [], [], []
        for index in chunk.indices:
            item: Any = _attempt(self.items, index)
            if isinstance(item, Failure):
                failures.append(item)
                continue
            good.append(index)
            images.append(item[0])
            if len(item) > 2:
                times.append(item[2].flatten()[[0, -1]])
        stacked = torch.stack(images) if images else None
        return _Decoded(chunk, good, stacked, torch.stack(times) if times else None, failures)


def _attempt(items: Any, index: int) -> Any:
    """(image, label), for a video also the times of its frames; or a `Failure`."""
    try:
        return items.attempt_timed(index) if hasattr(items, "attempt_timed") else items.attempt(index)
    except MemoryError:
        return Failure(items.path(index), "cannot be read: there is not enough memory for it")


def same(item: Any) -> Any:
    """A `collate_fn` that returns its input."""
    return item


class Reader:
    """Iterable of `Batch`: the items of some shards, in order, in batches of one size.

    Where items cannot be read, a batch takes the next ones of its shard; only the last batch of a shard is smaller. So
    batches depend on the items alone, and not on where an earlier run was interrupted.

    Attributes:
        waited: seconds spent waiting for decoded items.
    """

    def __init__(
        self, items: ImageSet, shards: Iterable[int], *, shard: int, batch: int, workers: int, pin: bool = False
    ) -> None:
        """`shard` and `batch` are numbers of items, `workers` of processes; `pin` pins the memory of images."""
        self.items, self.shards, self.shard, self.batch = items, shards, shard, batch
        self.workers, self.waited, self.pin = workers, 0.0, pin

    def __iter__(self) -> Iterator[Batch]:
        waiting: list[_Decoded] = []
        failures: list[Failure] = []
        for decoded in self._decoded():
            waiting.append(decoded)
            failures += decoded.failures
            while sum(len(chunk.indices) for chunk in waiting) >= self.batch and (
                sum(len(chunk.indices) for chunk in waiting) > self.batch or not decoded.chunk.last
            ):
                taken, waiting = _taken(waiting, self.batch)
                yield _batch(taken, failures, last=False)
                failures = []
            if decoded.chunk.last:
                yield _batch(waiting, failures, last=True)
                waiting, failures = [], []

    def _decoded(self) -> Iterator[_Decoded]:
        if self.workers > 0 and "av" in sys.modules:
            gc.collect()  # ends decoder threads, which would hang in a forked process
        loader: Any = DataLoader(
            _Chunks(self.items),
            batch_size=None,
            sampler=self._chunks(),
            num_workers=self.workers,
            collate_fn=same,
            pin_memory=self.pin,
        )
        steps = iter(loader)
        while True:
            began = perf_counter()
            try:
                decoded = next(steps, None)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise InputError(
                    f"A process that decodes was ended from outside ({first_line(error)}): most likely there was no "
                    "memory left. Give fewer --workers, and the same command again."
                ) from error
            self.waited += perf_counter() - began
            if decoded is None:
                return
            yield decoded

    def _chunks(self) -> Iterator[_Chunk]:
        for number in self.shards:
            first, end = number * self.shard, min((number + 1) * self.shard, len(self.items))
            step = min(self.batch, AT_ONCE)
            for start in range(first, end, step):
                stop = min(start + step, end)
                yield _Chunk(number, range(start, stop), stop == end)


def _taken(waiting: list[_Decoded], count: int) -> tuple[list[_Decoded], list[_Decoded]]:
    """Split decoded chunks into the first `count` items and the rest."""
    chunks: list[_Decoded] = []
    for index, chunk in enumerate(waiting):
        available = len(chunk.indices)
        if available > count:
            return [*chunks, _part(chunk, 0, count)], [_part(chunk, count, available), *waiting[index + 1 :]]
        chunks.append(chunk)
        count -= available
        if count == 0:
            return chunks, waiting[index + 1 :]
    return chunks, []


def _part(decoded: _Decoded, start: int, end: int) -> _Decoded:
    images, times = (None if values is None else values[start:end] for values in (decoded.images, decoded.times))
    return _Decoded(decoded.chunk, decoded.indices[start:end], images, times, [])


def _batch(chunks: list[_Decoded], failures: list[Failure], *, last: bool) -> Batch:
    images = [chunk.images for chunk in chunks if chunk.images is not None]
    times = [chunk.times for chunk in chunks if chunk.times is not None]
    indices = [index for chunk in chunks for index in chunk.indices]
    images_batch = images[0] if len(images) == 1 else torch.cat(images) if images else None
    times_batch = torch.cat(times) if times else None
    return Batch(chunks[0].chunk.shard, indices, images_batch, times_batch, failures, last)

"""Items decoded in worker processes, and put together to full batches, shard by shard."""

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
"""Items that a worker decodes before it hands them over, at most: what waits in memory is a few times that."""


class Batch(NamedTuple):
    """Items of one shard that go through the model together.

    Attributes:
        shard: its number.
        indices: of the items.
        images: (B, ...) as the model reads them; None where nothing is left to be read.
        times: of videos (B, 2) float64: when their first and last frames are shown; else None.
        failures: items of this shard, since the batch before, that could not be read.
        last: whether the shard is over.
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
    """A chunk's good items, and the others."""

    chunk: _Chunk
    indices: list[int]
    images: Tensor | None
    times: Tensor | None
    failures: list[Failure]


class _Chunks(Dataset[_Decoded]):
    """A set whose index is a chunk."""

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
    """(image, label), of a video with the times of its frames, or a `Failure`."""
    try:
        return items.attempt_timed(index) if hasattr(items, "attempt_timed") else items.attempt(index)
    except MemoryError:
        return Failure(items.path(index), "cannot be read: there is not enough memory for it")


def same(item: Any) -> Any:
    """A `collate_fn` that returns its input."""
    return item


class Reader:
    """Iterable of `Batch`: the items of some shards, in order, in batches of one size.

    A batch is filled up with the next items of its shard where some cannot be read; only a shard's last is smaller. So
    what goes through the model together depends on the items alone, and not on what was done before.

    Attributes:
        waited: seconds for which nothing was there to be given out.
    """

    def __init__(
        self, items: ImageSet, shards: Iterable[int], *, shard: int, batch: int, workers: int, pin: bool = False
    ) -> None:
        """Read the shards that `shards` gives, one after the other, with so many worker processes."""
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
            gc.collect()  # decoders end their threads here: in a forked process, which has no such thread, they hang
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
    """The first `count` items, and the rest."""
    taken: list[_Decoded] = []
    for place, chunk in enumerate(waiting):
        have = len(chunk.indices)
        if have > count:
            return [*taken, _part(chunk, 0, count)], [_part(chunk, count, have), *waiting[place + 1 :]]
        taken.append(chunk)
        count -= have
        if count == 0:
            return taken, waiting[place + 1 :]
    return taken, []


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

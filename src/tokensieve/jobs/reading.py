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
    """Neighbouring items, as a worker is asked for them."""

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
            found: Any = _attempt(self.items, index)
            if isinstance(found, Failure):
                failures.append(found)
                continue
            good.append(index)
            images.append(found[0])
            if len(found) > 2:
                times.append(found[2].flatten()[[0, -1]])
        stacked = torch.stack(images) if images else None
        return _Decoded(chunk, good, stacked, torch.stack(times) if times else None, failures)


def _attempt(items: Any, index: int) -> Any:
    """(image, label), of a video with the times of its frames, or a `Failure`."""
    try:
        return items.attempt_timed(index) if hasattr(items, "attempt_timed") else items.attempt(index)
    except MemoryError:
        return Failure(items.path(index), "cannot be read: there is not enough memory for it")


def same(item: Any) -> Any:
    """What a `DataLoader` shall leave as it is."""
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
            while sum(len(each.indices) for each in waiting) >= self.batch and (
                sum(len(each.indices) for each in waiting) > self.batch or not decoded.chunk.last
            ):
                some, waiting = _taken(waiting, self.batch)
                yield _batch(some, failures, last=False)
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
    some: list[_Decoded] = []
    for place, each in enumerate(waiting):
        have = len(each.indices)
        if have > count:
            return [*some, _part(each, 0, count)], [_part(each, count, have), *waiting[place + 1 :]]
        some.append(each)
        count -= have
        if count == 0:
            return some, waiting[place + 1 :]
    return some, []


def _part(decoded: _Decoded, start: int, end: int) -> _Decoded:
    images, times = (None if each is None else each[start:end] for each in (decoded.images, decoded.times))
    return _Decoded(decoded.chunk, decoded.indices[start:end], images, times, [])


def _batch(some: list[_Decoded], failures: list[Failure], *, last: bool) -> Batch:
    images = [each.images for each in some if each.images is not None]
    times = [each.times for each in some if each.times is not None]
    indices = [index for each in some for index in each.indices]
    whole = images[0] if len(images) == 1 else torch.cat(images) if images else None
    shown = torch.cat(times) if times else None
    return Batch(some[0].chunk.shard, indices, whole, shown, failures, last)

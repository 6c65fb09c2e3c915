"""Decodes items in worker processes and combines them into full batches, shard by shard."""

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
"""Largest number of items that a worker decodes at a time; a few times as many are in memory."""


class Batch(NamedTuple):
    """A batch of items of one shard.

    Attributes:
        shard: number of the shard.
        indices: indices of the B items.
        images: (B, ...) input of the model; None if no item is left.
        times: for videos (B, 2) float64, the times of the first and last frames in seconds; else None.
        failures: items of this shard that could not be read, since the previous batch.
        last: whether it is the last batch of the shard.
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
    """A dataset that is indexed by chunks."""

    def __init__(self, items: ImageSet) -> None:
        self.items = items

    def __getitem__(self, chunk: Any) -> _Decoded:
        indices, images, times, failures = [], [], [], []
        for index in chunk.indices:
            item: Any = _attempt(self.items, index)
            if isinstance(item, Failure):
                failures.append(item)
                continue
            indices.append(index)
            images.append(item[0])
            if len(item) > 2:
                times.append(item[2].flatten()[[0, -1]])
        stacked = torch.stack(images) if images else None
        return _Decoded(chunk, indices, stacked, torch.stack(times) if times else None, failures)


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
    """Iterable of `Batch`: the items of some shards, in order, in full batches.

    Items that cannot be read are replaced by the next ones of the shard; only the last batch of a shard is smaller. So
    batches depend only on the items, not on where an earlier run was interrupted.

    Attributes:
        waited: seconds spent waiting for decoded items.
    """

    def __init__(
        self, items: ImageSet, shards: Iterable[int], *, shard: int, batch: int, workers: int, pin: bool = False
    ) -> None:
        """Read shards of a dataset.

        Args:
            items: the dataset.
            shards: numbers of the shards to read.
            shard, batch: number of items in a shard, and in a batch.
            workers: number of decoding processes.
            pin: use pinned memory for images.
        """
        self.items, self.shards, self.shard, self.batch = items, shards, shard, batch
        self.workers, self.waited, self.pin = workers, 0.0, pin

    def __iter__(self) -> Iterator[Batch]:
        pending: list[_Decoded] = []
        failures: list[Failure] = []
        for decoded in self._decoded():
            pending.append(decoded)
            failures += decoded.failures
            while sum(len(chunk.indices) for chunk in pending) >= self.batch and (
                sum(len(chunk.indices) for chunk in pending) > self.batch or not decoded.chunk.last
            ):
                batch, pending = _split(pending, self.batch)
                yield _batch(batch, failures, last=False)
                failures = []
            if decoded.chunk.last:
                yield _batch(pending, failures, last=True)
                pending, failures = [], []

    def _decoded(self) -> Iterator[_Decoded]:
        if self.workers > 0 and "av" in sys.modules:
            gc.collect()  # ends the threads of decoders here; in a forked process, without these threads, it would hang
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
            start = perf_counter()
            try:
                decoded = next(steps, None)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise InputError(
                    f"A decoding process was killed ({first_line(error)}), most likely because there was no memory "
                    "left. Run the same command again, with fewer --workers."
                ) from error
            self.waited += perf_counter() - start
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


def _split(pending: list[_Decoded], count: int) -> tuple[list[_Decoded], list[_Decoded]]:
    """Split decoded chunks into the first `count` items and the rest."""
    chunks: list[_Decoded] = []
    for index, chunk in enumerate(pending):
        available = len(chunk.indices)
        if available > count:
            return [*chunks, _part(chunk, 0, count)], [_part(chunk, count, available), *pending[index + 1 :]]
        chunks.append(chunk)
        count -= available
        if count == 0:
            return chunks, pending[index + 1 :]
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

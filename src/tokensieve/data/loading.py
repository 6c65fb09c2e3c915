"""Reads a dataset in batches, in order, and records pictures and videos that cannot be read."""

import gc
import sys
from collections.abc import Callable, Iterator, Sized
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..errors import InputError, RecipeError
from .images import Failure
from .scanning import PICTURES, Kind


class Batch(NamedTuple):
    """A batch of pictures or videos.

    Attributes:
        images: (B, 3, H, W) float32; videos (B, *clip_shape), with several views (B, views, *clip_shape).
        labels: (B,) int64, -1 for no label; (B, H, W) for a segmentation set.
        paths: path or name of each picture or video.
        times: for videos (B, clips, frames) float64, the time of each frame in seconds from the beginning; else None.
    """

    images: Tensor
    labels: Tensor
    paths: tuple[str, ...]
    times: Tensor | None = None


class Batches:
    """Iterable of `Batch`, in the order of the dataset.

    Pictures that cannot be read are left out: such a batch is smaller than `batch_size`, or omitted if none is left.

    Attributes:
        failures: the pictures that could not be read so far in the latest pass.
    """

    def __init__(self, dataset: Dataset[Any], batch_size: int, workers: int = 0) -> None:
        if batch_size < 1 or workers < 0:
            raise RecipeError(f"batch_size must be at least 1 and workers at least 0, not {batch_size} and {workers}.")
        self.dataset = dataset
        self.batch_size = batch_size
        self.failures: list[Failure] = []
        streamed = isinstance(dataset, IterableDataset)
        attempts: Dataset[Any] = _StreamAttempts(dataset) if streamed else _Attempts(dataset)
        # With a second worker, items of a stream would be repeated or reordered.
        self._loader = DataLoader(
            attempts, batch_size, num_workers=min(workers, 1) if streamed else workers, collate_fn=_collate
        )

    @property
    def kind(self) -> Kind:
        """Whether the dataset holds pictures or videos."""
        kind: Kind = getattr(self.dataset, "kind", PICTURES)
        return kind

    def __len__(self) -> int:
        """Number of batches, including any that turn out empty. Raises TypeError for a stream, which has no length."""
        if not isinstance(self.dataset, Sized):
            raise TypeError("a stream of pictures has no length")
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        self.failures = []
        if self._loader.num_workers > 0 and "av" in sys.modules:
            gc.collect()  # ends the threads of decoders here; in a forked process, without these threads, it would hang
        for batch, failures in self._loader:
            self.failures += failures
            if batch is not None:
                yield batch


def load_batches(dataset: Dataset[Any], batch_size: int, workers: int = 0) -> Batches:
    """Read a dataset in batches. Items that cannot be read are recorded in `.failures`, and the rest goes on.

    Args:
        dataset: a result of `image_set`, or any map-style dataset of (image, label) that raises InputError for an item
            that cannot be read.
        batch_size: pictures per batch.
        workers: number of worker processes; 0 reads in this process. A stream uses at most one.

    Raises:
        RecipeError: a batch size below 1, or a negative number of workers.
    """
    return Batches(dataset, batch_size, workers)


class _Item(NamedTuple):
    image: Tensor
    label: int | Tensor
    path: str
    times: Tensor | None = None


class _Attempts(Dataset[_Item | Failure]):
    """Returns a `Failure` for an item that cannot be read, since an exception in a worker process ends the pass."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._path: Callable[[int], str] = getattr(dataset, "path", str)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> _Item | Failure:
        path = self._path(index)
        if hasattr(self.dataset, "attempt_timed"):
            timed = self.dataset.attempt_timed(index)
            return timed if isinstance(timed, Failure) else _Item(timed[0], timed[1], path, timed[2])
        if hasattr(self.dataset, "attempt"):
            result = self.dataset.attempt(index)
            return result if isinstance(result, Failure) else _Item(result[0], result[1], path)
        try:
            image, label = self.dataset[index][:2]
        except InputError as error:
            return Failure(path, f"cannot be read: {error}")
        return _Item(image, int(label), path)


class _StreamAttempts(IterableDataset[_Item]):
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[_Item]:
        name = getattr(self.dataset, "name", "")
        for position, (image, label) in enumerate(self.dataset):
            yield _Item(image, int(label), f"{name}[{position}]")


def _collate(items: list[_Item | Failure]) -> tuple[Batch | None, list[Failure]]:
    failures = [item for item in items if isinstance(item, Failure)]
    read_items = [item for item in items if isinstance(item, _Item)]
    if not read_items:
        return None, failures
    images, labels, paths, times = zip(*read_items, strict=True)
    if len({image.shape for image in images}) > 1:
        raise InputError("Pictures of different sizes cannot be in one batch: read them with batch_size=1.")
    label_batch = torch.stack(labels) if isinstance(labels[0], Tensor) else torch.tensor(labels, dtype=torch.int64)
    time_batch = None if times[0] is None else torch.stack(times)
    return Batch(torch.stack(images), label_batch, paths, time_batch), failures

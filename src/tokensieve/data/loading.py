"""Batches in order, with the pictures and videos that had to be left out on record."""

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
    """Pictures, or videos, that go through a model together.

    Attributes:
        images: (B, 3, H, W) float32; of videos (B, *clip_shape), with several views (B, views, *clip_shape).
        labels: (B,) int64, -1 where there is none; (B, H, W) of a segmentation set.
        paths: where each comes from.
        times: of videos (B, clips, frames) float64, when each frame is shown, in seconds from the beginning; else None.
    """

    images: Tensor
    labels: Tensor
    paths: tuple[str, ...]
    times: Tensor | None = None


class Batches:
    """Iterable of `Batch`, in the order of the data set.

    A batch is smaller than `batch_size` where pictures had to be left out, and absent if all of them had to.

    Attributes:
        failures: the pictures left out so far in the latest pass.
    """

    def __init__(self, dataset: Dataset[Any], batch_size: int, workers: int = 0) -> None:
        if batch_size < 1 or workers < 0:
            raise RecipeError(f"batch_size must be at least 1 and workers at least 0, not {batch_size} and {workers}.")
        self.dataset = dataset
        self.batch_size = batch_size
        self.failures: list[Failure] = []
        streamed = isinstance(dataset, IterableDataset)
        attempts: Dataset[Any] = _StreamAttempts(dataset) if streamed else _Attempts(dataset)
        # A second worker on a stream would repeat it, or change its order.
        self._loader = DataLoader(
            attempts, batch_size, num_workers=min(workers, 1) if streamed else workers, collate_fn=_collate
        )

    @property
    def kind(self) -> Kind:
        """Whether pictures or videos are read."""
        result: Kind = getattr(self.dataset, "kind", PICTURES)
        return result

    def __len__(self) -> int:
        """Number of batches, those that may come to nothing included; a stream has no length (TypeError)."""
        if not isinstance(self.dataset, Sized):
            raise TypeError("a stream of pictures has no length")
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        self.failures = []
        if self._loader.num_workers > 0 and "av" in sys.modules:
            gc.collect()  # decoders end their threads here: in a forked process, which has no such thread, they hang
        for batch, failures in self._loader:
            self.failures += failures
            if batch is not None:
                yield batch


def load_batches(dataset: Dataset[Any], batch_size: int, workers: int = 0) -> Batches:
    """Read a data set in batches; what cannot be read is recorded in `.failures` and the rest goes on.

    Args:
        dataset: of `image_set`, or any map-style data set of (image, label) that raises InputError for a bad item.
        batch_size: pictures a batch.
        workers: processes that read ahead; 0 reads in this one. A stream is read by one at most.

    Raises:
        RecipeError: a batch size below 1, or fewer workers than none.
    """
    return Batches(dataset, batch_size, workers)


class _Item(NamedTuple):
    image: Tensor
    label: int | Tensor
    path: str
    times: Tensor | None = None


class _Attempts(Dataset[_Item | Failure]):
    """Turns failures into values: an exception in a worker process would end the pass."""

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
    good = [item for item in items if isinstance(item, _Item)]
    if not good:
        return None, failures
    images, labels, paths, times = zip(*good, strict=True)
    if len({image.shape for image in images}) > 1:
        raise InputError("Pictures of unlike sizes cannot go through together: read them with batch_size=1.")
    label_batch = torch.stack(labels) if isinstance(labels[0], Tensor) else torch.tensor(labels, dtype=torch.int64)
    time_batch = None if times[0] is None else torch.stack(times)
    return Batch(torch.stack(images), label_batch, paths, time_batch), failures

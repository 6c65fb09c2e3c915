"""Fixed views of pictures without labels: a teacher runs on them once, and a student learns from its outputs.

The first four views are the picture itself, its mirror image, a random crop, and a crop mixed with a crop of another
picture, which makes the targets more varied than the classes of the pictures; further views are alternately crops and
mixed crops.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms import v2

from ..data import Batch, Failure, load_batches
from ..errors import InputError, RecipeError
from .task import Order, batch_seed

WHOLE, MIRRORED = 0, 1
"""Indices of the views that are not random; all others are crops."""
SCALE = (0.35, 1.0)
"""Smallest and largest area of a crop, as a share of the picture's."""
LIGHTEST = 0.5
"""Smallest weight of the picture itself in a mixed view."""
READ = 50
"""Batch size for inference."""
FEWEST, MOST_HELD = 20, 500
"""Minimum number of pictures to split, and maximum number of held-out pictures."""
NAMED = 10
"""Maximum number of unreadable pictures that are named in one error."""


def every_batch(pictures: Any, size: int, workers: int = 0) -> Iterator[Batch]:
    """Batches of all pictures of a dataset; unlike `load_batches` it raises if one cannot be read.

    Raises:
        InputError: pictures that cannot be read; the message names them.
    """
    batches = load_batches(pictures, size, workers)
    yield from batches
    failures = batches.failures
    if len(failures) == 1:
        raise InputError(f"{failures[0]}: repair or remove it before training.")
    if failures:
        names = "; ".join(map(str, failures[:NAMED])) + ("; ..." if len(failures) > NAMED else "")
        count = f"{len(failures)} of {len(pictures)} photographs"
        raise InputError(f"{count} cannot be read: repair or remove them before training. {names}.")


def set_of(pictures: Any) -> Any:
    """A map-style dataset of (image, -1), from a dataset, batches of one, or a tensor of images.

    Raises:
        InputError: an iterable without length or random access.
    """
    data = getattr(pictures, "dataset", pictures)
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise InputError(
            f"Training reads pictures in random order, and {type(data).__name__} has no random access: give a dataset "
            "with a length, such as image_set(...) of a folder, or a tensor."
        )
    return _Pictures(data)


class _Pictures(Dataset[tuple[Tensor, int]]):
    """The images of a map-style dataset without its labels; failures keep the names from the dataset."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.path: Callable[[int], str] = getattr(data, "path", str)
        self._try = getattr(data, "attempt", data.__getitem__)

    def __len__(self) -> int:
        return len(self.data)

    def attempt(self, index: int) -> tuple[Tensor, int] | Failure:
        """An image, or the failure to read it."""
        try:
            item = self._try(index)
        except InputError as error:
            return Failure(self.path(index), f"cannot be read: {str(error).rstrip('.')}")
        if isinstance(item, Failure):
            return item
        return item[0] if isinstance(item, tuple | list) else item, -1

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        item = self.attempt(index)
        if isinstance(item, Failure):
            raise InputError(f"{item}.")
        return item


def split(pictures: Any, share: float, seed: int) -> tuple[Subset[Any], Subset[Any]]:
    """Split pictures at random into training pictures and held-out pictures.

    Raises:
        InputError: fewer than `FEWEST` pictures.
    """
    count = len(pictures)
    if count < FEWEST:
        raise InputError(f"{count} pictures are too few to train on: give {FEWEST} or more, better thousands.")
    heldout_count = min(MOST_HELD, max(1, round(share * count)))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return Subset(pictures, sorted(order[heldout_count:])), Subset(pictures, sorted(order[:heldout_count]))


class Views(Dataset[Tensor]):
    """`count` views of each picture: item `row * count + view` is an image (C, H, W) as the model reads it.

    Args:
        pictures: a map-style dataset whose items begin with an image (C, H, W).
        count: number of views of a picture.
        mixed: whether crops are mixed with a crop of another picture, in every second view from the fourth on.
        seed: random seed of the crops.
    """

    def __init__(self, pictures: Any, count: int, *, mixed: bool = True, seed: int = 0) -> None:
        if count < 1:
            raise RecipeError(f"A picture needs at least 1 view, not {count}.")
        self.pictures, self.count, self.mixed, self.seed = pictures, count, mixed, seed

    @property
    def description(self) -> str:
        """The settings of the views, as text for a cache key."""
        mixed = f", mixed from {LIGHTEST}" if self.mixed else ""
        return f"{self.count} views of seed {self.seed}, whole, mirrored, crops {SCALE}{mixed}"

    def __len__(self) -> int:
        return len(self.pictures) * self.count

    def __getitem__(self, index: int) -> Tensor:
        row, view = divmod(index, self.count)
        image: Tensor = self.pictures[row][0]
        if view in (WHOLE, MIRRORED):
            return image.flip(-1) if view == MIRRORED else image
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(batch_seed(self.seed, index))  # so that a view does not depend on its batch
            result = _cropped(image)
            if self.mixed and view % 2 and view > MIRRORED:
                other = int(torch.randint(len(self.pictures), ()))
                weight = LIGHTEST + (1 - LIGHTEST) * float(torch.rand(()))
                result = weight * result + (1 - weight) * _cropped(self.pictures[other][0])
        return result

    def of(self, view: int, size: int, workers: int = 0) -> Iterator[tuple[Tensor]]:
        """One view of all pictures, in batches."""
        indices = range(view, len(self), self.count)
        yield from DataLoader(_Chosen(self, indices), batch_size=size, num_workers=workers)


class _Chosen(Dataset[tuple[Tensor]]):
    """The views with these indices."""

    def __init__(self, views: Views, indices: range) -> None:
        self.views, self.indices = views, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor]:
        return (self.views[self.indices[index]],)


class ViewBatches(Dataset[tuple[Tensor, Tensor]]):
    """Batches of views with a teacher's targets, by index: images (B, C, H, W) and targets (B, ...).

    Each epoch has every picture once, in its next view.

    Args:
        views: views of the pictures.
        taught: targets (N, views, ...), of any floating-point type.
        size, count, seed: as for `Task.batches`.
    """

    def __init__(self, views: Views, taught: Tensor, size: int, count: int, seed: int) -> None:
        self.views, self.taught, self.size, self.count = views, taught, size, count
        self.order = Order(len(views.pictures), seed)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        images, targets = [], []
        for position in range(number * self.size, (number + 1) * self.size):
            row = self.order[position]
            view = (position // self.order.count + row) % self.views.count
            images.append(self.views[row * self.views.count + view])
            targets.append(self.taught[row, view])
        return torch.stack(images), torch.stack(targets).float()


def fingerprint(pictures: Any, workers: int = 0) -> str:
    """SHA-256 of all pictures as a model reads them; reads each once, so that unreadable ones are found.

    Raises:
        InputError: as for `every_batch`.
    """
    digest = hashlib.sha256()
    for batch in every_batch(pictures, 50, workers):
        digest.update(batch.images.numpy().tobytes())
    return digest.hexdigest()


def counted(
    views: Iterator[tuple[Tensor]], count: int, purpose: str, say: Callable[[str], object]
) -> Iterator[tuple[Tensor]]:
    """Yield the batches, and report progress every 500 pictures; `purpose` is part of the message."""
    done = 0
    for batch in views:
        yield batch
        done += len(batch[0])
        if done // 500 != (done - len(batch[0])) // 500 or done == count:
            say(f"running the dense model: {done} of {count} pictures, {purpose}")


def _cropped(image: Tensor) -> Tensor:
    """A random crop (C, H, W) at the image's size, mirrored or not."""
    size = list(image.shape[-2:])
    crop = v2.RandomResizedCrop(size, scale=SCALE, antialias=True)
    return v2.functional.horizontal_flip(crop(image)) if float(torch.rand(())) < 0.5 else crop(image)

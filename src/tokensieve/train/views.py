"""Pictures without labels, each in a few fixed views: what a teacher is asked about once, and a pupil learns from.

The first four are the picture as it is, a random crop, its mirror image, and a crop that is mixed with a crop of
another picture, so that the model is asked about more than the pictures' own few classes; further ones are crops, and
crops mixed, by turns.
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

WHOLE, MIRRORED = 0, 2
"""Views that are not random; what comes between and behind is cropped."""
SCALE = (0.35, 1.0)
"""Of a crop's area."""
LIGHTEST = 0.5
"""Least weight of the picture itself where it is mixed with another one."""
READ = 50
"""Pictures that go through together where nothing is learnt."""
FEWEST, MOST_HELD = 20, 500
"""Pictures without which nothing can be held out, and the most that are."""
NAMED = 10
"""Pictures that cannot be read, named in one error."""


def every_batch(pictures: Any, size: int, workers: int = 0) -> Iterator[Batch]:
    """Batches of all the pictures of a set; a training leaves none out in silence.

    Raises:
        InputError: pictures that cannot be read, by name.
    """
    batches = load_batches(pictures, size, workers)
    yield from batches
    failures = batches.failures
    if len(failures) == 1:
        raise InputError(f"{failures[0]}: mend or remove it before training.")
    if failures:
        named = "; ".join(map(str, failures[:NAMED])) + ("; ..." if len(failures) > NAMED else "")
        which = f"{len(failures)} of {len(pictures)} photographs"
        raise InputError(f"{which} cannot be read: mend or remove them before training. {named}.")


def set_of(pictures: Any) -> Any:
    """A data set of whatever a user gave, a set, batches of one, or a tensor of images; its items are (image, -1).

    Raises:
        InputError: what can only be read from its beginning.
    """
    found = getattr(pictures, "dataset", pictures)
    if not hasattr(found, "__len__") or not hasattr(found, "__getitem__"):
        raise InputError(
            f"Pictures are learnt from in any order, and {type(found).__name__} only goes from beginning to end: give "
            "a data set with a length, such as image_set(...) of a folder, or a tensor."
        )
    return _Pictures(found)


class _Pictures(Dataset[tuple[Tensor, int]]):
    """Images without labels of whatever can be indexed, with the names that it has for those that cannot be read."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.path: Callable[[int], str] = getattr(data, "path", str)
        self._try = getattr(data, "attempt", data.__getitem__)

    def __len__(self) -> int:
        return len(self.data)

    def attempt(self, index: int) -> tuple[Tensor, int] | Failure:
        """An image, or why it cannot be read."""
        try:
            found = self._try(index)
        except InputError as error:
            return Failure(self.path(index), f"cannot be read: {str(error).rstrip('.')}")
        if isinstance(found, Failure):
            return found
        return found[0] if isinstance(found, tuple | list) else found, -1

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        found = self.attempt(index)
        if isinstance(found, Failure):
            raise InputError(f"{found}.")
        return found


def split(pictures: Any, share: float, seed: int) -> tuple[Subset[Any], Subset[Any]]:
    """Pictures to learn from, and those held out.

    Raises:
        InputError: too few.
    """
    count = len(pictures)
    if count < FEWEST:
        raise InputError(f"{count} pictures are too few to learn from: give {FEWEST} or more, better thousands.")
    held = min(MOST_HELD, max(1, round(share * count)))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return Subset(pictures, sorted(order[held:])), Subset(pictures, sorted(order[:held]))


class Views(Dataset[Tensor]):
    """A set of pictures in `count` views each: item `row * count + view` is a tensor as the model reads it.

    Args:
        pictures: a map-style data set whose items begin with an image (C, H, W).
        count: views of a picture.
        mixed: whether crops are mixed with one of another picture, in every other view from the fourth on.
        seed: of the crops.
    """

    def __init__(self, pictures: Any, count: int, *, mixed: bool = True, seed: int = 0) -> None:
        if count < 1:
            raise RecipeError(f"A picture needs at least 1 view, not {count}.")
        self.pictures, self.count, self.mixed, self.seed = pictures, count, mixed, seed

    @property
    def told(self) -> str:
        """What decides how they look, beside the pictures."""
        mixed = f", mixed from {LIGHTEST}" if self.mixed else ""
        return f"{self.count} views of seed {self.seed}, crops {SCALE}{mixed}"

    def __len__(self) -> int:
        return len(self.pictures) * self.count

    def __getitem__(self, index: int) -> Tensor:
        row, view = divmod(index, self.count)
        image: Tensor = self.pictures[row][0]
        if view in (WHOLE, MIRRORED):
            return image.flip(-1) if view == MIRRORED else image
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(batch_seed(self.seed, index))  # by picture and view, in whatever batch it comes
            shown = _cropped(image)
            if self.mixed and view % 2 and view > MIRRORED:
                other = int(torch.randint(len(self.pictures), ()))
                weight = LIGHTEST + (1 - LIGHTEST) * float(torch.rand(()))
                shown = weight * shown + (1 - weight) * _cropped(self.pictures[other][0])
        return shown

    def of(self, view: int, size: int, workers: int = 0) -> Iterator[tuple[Tensor]]:
        """One view of all pictures, in batches."""
        places = range(view, len(self), self.count)
        yield from DataLoader(_Some(self, places), batch_size=size, num_workers=workers)


class _Some(Dataset[tuple[Tensor]]):
    def __init__(self, views: Views, places: range) -> None:
        self.views, self.places = views, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor]:
        return (self.views[self.places[index]],)


class ViewBatches(Dataset[tuple[Tensor, Tensor]]):
    """Batches of views with a teacher's answers to them, by number: images (B, C, H, W) and answers (B, ...).

    Epoch after epoch every picture is seen once, each time in its next view.

    Args:
        views: of the pictures.
        taught: answers (N, views, ...), in whatever precision.
        size, count, seed: as `Task.batches` is told.
    """

    def __init__(self, views: Views, taught: Tensor, size: int, count: int, seed: int) -> None:
        self.views, self.taught, self.size, self.count = views, taught, size, count
        self.order = Order(len(views.pictures), seed)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        images, answers = [], []
        for place in range(number * self.size, (number + 1) * self.size):
            row = self.order[place]
            view = (place // self.order.count + row) % self.views.count
            images.append(self.views[row * self.views.count + view])
            answers.append(self.taught[row, view])
        return torch.stack(images), torch.stack(answers).float()


def fingerprint(pictures: Any, workers: int = 0) -> str:
    """SHA-256 of all the pictures as a model reads them, each of which is read once, to see that it can be.

    Raises:
        InputError: as `every_batch`.
    """
    digest = hashlib.sha256()
    for batch in every_batch(pictures, 50, workers):
        digest.update(batch.images.numpy().tobytes())
    return digest.hexdigest()


def counted(
    views: Iterator[tuple[Tensor]], count: int, told: str, say: Callable[[str], object]
) -> Iterator[tuple[Tensor]]:
    done = 0
    for shown in views:
        yield shown
        done += len(shown[0])
        if done // 500 != (done - len(shown[0])) // 500 or done == count:
            say(f"asking the dense model: {done} of {count} pictures, {told}")


def _cropped(image: Tensor) -> Tensor:
    """A part of it at its size, mirrored or not."""
    size = list(image.shape[-2:])
    crop = v2.RandomResizedCrop(size, scale=SCALE, antialias=True)
    return v2.functional.horizontal_flip(crop(image)) if float(torch.rand(())) < 0.5 else crop(image)

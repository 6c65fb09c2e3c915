"""Pictures from a folder, a tar, a file or any data set that timm can open."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from copy import copy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, ClassVar, Self, TypeVar

import numpy as np
import timm.data
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ..errors import InputError, RecipeError
from .classes import class_index
from .listing import Listing, Skipped, list_folder, list_tar
from .preprocessing import Preprocessing
from .remote import Opener
from .scanning import PICTURES, Kind
from .scene_drawing import photographs
from .scenes import ScenePictures, Scenes

Read = TypeVar("Read")
SCENES = 1000
"""Scenes in a set of them, unless it is limited."""
_TIMM_PREFIXES = ("hfds", "hfids", "tfds", "wds", "torch")
_TURNS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transposition that turns the picture upright; 1 is upright."""


@dataclass(frozen=True)
class Failure:
    """A picture that was left out, and why; `reason` continues the sentence that `path` begins."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


class ImageSet(Dataset[tuple[Tensor, int]]):
    """Pictures in a fixed order, each as (image (3, H, W) float32, label); the label is -1 where there is none.

    Attributes:
        classes: folder name -> class index; empty for sets without class folders.
        total: how many pictures there are, those that a limit leaves out included.
        skipped: files and folders beside them that are not read.
        notes: sentences about what changes labels, or is read in part.
        kind: of what it holds, pictures or videos.
    """

    kind: ClassVar[Kind] = PICTURES

    def __init__(
        self,
        items: Any,
        transform: Callable[[Image.Image], Tensor],
        *,
        names: Sequence[str] | str,
        labels: Sequence[int] | None = None,
        classes: Mapping[str, int] | None = None,
        limit: int | None = None,
        skipped: Sequence[Skipped] = (),
        notes: Sequence[str] = (),
    ) -> None:
        """Wrap anything with a length whose items are (file, or PIL image; label).

        Args:
            items: indexable, with a length.
            transform: from an RGB image to a tensor (3, H, W).
            names: under which each item is reported; one name for all becomes "NAME[i]".
            labels: of each item, where they are known before it is read.
            classes: see above.
            limit: at most so many pictures, spread evenly over the items.
            skipped: see above.
            notes: see above.
        """
        self.items = items
        self.transform = transform
        self.classes = dict(classes or {})
        self._names = names
        self._labels = labels
        self.total = count = len(items)
        self.skipped, self.notes = tuple(skipped), tuple(notes)
        # The items are sorted by class: the first ones would all be of one class.
        self._indices = range(count) if limit is None or limit >= count else [i * count // limit for i in range(limit)]

    def prepared(self, preprocessing: Preprocessing) -> Self:
        """The same pictures, made tensors by another preprocessing."""
        other = copy(self)
        other.transform = preprocessing.transform()
        return other

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def unlabelled(self) -> int:
        """How many pictures are known to have no label."""
        return 0 if self._labels is None else sum(self._labels[i] < 0 for i in self._indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Picture `index`; raises InputError when it cannot be read."""
        result = self.attempt(index)
        if isinstance(result, Failure):
            raise InputError(f"{result}.")
        return result

    def path(self, index: int) -> str:
        """Where picture `index` comes from."""
        position = self._indices[index]
        return f"{self._names}[{position}]" if isinstance(self._names, str) else self._names[position]

    def attempt(self, index: int) -> tuple[Tensor, int] | Failure:
        """Picture `index`, or why it cannot be read: batch work goes on with the others."""
        return self._attempt(index, self._read)

    def _attempt(self, index: int, read: Callable[[Any], Read]) -> tuple[Read, int] | Failure:
        """`read` applied to one item's file or PIL image, and its label; or why it failed."""
        position = self._indices[index]
        try:
            source, label = self.items[position][:2]
            return read(source), -1 if label is None else int(label)
        except UnusableError as error:
            return Failure(self.path(index), str(error))
        except Exception as error:  # whatever a reader or a resize may raise concerns this picture alone
            return Failure(self.path(index), f"cannot be read: {reason_of(error)}")

    def _read(self, source: Any) -> Tensor:
        """One item's file or PIL image as the set returns it."""
        return self.transform(_to_rgb(source) if isinstance(source, Image.Image) else decode(source))


class Listed:
    """Items of a listing: (path, or what an `Opener` gives, such as a tar's member; label)."""

    def __init__(self, listing: Listing) -> None:
        self.sources, self.labels = listing.sources, listing.labels

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        source = self.sources[index]
        if source is None:
            raise UnusableError("does not exist")
        return source.open() if isinstance(source, Opener) else source, self.labels[index]


class StreamSet(IterableDataset[tuple[Tensor, int]]):
    """Pictures of a set that can only be read from its beginning: (image (3, H, W) float32, label or -1).

    What happens to a picture that cannot be decoded is the reader's affair: webdataset logs it and leaves it out, the
    others end with an InputError that says how far they came.
    """

    kind: ClassVar[Kind] = PICTURES

    def __init__(
        self, reader: Any, transform: Callable[[Image.Image], Tensor], *, name: str, limit: int | None
    ) -> None:
        self.reader = reader
        self.transform = transform
        self.name = name
        self.limit = limit
        self.total, self.unlabelled = None, 0
        self.skipped: tuple[Skipped, ...] = ()
        self.notes: tuple[str, ...] = ()

    def prepared(self, preprocessing: Preprocessing) -> Self:
        """The same pictures, made tensors by another preprocessing."""
        other = copy(self)
        other.transform = preprocessing.transform()
        return other

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        count = 0
        try:
            for picture, label in islice(self.reader, self.limit):
                yield self.transform(_to_rgb(picture)), -1 if label is None else int(label)
                count += 1
        except (UnusableError, InputError, OSError, ValueError) as error:
            raise InputError(f"{self.name} cannot be read after {count} pictures: {reason_of(error)}.") from error


def image_set(
    source: str | Path,
    preprocessing: Preprocessing,
    *,
    classes: str | Path | Sequence[str] | Mapping[str, object] | None = None,
    limit: int | None = None,
    root: str | Path | None = None,
    split: str = "validation",
) -> ImageSet | StreamSet:
    """Open a set of pictures.

    Args:
        source: a folder of class folders (the folder that holds a picture names its class), a flat folder (no labels:
            -1), a tar of either, one image file, or a data set that timm opens: "hfds/NAME", "hfids/NAME", "tfds/NAME",
            "wds/NAME", "torch/NAME". "folder/PATH" is PATH. "scenes" generates pictures of digits (see `Scenes`).
            Hidden files and folders are skipped, links are followed, and nothing is read twice. A class folder without
            pictures keeps its number. What is skipped is listed in `skipped`, what else matters in `notes`.
        preprocessing: what makes a picture a tensor.
        classes: a class-index file, or its content (see `class_index`), so that ten folders of ImageNet are scored
            1000-way. Without it the class folders count in natural order ("2" before "10"), from 0.
        limit: at most so many pictures, spread evenly over the sorted list (of a stream: the first).
        root: where timm's data sets lie or are cached; folders do not need it.
        split: which part of a timm data set.

    Returns:
        A data set of (image (3, H, W) float32, label); folders in order of class folder, then name, recursively.

    Raises:
        InputError: nothing at `source`, no picture in it, or a class folder that `classes` does not name.
        RecipeError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise RecipeError(f"The limit on pictures must be at least 1, not {limit}.")
    transform = preprocessing.transform()
    index = None if classes is None else class_index(classes)
    name = str(source)
    prefix, _, rest = name.partition("/")
    if not Path(source).exists():
        if rest and prefix.lower() in _TIMM_PREFIXES:
            return _timm_set(name, transform, index, limit, root, split)
        if name == "scenes":
            return scene_set(preprocessing, limit or SCENES)
        if rest and prefix.lower() == "folder":
            source = Path(rest)
    path = Path(source)
    if path.is_dir():
        return _listed(list_folder(path, index), transform, limit)
    if path.is_file():
        if path.suffix.lower() == ".tar":
            return _listed(list_tar(path, index), transform, limit)
        return ImageSet([(path, -1)], transform, names=[str(path)])
    prefixes = ", ".join(f"{prefix}/" for prefix in _TIMM_PREFIXES)
    raise InputError(
        f"{source} does not exist: give a folder, an image file, a timm data set ({prefixes}), or scenes to have "
        "pictures generated."
    )


def scene_set(preprocessing: Preprocessing, count: int = SCENES, seed: int = 0) -> ImageSet:
    """The first `count` scenes of the validation split as a set of pictures, with their digits as labels."""
    pictures = ScenePictures(Scenes("validation", count, seed=seed))
    digits = {str(digit): digit for digit in range(10)}
    return ImageSet(pictures, preprocessing.transform(), names="scenes", classes=digits)


def photograph_set(preprocessing: Preprocessing) -> ImageSet:
    """The photographs that scikit-image and scikit-learn ship, as a set of pictures without labels."""
    pictures = photographs()
    return ImageSet([(picture, -1) for picture in pictures.values()], preprocessing.transform(), names=list(pictures))


def read_image(path: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Read a picture as 8-bit RGB.

    It is turned as its EXIF orientation says. Transparency is dropped, of several frames the first is read, and 16-bit
    grey keeps its upper eight bits (Pillow alone would clip it to white).

    Raises:
        InputError: no such file, not a picture, damaged, or float samples whose range is unknown.
    """
    try:
        return decode(path)
    except UnusableError as error:
        raise InputError(f"{getattr(path, 'name', path) if hasattr(path, 'read') else path} {error}.") from error


class UnusableError(Exception):
    """Why a picture or video cannot be used, as the end of a sentence that begins with its path."""


def decode(source: Any) -> Image.Image:
    """A file, or what one holds, as 8-bit RGB; raises UnusableError."""
    try:
        with Image.open(source) as picture:
            return _to_rgb(picture)
    except UnusableError:
        raise
    except FileNotFoundError:
        raise UnusableError("does not exist") from None
    except PermissionError:
        raise UnusableError("may not be read: permission denied") from None
    except UnidentifiedImageError:
        raise UnusableError("is not a picture that Pillow can read") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise UnusableError(f"cannot be decoded: {reason_of(error)}") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    turn = _turn(picture)
    if picture.mode == "F":
        raise UnusableError("holds float samples of unknown range: save it with 8 or 16 bits")
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        samples = np.asarray(picture)
        if samples.min() < 0 or samples.max() > 0xFFFF:
            raise UnusableError("holds 32-bit samples: save it with 8 or 16 bits")
        picture = Image.fromarray((samples >> 8).astype(np.uint8))
    elif picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # the same pixels as straight to RGB, without Pillow's warning
    picture = picture.convert("RGB")
    return picture if turn is None else picture.transpose(turn)


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """The transposition that turns a picture upright, or None.

    Pillow's `exif_transpose` also rewrites the EXIF data, and fails where it cannot.
    """
    picture.load()  # the readers of some formats turn the picture themselves, and take the orientation away
    try:
        return _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged EXIF data raises whatever its parser meets; the picture itself is whole
        return None


def reason_of(error: BaseException) -> str:
    """The message of an error, on one line without a full stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _listed(listing: Listing, transform: Callable[[Image.Image], Tensor], limit: int | None) -> ImageSet:
    return ImageSet(Listed(listing), transform, limit=limit, **listing.set_arguments())


def _timm_set(
    name: str,
    transform: Callable[[Image.Image], Tensor],
    index: dict[str, int] | None,
    limit: int | None,
    root: str | Path | None,
    split: str,
) -> ImageSet | StreamSet:
    if index is not None and name.lower().startswith("torch/"):
        raise InputError(f"{name} has class numbers of its own: leave the class index out.")
    folder = None if root is None else str(root)
    try:
        with redirect_stdout(sys.stderr):  # timm prints which library is missing; stdout may be somebody's JSON
            dataset = timm.data.create_dataset(name, root=folder, split=split, class_map=index)
    except Exception as error:  # each reader has its own library behind it, with its own errors
        raise InputError(f"timm cannot open {name} (split {split}, root {root}): {reason_of(error)}.") from error
    if isinstance(dataset, timm.data.IterableImageDataset):
        return StreamSet(dataset.reader, transform, name=name, limit=limit)
    # timm's own ImageDataset replaces an unreadable picture by the next one; its reader does not.
    items = getattr(dataset, "reader", dataset)
    if not len(items):
        raise InputError(f"{name} (split {split}) holds no pictures.")
    return ImageSet(items, transform, names=name, classes=index, limit=limit)

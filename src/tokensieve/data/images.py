"""Datasets of pictures from a folder, a tar, a file or any dataset that timm can open."""

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

Result = TypeVar("Result")
SCENES = 1000
"""Default number of generated scenes."""
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
"""EXIF orientation -> the transposition that turns the picture upright; orientation 1 needs none."""


@dataclass(frozen=True)
class Failure:
    """A picture or video that could not be read. `path` and `reason` together make a sentence without a full stop."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


class ImageSet(Dataset[tuple[Tensor, int]]):
    """Pictures in a fixed order, each as (image (3, H, W) float32, label); the label is -1 if there is none.

    Attributes:
        classes: folder name -> class index; empty for sets without class folders.
        total: number of pictures without the limit.
        skipped: files and folders in the source that are not read.
        notes: sentences for the user about anything that affects labels, or about files that are read in part.
        kind: whether the set holds pictures or videos.
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
        """Wrap a sequence of (file or PIL image, label).

        Args:
            items: the sequence: indexable, with a length.
            transform: from an RGB image to a tensor (3, H, W).
            names: a name for each item, for messages; or one name for all, which becomes "NAME[i]".
            labels: the label of each item, if known before it is read.
            classes: see above.
            limit: the largest number of pictures, spread evenly over the items.
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
        # Items are sorted by class, so the first ones would all be of one class.
        self._indices = range(count) if limit is None or limit >= count else [i * count // limit for i in range(limit)]

    def prepared(self, preprocessing: Preprocessing) -> Self:
        """The same set with another preprocessing."""
        other = copy(self)
        other.transform = preprocessing.transform()
        return other

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def unlabelled(self) -> int:
        """Number of pictures known to have no label."""
        return 0 if self._labels is None else sum(self._labels[i] < 0 for i in self._indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Picture `index` and its label; raises InputError if it cannot be read."""
        result = self.attempt(index)
        if isinstance(result, Failure):
            raise InputError(f"{result}.")
        return result

    def path(self, index: int) -> str:
        """The path or name of picture `index`."""
        position = self._indices[index]
        return f"{self._names}[{position}]" if isinstance(self._names, str) else self._names[position]

    def attempt(self, index: int) -> tuple[Tensor, int] | Failure:
        """Picture `index` and its label, or a `Failure` if it cannot be read, so that the rest can go on."""
        return self._attempt(index, self._read)

    def _attempt(self, index: int, read: Callable[[Any], Result]) -> tuple[Result, int] | Failure:
        """`read` applied to an item's file or PIL image, and the item's label; or a `Failure`."""
        position = self._indices[index]
        try:
            source, label = self.items[position][:2]
            return read(source), -1 if label is None else int(label)
        except UnusableError as error:
            return Failure(self.path(index), str(error))
        except Exception as error:  # any exception of a reader or a resize concerns only this picture
            return Failure(self.path(index), f"cannot be read: {reason_of(error)}")

    def _read(self, source: Any) -> Tensor:
        """An item's file or PIL image as a tensor."""
        return self.transform(_to_rgb(source) if isinstance(source, Image.Image) else decode(source))


class Listed:
    """The items of a listing as (source, label); a source is a path, or the result of an `Opener`, such as a file in a
    tar."""

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
    """A set of pictures that can only be read in order: (image (3, H, W) float32, label or -1).

    The reader decides what happens to a picture that cannot be decoded: webdataset logs it and goes on; other readers
    end with an InputError that has the number of pictures read so far.
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
        """The same set with another preprocessing."""
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
        source: a folder of class folders (the folder that directly holds a picture is its class), a flat folder (no
            labels: -1), a tar of either, one image file, or a dataset that timm opens: "hfds/NAME", "hfids/NAME",
            "tfds/NAME", "wds/NAME", "torch/NAME". "folder/PATH" is PATH. "scenes" generates pictures of digits (see
            `Scenes`). Hidden files and folders are skipped, links are followed, and no file is read twice. A class
            folder without pictures keeps its class index. `skipped` lists what was skipped; `notes` has remarks on the
            labels.
        preprocessing: converts a picture to a tensor.
        classes: a class-index file, or its content (see `class_index`), so that, for example, ten folders of ImageNet
            get their indices among 1000 classes. Without it class folders are numbered from 0 in natural order ("2"
            before "10").
        limit: the largest number of pictures, spread evenly over the sorted list (of a stream: the first ones).
        root: the folder or cache of timm's datasets; not needed for folders.
        split: the split of a timm dataset.

    Returns:
        A dataset of (image (3, H, W) float32, label); folders are sorted by class folder, then name, recursively.

    Raises:
        InputError: `source` does not exist or holds no picture, or a class folder is not in `classes`.
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
        f"{source} does not exist: give a folder, an image file, a timm dataset ({prefixes}), or scenes for "
        "generated pictures."
    )


def scene_set(preprocessing: Preprocessing, count: int = SCENES, seed: int = 0) -> ImageSet:
    """The first `count` generated scenes of the validation split as a set of pictures; labels are the digits."""
    pictures = ScenePictures(Scenes("validation", count, seed=seed))
    digits = {str(digit): digit for digit in range(10)}
    return ImageSet(pictures, preprocessing.transform(), names="scenes", classes=digits)


def photograph_set(preprocessing: Preprocessing) -> ImageSet:
    """The photographs included in scikit-image and scikit-learn, as a set of pictures without labels."""
    pictures = photographs()
    return ImageSet([(picture, -1) for picture in pictures.values()], preprocessing.transform(), names=list(pictures))


def read_image(path: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Read a picture as 8-bit RGB.

    It is rotated by its EXIF orientation. Transparency is dropped, only the first of several frames is read, and 16-bit
    grey keeps its upper eight bits (Pillow alone would clip it to white).

    Raises:
        InputError: the file does not exist, is not a picture, is damaged, or has float samples of unknown range.
    """
    try:
        return decode(path)
    except UnusableError as error:
        raise InputError(f"{getattr(path, 'name', path) if hasattr(path, 'read') else path} {error}.") from error


class UnusableError(Exception):
    """A picture or video cannot be used. The message is the end of a sentence that begins with its path."""


def decode(source: Any) -> Image.Image:
    """Decode a file, given by path or opened, as 8-bit RGB; raises UnusableError."""
    try:
        with Image.open(source) as picture:
            return _to_rgb(picture)
    except UnusableError:
        raise
    except FileNotFoundError:
        raise UnusableError("does not exist") from None
    except PermissionError:
        raise UnusableError("cannot be read: permission denied") from None
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
        picture = picture.convert("RGBA")  # gives the same pixels as direct conversion to RGB, without Pillow's warning
    picture = picture.convert("RGB")
    return picture if turn is None else picture.transpose(turn)


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """The transposition that turns a picture upright, or None.

    Pillow's `exif_transpose` is not used: it also rewrites the EXIF data, and fails if it cannot.
    """
    picture.load()  # the readers of some formats rotate the picture themselves and remove the orientation
    try:
        return _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # the parser can raise any exception for damaged EXIF data; the picture itself can be used
        return None


def reason_of(error: BaseException) -> str:
    """The message of an error, on one line and without a full stop; the name of its class if it has no message."""
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
        raise InputError(f"{name} has its own class indices: leave the class index out.")
    folder = None if root is None else str(root)
    try:
        with redirect_stdout(sys.stderr):  # timm prints the name of a missing library; stdout may be used for JSON
            dataset = timm.data.create_dataset(name, root=folder, split=split, class_map=index)
    except Exception as error:  # each reader uses another library, with its own errors
        raise InputError(f"timm cannot open {name} (split {split}, root {root}): {reason_of(error)}.") from error
    if isinstance(dataset, timm.data.IterableImageDataset):
        return StreamSet(dataset.reader, transform, name=name, limit=limit)
    # timm's own ImageDataset replaces an unreadable picture by the next one; its reader does not.
    items = getattr(dataset, "reader", dataset)
    if not len(items):
        raise InputError(f"{name} (split {split}) holds no pictures.")
    return ImageSet(items, transform, names=name, classes=index, limit=limit)

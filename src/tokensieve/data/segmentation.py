"""Segmentation sets: pictures with a class for each pixel, from a folder or a tar, in the layouts that people have."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from ..errors import InputError, RecipeError
from .classes import class_descriptions
from .images import Failure, UnusableError, decode, reason_of
from .label_pictures import label_picture, lookup
from .listing import Skipped, natural
from .scanning import Kind, Parts, TarMember, Tree, picture_suffixes, scan
from .segmentation_layouts import VOID, LabelFormat, Layout, layout_of

FILES = Kind("picture", "pictures", lambda: picture_suffixes() | {".txt", ".json", ".csv"})
"""What is looked for in a segmentation set: pictures, and lists of their names and of classes."""
NAMED = 3
SCENES = "scenes"
"""The source of generated pictures."""


@dataclass(frozen=True)
class AsTensor:
    """From an RGB picture to a float32 tensor (3, h, w), normalised.

    Attributes:
        mean, std: of values in [0, 1].
        short_side: pixels to which the shorter side is resized, the aspect ratio kept; None keeps the size.
    """

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    short_side: int | None = None

    def __call__(self, picture: Image.Image) -> Tensor:
        pixels = F.pil_to_tensor(picture)
        if self.short_side is not None:
            pixels = F.resize(pixels, [self.short_side], antialias=True)
        return F.normalize(pixels.float() / 255, list(self.mean), list(self.std))


@dataclass(frozen=True)
class Pair:
    """A picture and its label picture; None where there is none."""

    name: str
    picture: Any
    labels_name: str
    labels: Any
    parts: Parts
    """The picture's path in its folder, without the file extension."""


class SegmentationSet(Dataset[tuple[Tensor, Tensor]]):
    """Pictures in a fixed order, each as (image (3, h, w) float32, labels (H, W) int64, 255 where none counts).

    Attributes:
        classes: their names in order; numbers where nothing names them.
        transform: from an RGB picture to a tensor (3, h, w). Labels keep the picture's own size.
        total: how many pictures there are, those that a limit leaves out included.
        skipped: label pictures that belong to no picture.
        notes: sentences about the set as a whole.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        classes: Sequence[str],
        table: Tensor,
        transform: Callable[[Image.Image], Tensor] | None = None,
        *,
        limit: int | None = None,
        skipped: Sequence[Skipped] = (),
        notes: Sequence[str] = (),
    ) -> None:
        """`table` (256,) int64: value of a label picture -> class, 255 for none, -1 for a value that is wrong."""
        self.classes, self._table = tuple(classes), table
        self.transform = AsTensor() if transform is None else transform
        self.total, count = len(pairs), len(pairs)
        self.skipped, self.notes = tuple(skipped), tuple(notes)
        chosen = range(count) if limit is None or limit >= count else [i * count // limit for i in range(limit)]
        self._pairs = [pairs[i] for i in chosen]
        self.unlabelled = sum(pair.labels is None for pair in self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def identity(self) -> str | None:
        """Text that identifies these pictures and labels, where that is known without reading them; None of files."""
        return None

    def path(self, index: int) -> str:
        """Where picture `index` comes from."""
        return self._pairs[index].name

    def parts(self, index: int) -> Parts:
        """Its path inside the set's folder of pictures, part by part, without the file extension."""
        return self._pairs[index].parts

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Picture `index` and its labels; raises InputError when they cannot be used."""
        result = self.attempt(index)
        if isinstance(result, Failure):
            raise InputError(f"{result}.")
        return result

    def attempt(self, index: int) -> tuple[Tensor, Tensor] | Failure:
        """Picture `index` and its labels, or why they cannot be used: batch work goes on with the others."""
        result = self._read(index)
        if isinstance(result, Failure):
            return result
        picture, labels = result
        return self.transform(picture), labels.long()

    def pair(self, index: int) -> tuple[Image.Image, Tensor]:
        """The RGB picture as it is, and its labels (H, W) uint8; raises InputError when they cannot be used."""
        result = self._read(index)
        if isinstance(result, Failure):
            raise InputError(f"{result}.")
        return result

    def pairs(self, indices: Sequence[int]) -> list[tuple[Image.Image, Tensor]]:
        """As `pair`, of several."""
        return [self.pair(index) for index in indices]

    def _read(self, index: int) -> tuple[Image.Image, Tensor] | Failure:
        pair, at = self._pairs[index], self._pairs[index].name
        try:
            if pair.labels is None:
                raise UnusableError(f"has no label picture {pair.labels_name}")
            picture = decode(_opened(pair.picture))
            at = pair.labels_name
            labels = label_picture(_opened(pair.labels), self._table, self.num_classes)
            if labels.shape != (picture.height, picture.width):
                height, width = labels.shape
                raise UnusableError(
                    f"is {width} x {height} pixels, and its picture {pair.name} is {picture.width} x {picture.height}"
                )
        except UnusableError as error:
            return Failure(at, str(error))
        except Exception as error:  # whatever a reader may raise concerns this picture alone
            return Failure(at, f"cannot be read: {reason_of(error)}")
        return picture, labels


def segmentation_set(
    source: str | os.PathLike[str],
    layout: str = "folders",
    split: str | None = None,
    *,
    classes: int | str | os.PathLike[str] | Sequence[str] | Mapping[str, object] | None = None,
    ignore_index: int | None = VOID,
    transform: Callable[[Image.Image], Tensor] | None = None,
    limit: int | None = None,
) -> SegmentationSet:
    """Open a set of pictures with a class for each pixel.

    Label pictures are 8-bit, grey or with a palette, and hold class indices. A picture whose labels are missing, of
    another size, of another kind or beyond the classes is a failure of its own: the others are read.

    Args:
        source: a folder, or an uncompressed tar. The layout's folders may lie below other folders. "scenes" generates
            pictures (see `SceneMaps`): `limit` of them, 1000 by default, of the split train or val.
        layout: "folders" (images/ and labels/, matched by name; classes count from 0), "ade20k", "pascal-context",
            "coco-stuff10k", "coco-stuff164k", "cityscapes" or "camvid"; see `LAYOUTS`.
        split: train, val or test, or the set's own name of one. None is all of a pair of folders, "train" of others.
        classes: of a pair of folders how many there are, their names, or a file of names (see `class_descriptions`); a
            file classes.txt or classes.json in the set says so too.
        ignore_index: the value of a pair of folders' labels that counts nowhere, beside 255.
        transform: from an RGB picture to a tensor (3, h, w); by default `AsTensor()`, in [0, 1].
        limit: at most so many pictures, spread evenly.

    Raises:
        InputError: nothing at `source`, not the layout's folders, a split that is not there, no picture, classes that
            nothing names.
        RecipeError: another layout; classes given for a layout that has its own; a limit below 1.
    """
    if limit is not None and limit < 1:
        raise RecipeError(f"The limit on pictures must be at least 1, not {limit}.")
    rules = layout_of(layout)
    if source == SCENES:
        if layout != "folders" or classes is not None:
            raise RecipeError("Scenes are generated, with classes of their own: leave layout and classes out.")
        from .scene_maps import COUNT, SceneMaps  # which is a SegmentationSet itself

        return SceneMaps(split or "train", COUNT if limit is None else limit, transform=transform)
    if classes is not None and rules.classes is not None:
        raise RecipeError(f"The layout {layout} has its own classes: leave classes out.")
    files = scan(Path(source), FILES)
    single = rules.splits is None and split is None
    split_folder = None if single else _split(rules, split or "train")
    folder_pairs = [("images", "labels")] if single else [_named(pair, split_folder) for pair in rules.places]
    root, (pictures, labels) = _find_folders(files, folder_pairs, str(source), rules)
    names = _class_names(files, root, rules, classes, str(source))
    pictures_by_key = _below(files, root, pictures, rules.picture_tail)
    stems = None if rules.stems is None else _stems(files, (*root, *rules.stems.format(split=split_folder).split("/")))
    if stems is not None:
        pictures_by_key = {key: picture for key, picture in pictures_by_key.items() if "/".join(key) in stems}
        absent = sorted(stems - {"/".join(key) for key in pictures_by_key})
    else:
        absent = []
    if not pictures_by_key:
        raise InputError(
            f"{source} holds no picture in {pictures}{f' of the split {split_folder}' if split_folder else ''}."
        )
    label_format, labels_by_key = _labels(files, root, labels, rules.formats, pictures_by_key)
    pairs = []
    for key in sorted(pictures_by_key, key=lambda key: [natural(part) for part in key]):
        label = labels_by_key.pop(key, None)
        missing = f"{'/'.join((labels, *key))}{label_format.tail}.png"
        parts, opens = pictures_by_key[key]
        name = files.path(parts)
        pairs.append(Pair(name, opens, missing if label is None else files.path(label[0]), label and label[1], key))
    orphans = () if stems is not None else labels_by_key.values()
    skipped = [Skipped(files.path(parts), "label picture without a picture") for parts, _ in orphans]
    notes = []
    if absent:
        more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
        notes.append(f"{source}: {len(absent)} pictures of the list are not there: {', '.join(absent[:NAMED])}{more}.")
    table = lookup(_values(label_format, len(names), ignore_index if rules.classes is None else None))
    return SegmentationSet(pairs, names, table, transform, limit=limit, skipped=skipped, notes=notes)


def _opened(source: Any) -> Any:
    if source is None:
        raise UnusableError("does not exist")
    return source.open() if isinstance(source, TarMember) else source


def _split(layout: Layout, split: str) -> str:
    """The set's own name of a split."""
    if layout.splits is None or split in layout.splits.values():
        return split
    if split not in layout.splits:
        raise InputError(f"{layout.title} has no split {split!r}: one of {', '.join(layout.splits)}.")
    return layout.splits[split]


def _named(patterns: tuple[str, str], split: str | None) -> tuple[str, str]:
    pictures, labels = (pattern.format(split=split) for pattern in patterns)
    return pictures, labels


def _find_folders(
    files: Tree, folder_pairs: Iterable[tuple[str, str]], source: str, layout: Layout
) -> tuple[Parts, Any]:
    """The shallowest folder that holds a pair of folders for pictures and labels, and that pair."""
    folder_pairs = list(folder_pairs)
    for pair in folder_pairs:
        pictures, labels = (tuple(path.split("/")) for path in pair)
        roots = sorted(
            (parts[: -len(pictures)] for parts in files.folders if parts[-len(pictures) :] == pictures), key=len
        )
        for root in roots:
            if (*root, *labels) in files.folders:
                return root, pair
    expected = ", or ".join(f"{pictures}/ and {labels}/" for pictures, labels in folder_pairs)
    raise InputError(f"{source} is not laid out as {layout.title}: expected {expected}. It is had from: {layout.get}.")


def _below(files: Tree, root: Parts, folder: str, tail: str) -> dict[Parts, tuple[Parts, Any]]:
    """The pictures below a folder by their path in it, without tail and file extension."""
    base = (*root, *folder.split("/"))
    files_by_key: dict[Parts, tuple[Parts, Any]] = {}
    for parts, opens in files.files.items():
        stem, suffix = os.path.splitext(parts[-1])
        if parts[: len(base)] == base and suffix.lower() not in (".txt", ".json", ".csv") and stem.endswith(tail):
            key = (*parts[len(base) : -1], stem.removesuffix(tail) if tail else stem)
            if key in files_by_key:
                other = files.path(files_by_key[key][0])
                raise InputError(f"{files.path(parts)} and {other} have one name: labels belong to either.")
            files_by_key[key] = parts, opens
    return files_by_key


def _labels(
    files: Tree, root: Parts, folder: str, formats: Sequence[LabelFormat], pictures: Mapping[Parts, Any]
) -> tuple[LabelFormat, dict[Parts, tuple[Parts, Any]]]:
    """The first format in which there are labels of these pictures, and all labels in it."""
    for label_format in formats:
        labels_by_key = _below(files, root, folder, label_format.tail)
        if labels_by_key.keys() & pictures.keys():
            return label_format, labels_by_key
    return formats[0], {}


def _stems(files: Tree, parts: Parts) -> set[str]:
    if parts not in files.files:
        raise InputError(f"{files.path(parts)} is missing: it lists the pictures of the split, one name a line.")
    text = _text(files, parts)
    return {line.split()[0] for line in text.splitlines() if line.strip()}


def _class_names(files: Tree, root: Parts, layout: Layout, classes: Any, source: str) -> tuple[str, ...]:
    if isinstance(layout.classes, tuple):
        return layout.classes
    if isinstance(layout.classes, int):
        return _listed_names(files, root, layout) or tuple(str(number) for number in range(layout.classes))
    if classes is None:
        for name in ("classes.txt", "classes.json"):
            if (*root, name) in files.files:
                return _from_file(files, (*root, name))
        raise InputError(
            f"How many classes the labels of {source} have is not known: give their number or a file of their names as "
            "classes, or put a file classes.txt there, a name a line."
        )
    if isinstance(classes, str) and classes.isdecimal():
        classes = int(classes)
    if isinstance(classes, int):
        if not 1 <= classes < VOID:
            raise RecipeError(f"A segmentation set has 1 to {VOID - 1} classes, not {classes}.")
        return tuple(str(number) for number in range(classes))
    descriptions = class_descriptions(os.fspath(classes) if isinstance(classes, os.PathLike) else classes)
    return _in_order(descriptions, str(classes))


def _from_file(files: Tree, parts: Parts) -> tuple[str, ...]:
    text = _text(files, parts)
    content = json.loads(text) if parts[-1].endswith(".json") else [line for line in text.splitlines() if line.strip()]
    return _in_order(class_descriptions(content), files.path(parts))


def _text(files: Tree, parts: Parts) -> str:
    opens, name = files.files[parts], files.path(parts)
    try:
        opens = _opened(opens)
        content = Path(opens).read_bytes() if isinstance(opens, str | Path) else opens.read()
        return content.decode("utf-8-sig")
    except (UnusableError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name} cannot be read: {reason_of(error)}.") from error


def _in_order(descriptions: Mapping[int, str], name: str) -> tuple[str, ...]:
    if sorted(descriptions) != list(range(len(descriptions))):
        raise InputError(f"{name} must number the classes from 0 without a gap.")
    return tuple(descriptions[index] for index in range(len(descriptions)))


def _listed_names(files: Tree, root: Parts, layout: Layout) -> tuple[str, ...]:
    """The last column of ADE20K's own table of classes, where it is there."""
    if layout.names_file is None or (*root, layout.names_file) not in files.files:
        return ()
    lines = _text(files, (*root, layout.names_file)).splitlines()[1:]
    names = tuple(line.split("\t")[-1].strip() for line in lines if line.strip())
    return names if len(names) == layout.classes else ()


def _values(labels: LabelFormat, classes: int, ignore_index: int | None) -> dict[int, int]:
    if labels.values is not None:
        return dict(labels.values)
    values = {value: value for value in range(classes)} | {VOID: VOID}
    return values if ignore_index is None else values | {ignore_index: VOID}

"""Segmentation sets: pictures with a class for each pixel, from a folder or a tar in one of the usual layouts."""

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
"""The files of a segmentation set: pictures, and text files with names of pictures or classes."""
NAMED = 3
"""Largest number of names in a note."""
SCENES = "scenes"
"""The name of the source of generated pictures."""


@dataclass(frozen=True)
class AsTensor:
    """Converts an RGB picture to a normalised float32 tensor (3, h, w).

    Attributes:
        mean, std: per channel, for values in [0, 1].
        short_side: resize the shorter side to this many pixels, keeping the aspect ratio; None keeps the size.
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
    """A picture and its label picture."""

    name: str
    """Full path of the picture, for messages."""
    picture: Any
    """A path or `TarMember`."""
    labels_name: str
    """Full path of the label picture, or its expected path if it is missing."""
    labels: Any
    """A path or `TarMember`; None if there is no label picture."""
    parts: Parts
    """Parts of the picture's path in the folder of pictures, without the file extension."""


class SegmentationSet(Dataset[tuple[Tensor, Tensor]]):
    """Pictures in a fixed order, each as (image (3, h, w) float32, labels (H, W) int64, 255 for ignored pixels).

    Attributes:
        classes: names of the classes in order; their numbers if they have no names.
        transform: from an RGB picture to a tensor (3, h, w). Labels keep the picture's own size.
        total: number of pictures without the limit.
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
        """`table` (256,) int64: value of a label pixel -> class, 255 for ignored, -1 for an invalid value."""
        self.classes, self._table = tuple(classes), table
        self.transform = AsTensor() if transform is None else transform
        self.total, count = len(pairs), len(pairs)
        self.skipped, self.notes = tuple(skipped), tuple(notes)
        indices = range(count) if limit is None or limit >= count else [i * count // limit for i in range(limit)]
        self._pairs = [pairs[i] for i in indices]
        self.unlabelled = sum(pair.labels is None for pair in self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def identity(self) -> str | None:
        """Text that identifies the pictures and labels without reading them, for generated sets; None for files."""
        return None

    def path(self, index: int) -> str:
        """The path of picture `index`."""
        return self._pairs[index].name

    def parts(self, index: int) -> Parts:
        """The parts of picture `index`'s path in the folder of pictures, without the file extension."""
        return self._pairs[index].parts

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Picture `index` and its labels; raises InputError if they cannot be used."""
        result = self.attempt(index)
        if isinstance(result, Failure):
            raise InputError(f"{result}.")
        return result

    def attempt(self, index: int) -> tuple[Tensor, Tensor] | Failure:
        """Picture `index` and its labels, or a `Failure` if they cannot be used, so that the rest can go on."""
        result = self._read(index)
        if isinstance(result, Failure):
            return result
        picture, labels = result
        return self.transform(picture), labels.long()

    def pair(self, index: int) -> tuple[Image.Image, Tensor]:
        """RGB picture `index`, untransformed, and its labels (H, W) uint8; raises InputError if they cannot be used."""
        result = self._read(index)
        if isinstance(result, Failure):
            raise InputError(f"{result}.")
        return result

    def pairs(self, indices: Sequence[int]) -> list[tuple[Image.Image, Tensor]]:
        """The result of `pair` for several indices."""
        return [self.pair(index) for index in indices]

    def _read(self, index: int) -> tuple[Image.Image, Tensor] | Failure:
        pair, name = self._pairs[index], self._pairs[index].name
        try:
            if pair.labels is None:
                raise UnusableError(f"has no label picture {pair.labels_name}")
            picture = decode(_opened(pair.picture))
            name = pair.labels_name
            labels = label_picture(_opened(pair.labels), self._table, self.num_classes)
            if labels.shape != (picture.height, picture.width):
                height, width = labels.shape
                raise UnusableError(
                    f"is {width} x {height} pixels, and its picture {pair.name} is {picture.width} x {picture.height}"
                )
        except UnusableError as error:
            return Failure(name, str(error))
        except Exception as error:  # any exception of a reader concerns only this picture
            return Failure(name, f"cannot be read: {reason_of(error)}")
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

    Label pictures are 8-bit, grey or with a palette, and hold class indices. If the labels of a picture are missing,
    have another size or format, or contain an invalid value, only this picture fails, and the others are read.

    Args:
        source: a folder, or an uncompressed tar. The layout's folders may be inside other folders. "scenes" generates
            pictures (see `SceneMaps`): `limit` of them, 1000 by default, of the split train or val.
        layout: "folders" (images/ and labels/, matched by name; class indices from 0), "ade20k", "pascal-context",
            "coco-stuff10k", "coco-stuff164k", "cityscapes" or "camvid"; see `LAYOUTS`.
        split: train, val or test, or the set's own name of a split. None: all pictures of "folders", "train" of other
            layouts.
        classes: only for "folders": the number of classes, their names, or a file of names (see `class_descriptions`).
            By default they are read from a file classes.txt or classes.json in the set.
        ignore_index: only for "folders": a label value to ignore, in addition to 255.
        transform: from an RGB picture to a tensor (3, h, w); by default `AsTensor()`, with values in [0, 1].
        limit: the largest number of pictures, spread evenly.

    Raises:
        InputError: `source` does not exist or does not have the layout's folders; an unknown split; no picture; the
            classes are not known.
        RecipeError: an unknown layout; classes given for a layout that has its own; a limit below 1.
    """
    if limit is not None and limit < 1:
        raise RecipeError(f"The limit on pictures must be at least 1, not {limit}.")
    rules = layout_of(layout)
    if source == SCENES:
        if layout != "folders" or classes is not None:
            raise RecipeError("Scenes are generated, with classes of their own: leave layout and classes out.")
        from .scene_maps import COUNT, SceneMaps  # here, since that module imports this one

        return SceneMaps(split or "train", COUNT if limit is None else limit, transform=transform)
    if classes is not None and rules.classes is not None:
        raise RecipeError(f"The layout {layout} has its own classes: leave classes out.")
    files = scan(Path(source), FILES)
    single = rules.splits is None and split is None
    split_folder = None if single else _split(rules, split or "train")
    folder_pairs = [("images", "labels")] if single else [_filled_in(pair, split_folder) for pair in rules.places]
    root, (pictures, labels) = _find_folders(files, folder_pairs, str(source), rules)
    names = _class_names(files, root, rules, classes, str(source))
    pictures_by_key = _pictures_in(files, root, pictures, rules.picture_tail)
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
        parts, picture = pictures_by_key[key]
        labels_name = missing if label is None else files.path(label[0])
        pairs.append(Pair(files.path(parts), picture, labels_name, label and label[1], key))
    orphans = () if stems is not None else labels_by_key.values()
    skipped = [Skipped(files.path(parts), "label picture without a picture") for parts, _ in orphans]
    notes = []
    if absent:
        more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
        notes.append(f"{source}: {len(absent)} pictures of the list are missing: {', '.join(absent[:NAMED])}{more}.")
    table = lookup(_values(label_format, len(names), ignore_index if rules.classes is None else None))
    return SegmentationSet(pairs, names, table, transform, limit=limit, skipped=skipped, notes=notes)


def _opened(source: Any) -> Any:
    if source is None:
        raise UnusableError("does not exist")
    return source.open() if isinstance(source, TarMember) else source


def _split(layout: Layout, split: str) -> str:
    """The layout's name of a split, such as "validation" for "val"."""
    if layout.splits is None or split in layout.splits.values():
        return split
    if split not in layout.splits:
        raise InputError(f"{layout.title} has no split {split!r}: one of {', '.join(layout.splits)}.")
    return layout.splits[split]


def _filled_in(patterns: tuple[str, str], split: str | None) -> tuple[str, str]:
    """A pair of folder patterns with the name of the split."""
    pictures, labels = (pattern.format(split=split) for pattern in patterns)
    return pictures, labels


def _find_folders(
    files: Tree, folder_pairs: Iterable[tuple[str, str]], source: str, layout: Layout
) -> tuple[Parts, Any]:
    """The root, which is the shallowest folder with a pair of folders for pictures and labels, and that pair."""
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
    raise InputError(f"{source} is not laid out as {layout.title}: expected {expected}. Get it from: {layout.get}.")


def _pictures_in(files: Tree, root: Parts, folder: str, tail: str) -> dict[Parts, tuple[Parts, Any]]:
    """The pictures in a folder, recursively: relative path without tail and file extension -> (full path, file)."""
    base = (*root, *folder.split("/"))
    files_by_key: dict[Parts, tuple[Parts, Any]] = {}
    for parts, file in files.files.items():
        stem, suffix = os.path.splitext(parts[-1])
        if parts[: len(base)] == base and suffix.lower() not in (".txt", ".json", ".csv") and stem.endswith(tail):
            key = (*parts[len(base) : -1], stem.removesuffix(tail) if tail else stem)
            if key in files_by_key:
                other = files.path(files_by_key[key][0])
                raise InputError(
                    f"{files.path(parts)} and {other} have the same name, so their labels are ambiguous: rename one."
                )
            files_by_key[key] = parts, file
    return files_by_key


def _labels(
    files: Tree, root: Parts, folder: str, formats: Sequence[LabelFormat], pictures: Mapping[Parts, Any]
) -> tuple[LabelFormat, dict[Parts, tuple[Parts, Any]]]:
    """The first format that has labels for these pictures, and all label pictures in that format."""
    for label_format in formats:
        labels_by_key = _pictures_in(files, root, folder, label_format.tail)
        if labels_by_key.keys() & pictures.keys():
            return label_format, labels_by_key
    return formats[0], {}


def _stems(files: Tree, parts: Parts) -> set[str]:
    """The names of pictures listed in the file of a split."""
    if parts not in files.files:
        raise InputError(f"{files.path(parts)} is missing: it lists the pictures of the split, one name per line.")
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
            f"The number of classes in the labels of {source} is not known: pass the number, or a file with their "
            "names, as classes; or add a file classes.txt with one name per line."
        )
    if isinstance(classes, str) and classes.isdecimal():
        classes = int(classes)
    if isinstance(classes, int):
        if not 1 <= classes < VOID:
            raise RecipeError(f"A segmentation set must have 1 to {VOID - 1} classes, not {classes}.")
        return tuple(str(number) for number in range(classes))
    descriptions = class_descriptions(os.fspath(classes) if isinstance(classes, os.PathLike) else classes)
    return _in_order(descriptions, str(classes))


def _from_file(files: Tree, parts: Parts) -> tuple[str, ...]:
    text = _text(files, parts)
    content = json.loads(text) if parts[-1].endswith(".json") else [line for line in text.splitlines() if line.strip()]
    return _in_order(class_descriptions(content), files.path(parts))


def _text(files: Tree, parts: Parts) -> str:
    file, name = files.files[parts], files.path(parts)
    try:
        file = _opened(file)
        content = Path(file).read_bytes() if isinstance(file, str | Path) else file.read()
        return content.decode("utf-8-sig")
    except (UnusableError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name} cannot be read: {reason_of(error)}.") from error


def _in_order(descriptions: Mapping[int, str], name: str) -> tuple[str, ...]:
    if sorted(descriptions) != list(range(len(descriptions))):
        raise InputError(f"{name} must number the classes from 0 without a gap.")
    return tuple(descriptions[index] for index in range(len(descriptions)))


def _listed_names(files: Tree, root: Parts, layout: Layout) -> tuple[str, ...]:
    """Class names from the last column of ADE20K's own table of classes; empty if the table is missing."""
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

"""What a folder or a tar holds: pictures or videos, class folders, and what is skipped; the same rules for both."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .scanning import NOT_OPENED, PICTURES, Kind, Parts, Tree, scan

NAMED = 3
"""Names in a note, before it counts the others."""


@dataclass(frozen=True)
class Skipped:
    """A file or folder that was not read; `reason` is a kind that can be counted, such as ".txt"."""

    path: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """The pictures or videos of a source in their order, and what else it holds.

    Attributes:
        sources: what opens each of them; see `ImageSet.items`.
        names: under which each is reported.
        labels: class index of each, -1 outside of class folders.
        classes: name of the class folder -> class index.
        skipped: what was not read, in order of path.
        notes: sentences, the source before them, about what changes labels, or is read in part.
    """

    sources: list[Any]
    names: list[str]
    labels: list[int]
    classes: dict[str, int]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]

    def set_arguments(self) -> dict[str, Any]:
        """All but the sources, as `ImageSet` takes it."""
        return {name: getattr(self, name) for name in ("names", "labels", "classes", "skipped", "notes")}


def list_folder(root: Path, index: Mapping[str, int] | None = None, kind: Kind = PICTURES) -> Listing:
    """List the pictures, or files of another kind, below a folder; links are followed, nothing is listed twice.

    Args:
        root: the folder.
        index: class index by name of the class folder; by default they are numbered in natural order.
        kind: what is looked for.

    Raises:
        InputError: the folder cannot be opened, holds none of them, or a class folder is not in `index`.
    """
    return _arrange(scan(root, kind), 0, index, str(root))


def list_tar(path: Path, index: Mapping[str, int] | None = None, kind: Kind = PICTURES) -> Listing:
    """List the pictures, or files of another kind, in an uncompressed tar.

    In tars inside it too, whose names then are those of folders.

    A tar of one folder, as `tar cf set.tar set` makes it, holds what that folder holds.

    Arguments and errors as in `list_folder`.
    """
    tree = scan(path, kind)
    return _arrange(tree, _wrapping(tree, index), index, str(path))


def _wrapping(tree: Tree, index: Mapping[str, int] | None) -> int:
    """1 where everything in a tar lies in one folder that is no class by itself; else 0."""
    tops = {parts[0] for parts in (*tree.folders, *tree.files)}
    if tree.rooted or len(tops) != 1 or any(len(parts) == 1 for parts in tree.files):
        return 0
    (top,) = tops
    return 0 if index is not None and top in index else 1


def _arrange(tree: Tree, base: int, index: Mapping[str, int] | None, source: str) -> Listing:
    """Number the class folders and sort the files; the first `base` parts of every path belong to the source."""
    path = tree.path
    holding = {parts[:-1] for parts in tree.files}
    full = {parts[:i] for parts in holding for i in range(len(parts) + 1)}
    folders = {parts for parts in holding if len(parts) > base}
    beside = {parts[:-1] for parts in folders} - folders
    # A folder without any counts where its neighbours are classes, and not inside a class folder.
    empty = [parts for parts in tree.folders if parts not in full and parts[:-1] in beside]
    unopened = {parts for parts, reason in tree.skipped if reason == NOT_OPENED}
    for parts in tree.folders - full - unopened - set(empty):
        if parts[:-1] in full:
            tree.skip(parts, f"folder without {tree.kind.many}")
    skipped = tuple(Skipped(path(parts), reason) for parts, reason in sorted(tree.skipped, key=_place))
    if not tree.files:
        counts = f" ({count(skipped)})" if skipped else ""
        raise InputError(
            f"{source} holds no {tree.kind.many}{counts}. What is read: {' '.join(sorted(tree.kind.suffixes()))}."
        )
    names = sorted({parts[-1] for parts in (*folders, *empty)}, key=natural)
    classes = {name: i for i, name in enumerate(names)} if index is None else dict(index)
    for name in sorted({parts[-1] for parts in folders}, key=natural):
        if name not in classes:
            raise InputError(
                f"The class folder '{name}' of {source} is not in the class index: name it there or move it."
            )
    order = sorted(tree.files, key=lambda parts: [natural(part) for part in parts])
    return Listing(
        sources=[tree.files[parts] for parts in order],
        names=[path(parts) for parts in order],
        labels=[classes[parts[-2]] if len(parts) > base + 1 else -1 for parts in order],
        classes=classes if folders or index is not None else {},
        skipped=skipped,
        notes=tuple(f"{source}: {note}" for note in _notes(tree, folders, empty, base, classes)),
    )


def _notes(
    tree: Tree, folders: set[Parts], empty: Sequence[Parts], base: int, classes: Mapping[str, int]
) -> Iterable[str]:
    """What a user should know before trusting labels, or the list of files."""
    missing = sorted({parts[-1] for parts in empty} - {parts[-1] for parts in folders}, key=natural)
    if len(missing) == 1:
        number = f"; it stays class {classes[missing[0]]}" if missing[0] in classes else ""
        yield f"the class folder {missing[0]} holds no {tree.kind.one}{number}."
    elif missing:
        yield f"{len(missing)} class folders hold no {tree.kind.one} and keep their numbers: {_few(missing)}."
    counts = Counter(parts[-1] for parts in folders)
    for name in sorted((name for name, count in counts.items() if count > 1), key=natural):
        paths = sorted("/".join(parts[base:]) for parts in folders if parts[-1] == name)
        yield f"{len(paths)} folders are one class, '{name}': {_few(paths)}."
    inside = sorted("/".join(parts[base:]) for parts in folders if parts[:-1] in folders)
    if inside:
        yield f"a folder inside a class folder is a class of its own, by its own name: {_few(inside)}."
    loose = sum(len(parts) == base + 1 for parts in tree.files)
    if loose and folders:
        yield f"{loose} of {len(tree.files)} {tree.kind.many} lie in no class folder and have no label."
    gifs = sum(parts[-1].lower().endswith(".gif") for parts in tree.files)
    if gifs:
        yield f"the first frame is read of {gifs} .gif."


def count(skipped: Iterable[Skipped]) -> str:
    """How many of which kind, the most frequent first: "hidden folder 2, .txt 1"."""
    return ", ".join(f"{reason} {times}" for reason, times in Counter(entry.reason for entry in skipped).most_common())


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def natural(name: str) -> tuple[list[int | str], str]:
    """Sorts "2" before "10", whatever the case."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _place(skipped: tuple[Parts, str]) -> list[Any]:
    return [natural(part) for part in skipped[0]]

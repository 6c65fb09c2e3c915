"""Lists the pictures or videos of a folder or tar with their class folders, by the same rules for both."""

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
"""Largest number of names in a note."""


@dataclass(frozen=True)
class Skipped:
    """A file or folder that was skipped. `reason` is a category for counting, such as ".txt" or "hidden file"."""

    path: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """The pictures or videos of a source in order, their labels, and what was skipped.

    Attributes:
        sources: a path or `Opener` of each picture or video; see `ImageSet.items`.
        names: a name of each, for messages.
        labels: class index of each, -1 outside class folders.
        classes: name of the class folder -> class index.
        skipped: files and folders that were not read, in order of path.
        notes: sentences, each beginning with the source, about anything that affects labels, or about files that are
            read in part.
    """

    sources: list[Any]
    names: list[str]
    labels: list[int]
    classes: dict[str, int]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]

    def set_arguments(self) -> dict[str, Any]:
        """Everything but the sources, as keyword arguments of `ImageSet`."""
        return {name: getattr(self, name) for name in ("names", "labels", "classes", "skipped", "notes")}


def list_folder(root: Path, index: Mapping[str, int] | None = None, kind: Kind = PICTURES) -> Listing:
    """List the files of a kind (pictures or videos) in a folder, recursively; links are followed, no file twice.

    Args:
        root: the folder.
        index: class index by name of the class folder; by default class folders are numbered in natural order.
        kind: the kind of files.

    Raises:
        InputError: the folder cannot be opened, holds no such file, or a class folder is not in `index`.
    """
    return _arrange(scan(root, kind), 0, index, str(root))


def list_tar(path: Path, index: Mapping[str, int] | None = None, kind: Kind = PICTURES) -> Listing:
    """List the files of a kind (pictures or videos) in an uncompressed tar.

    A tar inside it counts as a folder of its name. If everything is in one top-level folder, as `tar cf set.tar set`
    creates it, that folder is the root.

    Arguments and errors are those of `list_folder`.
    """
    tree = scan(path, kind)
    return _arrange(tree, _wrapping(tree, index), index, str(path))


def _wrapping(tree: Tree, index: Mapping[str, int] | None) -> int:
    """1 if everything in a tar is in one top-level folder that is not a class itself; else 0."""
    top_names = {parts[0] for parts in (*tree.folders, *tree.files)}
    if tree.rooted or len(top_names) != 1 or any(len(parts) == 1 for parts in tree.files):
        return 0
    (top,) = top_names
    return 0 if index is not None and top in index else 1


def _arrange(tree: Tree, base: int, index: Mapping[str, int] | None, source: str) -> Listing:
    """Number the class folders and sort the files; `base` is the number of leading path parts of the root folder."""
    path = tree.path
    with_files = {parts[:-1] for parts in tree.files}
    non_empty = {parts[:i] for parts in with_files for i in range(len(parts) + 1)}
    folders = {parts for parts in with_files if len(parts) > base}
    class_parents = {parts[:-1] for parts in folders} - folders
    # A folder without files is an empty class if it is next to class folders, but not if it is inside one.
    empty = [parts for parts in tree.folders if parts not in non_empty and parts[:-1] in class_parents]
    unopened = {parts for parts, reason in tree.skipped if reason == NOT_OPENED}
    for parts in tree.folders - non_empty - unopened - set(empty):
        if parts[:-1] in non_empty:
            tree.skip(parts, f"folder without {tree.kind.many}")
    skipped = tuple(Skipped(path(parts), reason) for parts, reason in sorted(tree.skipped, key=_sort_key))
    if not tree.files:
        counts = f" ({count(skipped)})" if skipped else ""
        raise InputError(
            f"{source} holds no {tree.kind.many}{counts}. Extensions that are read: "
            f"{' '.join(sorted(tree.kind.suffixes()))}."
        )
    names = sorted({parts[-1] for parts in (*folders, *empty)}, key=natural)
    classes = {name: i for i, name in enumerate(names)} if index is None else dict(index)
    for name in sorted({parts[-1] for parts in folders}, key=natural):
        if name not in classes:
            raise InputError(
                f"The class folder '{name}' of {source} is not in the class index: add it there or move the folder."
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
    """Sentences about the source that a user should know before relying on its labels."""
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
    nested = sorted("/".join(parts[base:]) for parts in folders if parts[:-1] in folders)
    if nested:
        yield f"a folder inside a class folder is a class of its own, by its own name: {_few(nested)}."
    unlabelled = sum(len(parts) == base + 1 for parts in tree.files)
    if unlabelled and folders:
        yield f"{unlabelled} of {len(tree.files)} {tree.kind.many} are in no class folder and have no label."
    gifs = sum(parts[-1].lower().endswith(".gif") for parts in tree.files)
    if gifs:
        yield f"only the first frame is read of {gifs} .gif."


def count(skipped: Iterable[Skipped]) -> str:
    """Counts by reason, the most frequent first: "hidden folder 2, .txt 1"."""
    return ", ".join(f"{reason} {times}" for reason, times in Counter(entry.reason for entry in skipped).most_common())


def _few(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def natural(name: str) -> tuple[list[int | str], str]:
    """Sort key for natural order: "2" before "10", ignoring case."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _sort_key(skipped: tuple[Parts, str]) -> list[Any]:
    return [natural(part) for part in skipped[0]]

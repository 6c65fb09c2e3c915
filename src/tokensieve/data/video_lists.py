"""Lists of videos with their labels: Kinetics', Something-Something's, and plain ones of a path and a label."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from .listing import Listing, natural

LISTS = frozenset((".csv", ".tsv", ".txt", ".json"))
"""Endings of files that may list videos."""
EXPECTED = (
    "Expected is one of: a path and a label a line, separated by a comma, a tab or a space; Kinetics' CSV with a "
    "header of label,youtube_id,time_start,time_end; Something-Something's JSON of objects with id and template."
)
_NAMES = ("path", "video", "video_path", "filename", "file", "name", "video_id", "id")
_LABELS = ("label", "label_index", "class", "class_name", "target", "category")
_ENDINGS = (".mp4", ".webm", ".avi", ".mkv")
"""In the order in which they are looked for where a list names videos without an ending."""


def list_annotated(path: Path, index: Mapping[str, int] | None = None, root: str | Path | None = None) -> Listing:
    """The videos that a list names, in its order.

    Args:
        path: of the list.
        index: class index by label; by default labels that are numbers are indices, and names are numbered in natural
            order. Something-Something writes labels with their placeholders in brackets, and its index without: both
            are the same here.
        root: folder that the paths are relative to; by default that of the list.

    Returns:
        A listing; videos without a label (test sets) get -1. Files that are not there fail when they are read.

    Raises:
        InputError: the list cannot be read, is of none of these kinds, or has a label that is not in `index`.
    """
    rows = read_list(path, root)
    folder = Path(root) if root is not None else path.parent
    labels, classes = _numbered([label for _, label in rows], index, path)
    sources = [found_file(folder / name) for name, _ in rows]
    return Listing(
        sources=sources,
        names=[str(source) for source in sources],
        labels=labels,
        classes=classes,
        skipped=(),
        notes=(),
    )


def read_list(path: Path, root: str | Path | None = None) -> list[tuple[str, str]]:
    """What a list names, in its order: paths as they are spelled there, and labels, "" of none.

    Arguments and errors as in `list_annotated`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The list of videos {path} cannot be read: {error}. {EXPECTED}") from error
    folder = Path(root) if root is not None else path.parent
    if text.lstrip().startswith(("[", "{")):
        rows = list(_json(text, path))
    else:
        rows = list(_table(text, path, folder))
    if not rows:
        raise InputError(f"{path} lists no videos. {EXPECTED}")
    return rows


def _json(text: str, path: Path) -> Iterable[tuple[str, str]]:
    """Something-Something's, and any other list of objects with an id or a path."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"The list of videos {path} is not valid JSON: {error}. {EXPECTED}") from error
    for number, entry in enumerate(content if isinstance(content, list) else [content]):
        name = _first(entry, _NAMES) if isinstance(entry, Mapping) else None
        if name is None:
            raise InputError(f"Entry {number + 1} of {path} names no video. {EXPECTED}")
        # "label" is the sentence about this one video; the class is its template.
        yield name, _first(entry, ("template", *_LABELS)) or ""


def _table(text: str, path: Path, folder: Path) -> Iterable[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        return
    delimiter = next((sign for sign in ("\t", ",", ";") if sign in lines[0]), None)
    cells = [next(csv.reader([line], delimiter=delimiter)) if delimiter else _spaced(line) for line in lines]
    heads = [cell.strip().lower() for cell in cells[0]]
    if "youtube_id" in heads:
        yield from _kinetics(cells, heads, path, folder)
        return
    named, labelled = (
        next((heads.index(name) for name in names if name in heads), None) for names in (_NAMES, _LABELS)
    )
    first = 0 if named is None else 1
    for number, row in enumerate(cells[first:], first + 1):
        if named is None and len(row) > 2:
            raise InputError(
                f"Line {number} of {path} has {len(row)} columns under no header: lists of folders of frames "
                f"(path, frames, label) are not read. {EXPECTED}"
            )
        if max(named or 0, labelled or 0) >= len(row):
            raise InputError(f"Line {number} of {path} has {len(row)} columns, its header {len(heads)}.")
        label = row[labelled] if labelled is not None else row[1] if named is None and len(row) > 1 else ""
        yield row[named or 0].strip(), label.strip()


def _spaced(line: str) -> list[str]:
    """ "some path/a b.mp4 12": the label is behind the last space, if something that looks like a label is there."""
    folder_of_frames = re.fullmatch(r"([^\s.]+)\s+(\d+)\s+(\d+)", line.strip())
    if folder_of_frames:
        return list(folder_of_frames.groups())
    match = re.fullmatch(r"(.*\S)\s+(\S+)", line.strip())
    return list(match.groups()) if match and not re.search(r"\.\w{2,4}$", match[2]) else [line.strip()]


def _kinetics(cells: list[list[str]], heads: list[str], path: Path, folder: Path) -> Iterable[tuple[str, str]]:
    """Files are called ID_START_END.mp4, seconds in six digits, and lie flat or in folders of their labels."""
    for number, row in enumerate(cells[1:], 2):
        if len(row) != len(heads):
            raise InputError(f"Line {number} of {path} has {len(row)} columns, its header {len(heads)}.")
        entry = dict(zip(heads, (cell.strip() for cell in row), strict=True))
        try:
            start, end = (int(float(entry[key])) for key in ("time_start", "time_end"))
        except (KeyError, ValueError):
            raise InputError(f"Line {number} of {path} has no time_start and time_end in seconds.") from None
        label = entry.get("label", "")
        name = f"{entry['youtube_id']}_{start:06d}_{end:06d}.mp4"
        candidates = [os.path.join(label, name), os.path.join(label.replace(" ", "_"), name)] if label else []
        yield next((candidate for candidate in candidates if (folder / candidate).exists()), name), label


def found_file(path: Path) -> Path:
    """The video's file, under one of the usual endings where none is given."""
    if path.suffix.lower() in _ENDINGS or path.exists():
        return path
    return next((with_ending for end in _ENDINGS if (with_ending := path.with_name(path.name + end)).exists()), path)


def _numbered(labels: list[str], index: Mapping[str, int] | None, path: Path) -> tuple[list[int], dict[str, int]]:
    """The index of each label, -1 of none, and the names of the classes."""
    names = sorted({label for label in labels if label}, key=natural)
    if index is None and all(re.fullmatch(r"-?\d+", label) for label in names):
        return [int(label) if label else -1 for label in labels], {}
    classes = dict(index) if index is not None else {_plain(name): i for i, name in enumerate(names)}
    class_numbers = {_plain(name): i for name, i in classes.items()}
    numbers = set(classes.values())
    label_numbers = []
    for label in labels:
        number = class_numbers.get(_plain(label), int(label) if label.isdecimal() and int(label) in numbers else None)
        if label and number is None:
            raise InputError(f"The label '{label}' of {path} is not in the class index: name it there.")
        label_numbers.append(-1 if number is None else number)
    return label_numbers, classes


def _plain(label: str) -> str:
    """Without the brackets around placeholders, which Something-Something's own index leaves out."""
    return label.replace("[", "").replace("]", "")


def _first(entry: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((str(entry[name]) for name in names if entry.get(name) not in (None, "")), None)

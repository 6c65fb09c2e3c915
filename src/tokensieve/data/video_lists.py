"""Reads lists of videos with labels: Kinetics' CSV, Something-Something's JSON, and plain lists of path and label."""

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
"""Extensions of files that may list videos."""
EXPECTED = (
    "Expected one of: a path and a label per line, separated by a comma, a tab or a space; Kinetics' CSV with the "
    "header label,youtube_id,time_start,time_end; Something-Something's JSON of objects with id and template."
)
_NAMES = ("path", "video", "video_path", "filename", "file", "name", "video_id", "id")
_LABELS = ("label", "label_index", "class", "class_name", "target", "category")
_EXTENSIONS = (".mp4", ".webm", ".avi", ".mkv")
"""Extensions to try, in this order, for names in a list that have none."""


def list_annotated(path: Path, index: Mapping[str, int] | None = None, root: str | Path | None = None) -> Listing:
    """The videos named in a list file, in its order.

    Args:
        path: the list file.
        index: class index by label. By default numeric labels are the indices, and other labels are numbered in natural
            order. Brackets around placeholders, which Something-Something has in its labels but not in its index, are
            ignored.
        root: the folder to which paths are relative; by default the folder of the list.

    Returns:
        A listing; videos without a label (test sets) get -1. Missing files fail only when they are read.

    Raises:
        InputError: the list cannot be read, has an unknown format, or has a label that is not in `index`.
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
    """The (path, label) of each video in a list file, in its order; the path as written there, "" for no label.

    Arguments and errors are those of `list_annotated`.
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
    """The rows of Something-Something's JSON, or of any other JSON list of objects with an id or a path."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"The list of videos {path} is not valid JSON: {error}. {EXPECTED}") from error
    for number, entry in enumerate(content if isinstance(content, list) else [content]):
        name = _first(entry, _NAMES) if isinstance(entry, Mapping) else None
        if name is None:
            raise InputError(f"Entry {number + 1} of {path} names no video. {EXPECTED}")
        # In Something-Something "label" is the caption of the video, and "template" the class.
        yield name, _first(entry, ("template", *_LABELS)) or ""


def _table(text: str, path: Path, folder: Path) -> Iterable[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        return
    delimiter = next((sign for sign in ("\t", ",", ";") if sign in lines[0]), None)
    rows = [next(csv.reader([line], delimiter=delimiter)) if delimiter else _split_spaces(line) for line in lines]
    header = [cell.strip().lower() for cell in rows[0]]
    if "youtube_id" in header:
        yield from _kinetics(rows, header, path, folder)
        return
    path_column, label_column = (
        next((header.index(name) for name in names if name in header), None) for names in (_NAMES, _LABELS)
    )
    has_header = path_column is not None
    for number, row in enumerate(rows[int(has_header) :], int(has_header) + 1):
        if not has_header and len(row) > 2:
            raise InputError(
                f"Line {number} of {path} has {len(row)} columns under no header: lists of folders of frames "
                f"(path, frames, label) are not supported. {EXPECTED}"
            )
        if max(path_column or 0, label_column or 0) >= len(row):
            raise InputError(f"Line {number} of {path} has {len(row)} columns, its header {len(header)}.")
        label = row[label_column] if label_column is not None else row[1] if not has_header and len(row) > 1 else ""
        yield row[path_column or 0].strip(), label.strip()


def _split_spaces(line: str) -> list[str]:
    """Split a line such as "some path/a b.mp4 12": the label follows the last space, unless that looks like a path."""
    folder_of_frames = re.fullmatch(r"([^\s.]+)\s+(\d+)\s+(\d+)", line.strip())
    if folder_of_frames:
        return list(folder_of_frames.groups())
    match = re.fullmatch(r"(.*\S)\s+(\S+)", line.strip())
    return list(match.groups()) if match and not re.search(r"\.\w{2,4}$", match[2]) else [line.strip()]


def _kinetics(rows: list[list[str]], header: list[str], path: Path, folder: Path) -> Iterable[tuple[str, str]]:
    """The rows of Kinetics' CSV. Files are named ID_START_END.mp4, with seconds in six digits, in one folder or in a
    folder for each label."""
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise InputError(f"Line {number} of {path} has {len(row)} columns, its header {len(header)}.")
        entry = dict(zip(header, (cell.strip() for cell in row), strict=True))
        try:
            start, end = (int(float(entry[key])) for key in ("time_start", "time_end"))
        except (KeyError, ValueError):
            raise InputError(f"Line {number} of {path} has no time_start and time_end in seconds.") from None
        label = entry.get("label", "")
        name = f"{entry['youtube_id']}_{start:06d}_{end:06d}.mp4"
        candidates = [os.path.join(label, name), os.path.join(label.replace(" ", "_"), name)] if label else []
        yield next((candidate for candidate in candidates if (folder / candidate).exists()), name), label


def found_file(path: Path) -> Path:
    """The path of a video; if it has no extension, the first existing file with one of the usual extensions."""
    if path.suffix.lower() in _EXTENSIONS or path.exists():
        return path
    candidates = (path.with_name(path.name + extension) for extension in _EXTENSIONS)
    return next((candidate for candidate in candidates if candidate.exists()), path)


def _numbered(labels: list[str], index: Mapping[str, int] | None, path: Path) -> tuple[list[int], dict[str, int]]:
    """The class index of each label, -1 for no label; and class index by class name, empty for numeric labels."""
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
            raise InputError(f"The label '{label}' of {path} is not in the class index: add it there.")
        label_numbers.append(-1 if number is None else number)
    return label_numbers, classes


def _plain(label: str) -> str:
    """The label without brackets around placeholders, which Something-Something's own index does not have."""
    return label.replace("[", "").replace("]", "")


def _first(entry: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((str(entry[name]) for name in names if entry.get(name) not in (None, "")), None)

"""Folder name -> class index, read from the usual formats of class files."""

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InputError

EXPECTED = (
    "Expected one of: one folder name per line, in index order; lines such as 'n01440764 tench, Tinca tinca', in index "
    "order; CSV or tab-separated columns under a header such as folder,index,description; JSON with a list of folder "
    "names, folder name -> index, or index -> folder name."
)
_LIST_KEYS = ("wnids", "classes", "folders", "names")
"""Keys under which an object may keep its list of folder names; the first present counts."""
_FOLDERS = (
    "folder",
    "wnid",
    "synset",
    "synset_id",
    "directory",
    "id",
    "class",
    "class_name",
    "category",
    "name",
    "label",
)
_NUMBERS = ("index", "idx", "class_index", "class_idx", "class_id", "target", "number")
_MAYBE_NUMBERS = ("id", "label", "class")
"""Columns that hold indices in some files and names in others."""
_DESCRIPTIONS = ("description", "descriptions", "words", "lemma", "lemmas", "name", "class_name", "label")
_SYNSET = re.compile(r"(n\d{8})[\s,;]+(\S.*)")


@dataclass(frozen=True)
class _Class:
    folder: str
    index: int
    description: str | None = None


Source = str | Path | Sequence[str] | Mapping[str, object]


def class_index(source: Source) -> dict[str, int]:
    """Read the index of each class by the name of its folder.

    Args:
        source: a file, or what a JSON file holds:
            a text file with a folder name a line, in index order;
            a text file with lines such as "n01440764 tench, Tinca tinca", in index order;
            a CSV or tab-separated file with a header: a column of folder names (folder, wnid, synset, class, ...), and
            if there is one a column of indices (index, class_index, target, ...), else in index order;
            a JSON list of folder names in index order;
            a JSON object name -> index;
            a JSON object index -> name, or index -> [folder name, description];
            a JSON object with such a list under "wnids", "classes", "folders" or "names".

    Returns:
        Folder name -> class index, from 0.

    Raises:
        InputError: the file cannot be read, holds none of these, or gives a name twice.
    """
    return {entry.folder: entry.index for entry in _classes(source)}


def class_descriptions(source: Source) -> dict[int, str]:
    """The description of each class, by index: its description where the file has one, else the name of its folder.

    Arguments and errors as in `class_index`.
    """
    return {entry.index: entry.description or entry.folder for entry in _classes(source)}


def _classes(source: Source) -> list[_Class]:
    name = str(source) if isinstance(source, str | Path) else "The class index"
    entries = _read(Path(source), name) if isinstance(source, str | Path) else _interpret(source, name)
    first: dict[str, int] = {}
    for entry in entries:
        if entry.folder in first:
            raise InputError(
                f"{name} gives the class '{entry.folder}' twice, at {first[entry.folder]} and {entry.index}."
            )
        first[entry.folder] = entry.index
    return entries


def _read(path: Path, name: str) -> list[_Class]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The class index {path} cannot be read: {error}. {EXPECTED}") from error
    if text.lstrip().startswith(("[", "{")):
        try:
            return _interpret(json.loads(text), name)
        except json.JSONDecodeError as error:
            raise InputError(f"The class index {path} is not valid JSON: {error}. {EXPECTED}") from error
    rows = _table(text, must=path.suffix.lower() in (".csv", ".tsv", ".tab"), name=name)
    return _lines(text, name) if rows is None else rows


def _lines(text: str, name: str) -> list[_Class]:
    """A name a line, or a synset and its words."""
    lines = [line.strip() for line in text.rstrip().splitlines()]
    synsets = [_SYNSET.fullmatch(line) for line in lines]
    if not any(synsets):
        return _interpret(lines, name)
    for number, match in enumerate(synsets):
        if match is None:
            raise InputError(
                f"Line {number + 1} of {name} is no synset with its words, as others are: '{lines[number]}'. {EXPECTED}"
            )
    pairs = [match.groups() for match in synsets if match]
    if all(description.isdecimal() for _, description in pairs):
        raise InputError(f"{name} holds columns of numbers without a header: begin it with folder,index. {EXPECTED}")
    return [_Class(folder, index, description) for index, (folder, description) in enumerate(pairs)]


def _table(text: str, *, must: bool, name: str) -> list[_Class] | None:
    """Columns under a header; None where the first line is none, unless it must be."""
    first = text.split("\n", 1)[0]
    for delimiter in ("\t", ",", ";"):
        heads = [head.strip().strip('"').lower().replace(" ", "_") for head in first.split(delimiter)]
        recognised = {head for head in heads if head in (*_FOLDERS, *_NUMBERS, *_DESCRIPTIONS)}
        # In a text file "name" or "label" alone may well be the first class.
        if recognised & set(_FOLDERS) and (must or len(recognised) > 1):
            break
    else:
        if must:
            raise InputError(f"{name} has no header with a column of folder names, such as folder or wnid. {EXPECTED}")
        return None
    rows = list(csv.reader(text.splitlines(), delimiter=delimiter))[1:]
    rows = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
    for number, row in enumerate(rows):
        if len(row) != len(heads):
            raise InputError(
                f"Row {number + 1} of {name} has {len(row)} columns, its header {len(heads)}: put cells that hold the "
                "separator in double quotes."
            )
    columns = dict(zip(heads, zip(*rows, strict=True), strict=True)) if rows else {}
    numbers = _first(columns, _NUMBERS)
    if numbers is None:
        maybe = [head for head in _MAYBE_NUMBERS if all(cell.isdecimal() for cell in columns.get(head, "-"))]
        numbers = next((head for head in maybe if _first(columns, _FOLDERS, head)), None)
    folders = _first(columns, _FOLDERS, numbers)
    if folders is None or not all(columns[folders]):
        raise InputError(f"{name} must hold a folder name in each row, under folder, wnid, class or name. {EXPECTED}")
    indices = [str(i) for i in range(len(rows))] if numbers is None else columns[numbers]
    for index in indices:
        if not index.isdecimal():
            raise InputError(f"{name} must hold class indices from 0 under '{numbers}', not '{index}'.")
    if len(rows) > 1 and sorted(map(int, indices)) == list(range(1, len(rows) + 1)):
        raise InputError(f"{name} counts classes from 1: models count them from 0, so take 1 from each '{numbers}'.")
    description_head = _first(columns, _DESCRIPTIONS, numbers, folders)
    descriptions: Iterable[str | None] = columns[description_head] if description_head else [None] * len(rows)
    return [_Class(*fields) for fields in zip(columns[folders], map(int, indices), descriptions, strict=True)]


def _first(columns: Mapping[str, object], names: Sequence[str], *but: str | None) -> str | None:
    return next((name for name in names if name in columns and name not in but), None)


def _interpret(content: object, name: str) -> list[_Class]:
    if isinstance(content, Mapping):
        return _interpret_mapping(content, name)
    if not isinstance(content, Sequence) or not content or not all(isinstance(item, str) and item for item in content):
        raise InputError(
            f"{name} must hold the folder names of the classes in index order, none of them empty. {EXPECTED}"
        )
    return [_Class(item, index) for index, item in enumerate(content)]


def _interpret_mapping(content: Mapping[str, object], name: str) -> list[_Class]:
    values = list(content.values())
    if values and all(type(value) is int and value >= 0 for value in values):
        return [_Class(str(key), value) for key, value in content.items() if isinstance(value, int)]
    if (
        values
        and all(isinstance(value, str) and value.isdecimal() for value in values)
        and not all(str(key).isdecimal() for key in content)
    ):  # Something-Something writes its numbers in quotes
        return [_Class(str(key), int(str(value))) for key, value in content.items()]
    if values and all(str(key).isdecimal() for key in content):
        pairs = [[value] if isinstance(value, str) else value for value in values]
        if all(isinstance(pair, list | tuple) and pair and isinstance(pair[0], str) for pair in pairs):
            return [_described(int(key), pair) for key, pair in zip(content, pairs, strict=True)]
    for key in _LIST_KEYS:
        if isinstance(content.get(key), list):
            entries, descriptions = _interpret(content[key], f"{name}, key '{key}',"), content.get("names")
            if key == "names" or not isinstance(descriptions, list) or len(descriptions) != len(entries):
                return entries
            return [
                replace(entry, description=str(description))
                for entry, description in zip(entries, descriptions, strict=True)
            ]
    raise InputError(
        f"{name} must map folder names to class indices from 0, or hold the list of names under one of the keys "
        f"{', '.join(_LIST_KEYS)}. {EXPECTED}"
    )


def _described(index: int, pair: object) -> _Class:
    assert isinstance(pair, list | tuple)
    return _Class(pair[0], index, str(pair[1]) if len(pair) > 1 else None)

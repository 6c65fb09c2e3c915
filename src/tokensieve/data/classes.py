"""Class indices by folder name, read from the usual formats of class files."""

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
"""Keys under which a JSON object may have its list of folder names; the first key present is used."""
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
"""Names of columns that may hold folder names, in order of preference; the same for indices and descriptions below."""
_NUMBERS = ("index", "idx", "class_index", "class_idx", "class_id", "target", "number")
_MAYBE_NUMBERS = ("id", "label", "class")
"""Names of columns that hold indices in some files and folder names in others."""
_DESCRIPTIONS = ("description", "descriptions", "words", "lemma", "lemmas", "name", "class_name", "label")
_SYNSET = re.compile(r"(n\d{8})[\s,;]+(\S.*)")


@dataclass(frozen=True)
class _Class:
    folder: str
    index: int
    description: str | None = None


Source = str | Path | Sequence[str] | Mapping[str, object]


def class_index(source: Source) -> dict[str, int]:
    """Read the class index of each class folder.

    Args:
        source: a file, or the content of a JSON file. One of:
            a text file with one folder name per line, in index order;
            a text file with lines such as "n01440764 tench, Tinca tinca", in index order;
            a CSV or tab-separated file with a header: a column of folder names (folder, wnid, synset, class, ...), and
            optionally a column of indices (index, class_index, target, ...); without it rows are in index order;
            a JSON list of folder names in index order;
            a JSON object name -> index;
            a JSON object index -> name, or index -> [folder name, description];
            a JSON object with a list of folder names under "wnids", "classes", "folders" or "names".

    Returns:
        Folder name -> class index, from 0.

    Raises:
        InputError: the file cannot be read, has none of these forms, or has a folder name twice.
    """
    return {entry.folder: entry.index for entry in _classes(source)}


def class_descriptions(source: Source) -> dict[int, str]:
    """Read the description of each class, by class index; the folder name for classes without a description.

    Arguments and errors are those of `class_index`.
    """
    return {entry.index: entry.description or entry.folder for entry in _classes(source)}


def _classes(source: Source) -> list[_Class]:
    name = str(source) if isinstance(source, str | Path) else "The class index"
    entries = _read(Path(source), name) if isinstance(source, str | Path) else _interpret(source, name)
    indices: dict[str, int] = {}
    for entry in entries:
        if entry.folder in indices:
            raise InputError(
                f"{name} has the class '{entry.folder}' twice, at {indices[entry.folder]} and {entry.index}."
            )
        indices[entry.folder] = entry.index
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
    rows = _table(text, required=path.suffix.lower() in (".csv", ".tsv", ".tab"), name=name)
    return _lines(text, name) if rows is None else rows


def _lines(text: str, name: str) -> list[_Class]:
    """Classes of a text file with one folder name per line, or one synset and its description per line."""
    lines = [line.strip() for line in text.rstrip().splitlines()]
    synsets = [_SYNSET.fullmatch(line) for line in lines]
    if not any(synsets):
        return _interpret(lines, name)
    for number, match in enumerate(synsets):
        if match is None:
            raise InputError(
                f"Line {number + 1} of {name} is not a synset and its description, unlike other lines: "
                f"'{lines[number]}'. {EXPECTED}"
            )
    pairs = [match.groups() for match in synsets if match]
    if all(description.isdecimal() for _, description in pairs):
        raise InputError(f"{name} has a column of numbers without a header: begin it with folder,index. {EXPECTED}")
    return [_Class(folder, index, description) for index, (folder, description) in enumerate(pairs)]


def _table(text: str, *, required: bool, name: str) -> list[_Class] | None:
    """Classes of a table with a header. Without a header: None, or an InputError if a table is `required`."""
    header_line = text.split("\n", 1)[0]
    for delimiter in ("\t", ",", ";"):
        header = [column.strip().strip('"').lower().replace(" ", "_") for column in header_line.split(delimiter)]
        recognised = {column for column in header if column in (*_FOLDERS, *_NUMBERS, *_DESCRIPTIONS)}
        # In a text file a first line "name" or "label" may be the name of the first class.
        if recognised & set(_FOLDERS) and (required or len(recognised) > 1):
            break
    else:
        if required:
            raise InputError(f"{name} has no header with a column of folder names, such as folder or wnid. {EXPECTED}")
        return None
    rows = list(csv.reader(text.splitlines(), delimiter=delimiter))[1:]
    rows = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise InputError(
                f"Row {number + 1} of {name} has {len(row)} columns, its header {len(header)}: put cells that hold the "
                "separator in double quotes."
            )
    columns = dict(zip(header, zip(*rows, strict=True), strict=True)) if rows else {}
    index_column = _first(columns, _NUMBERS)
    if index_column is None:
        numeric = [column for column in _MAYBE_NUMBERS if all(cell.isdecimal() for cell in columns.get(column, "-"))]
        index_column = next((column for column in numeric if _first(columns, _FOLDERS, column)), None)
    folder_column = _first(columns, _FOLDERS, index_column)
    if folder_column is None or not all(columns[folder_column]):
        raise InputError(f"{name} must hold a folder name in each row, under folder, wnid, class or name. {EXPECTED}")
    indices = [str(i) for i in range(len(rows))] if index_column is None else columns[index_column]
    for index in indices:
        if not index.isdecimal():
            raise InputError(f"{name} must hold class indices from 0 under '{index_column}', not '{index}'.")
    if len(rows) > 1 and sorted(map(int, indices)) == list(range(1, len(rows) + 1)):
        raise InputError(
            f"{name} counts classes from 1: models count them from 0, so subtract 1 from each '{index_column}'."
        )
    description_column = _first(columns, _DESCRIPTIONS, index_column, folder_column)
    descriptions: Iterable[str | None] = columns[description_column] if description_column else [None] * len(rows)
    return [_Class(*fields) for fields in zip(columns[folder_column], map(int, indices), descriptions, strict=True)]


def _first(columns: Mapping[str, object], names: Sequence[str], *excluded: str | None) -> str | None:
    """The first of these names that is a column and not excluded."""
    return next((name for name in names if name in columns and name not in excluded), None)


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
    ):  # Something-Something has its indices as strings
        return [_Class(str(key), int(str(value))) for key, value in content.items()]
    if values and all(str(key).isdecimal() for key in content):
        pairs = [[value] if isinstance(value, str) else value for value in values]
        if all(isinstance(pair, list | tuple) and pair and isinstance(pair[0], str) for pair in pairs):
            return [_from_pair(int(key), pair) for key, pair in zip(content, pairs, strict=True)]
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
        f"{name} must map folder names to class indices from 0, or have the list of names under one of the keys "
        f"{', '.join(_LIST_KEYS)}. {EXPECTED}"
    )


def _from_pair(index: int, pair: object) -> _Class:
    """A class from [folder name] or [folder name, description]."""
    assert isinstance(pair, list | tuple)
    return _Class(pair[0], index, str(pair[1]) if len(pair) > 1 else None)

"""Which folder name is which class: reads the class-index files that people have."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import InputError

_LIST_KEYS = ("wnids", "classes", "folders", "names")
"""Where an object keeps its list of folder names, the first that is there."""


def class_index(source: str | Path | Sequence[str] | Mapping[str, object]) -> dict[str, int]:
    """Read the index of each class by the name of its folder.

    Args:
        source: a file, or what such a file holds:
            a list of folder names in index order (JSON, or a text file with one name a line);
            a JSON object name -> index;
            a JSON object index -> name, or index -> [folder name, description];
            a JSON object with such a list under "wnids", "classes", "folders" or "names".

    Returns:
        Folder name -> class index, from 0.

    Raises:
        InputError: the file cannot be read, holds none of these, or gives a name twice.
    """
    if isinstance(source, str | Path):
        return _interpret(_load(Path(source)), str(source))
    return _interpret(source, "The class index")


def _load(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The class index {path} cannot be read: {error}.") from error
    if text.lstrip().startswith(("[", "{")):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"The class index {path} is not valid JSON: {error}.") from error
    return [line.strip() for line in text.rstrip().splitlines()]


def _interpret(content: object, name: str) -> dict[str, int]:
    if isinstance(content, Mapping):
        return _interpret_mapping(content, name)
    if not isinstance(content, Sequence) or not content or not all(isinstance(item, str) and item for item in content):
        raise InputError(f"{name} must hold the folder names of the classes in index order, none of them empty.")
    return _unique([(item, index) for index, item in enumerate(content)], name)


def _interpret_mapping(content: Mapping[str, object], name: str) -> dict[str, int]:
    values = list(content.values())
    if values and all(type(value) is int and value >= 0 for value in values):
        return {str(key): value for key, value in content.items() if isinstance(value, int)}
    if values and all(str(key).isdecimal() for key in content):
        firsts = [value[0] if isinstance(value, Sequence) and not isinstance(value, str) else value for value in values]
        if all(isinstance(first, str) for first in firsts):
            return _unique([(str(first), int(key)) for key, first in zip(content, firsts, strict=True)], name)
    for key in _LIST_KEYS:
        if isinstance(content.get(key), list):
            return _interpret(content[key], f"{name}, key '{key}',")
    raise InputError(
        f"{name} must map folder names to class indices from 0, or hold the list of names under one of the keys "
        f"{', '.join(_LIST_KEYS)}."
    )


def _unique(pairs: list[tuple[str, int]], name: str) -> dict[str, int]:
    index: dict[str, int] = {}
    for folder, position in pairs:
        if folder in index:
            raise InputError(f"{name} gives the class '{folder}' twice, at {index[folder]} and {position}.")
        index[folder] = position
    return index

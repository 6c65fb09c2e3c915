"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


def check_place(path: str | os.PathLike[str], suffixes: tuple[str, ...] = ()) -> Path:
    """A path that a file could be written to, before the work that it is for.

    Raises:
        InputError: `path` is a folder, is in none, or does not end in one of `suffixes`, if there are any.
    """
    path = Path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise InputError(f"{path} must end in {' or '.join(suffixes)}.")
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file.")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}.")
    return path


@contextmanager
def draft(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A place beside `path` to write to: what lies there at the end takes its place; if anything goes wrong it is gone.

    Files written next to the draft, in its folder, move along with it, before it.

    Raises:
        InputError: `path` is a folder, is in none, or cannot be written.
    """
    path = check_place(path)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            file = Path(folder) / path.name
            yield file
            # Last the file that names the others, so that it never names what is not there yet.
            for part in sorted(Path(folder).iterdir(), key=lambda part: part == file):
                os.replace(part, path.parent / part.name)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error

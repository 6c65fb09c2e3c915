"""Files that are written whole or not at all, and how they name each other so that they can move together."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError


def check_place(path: str | os.PathLike[str], suffixes: tuple[str, ...] = (), *, new_folder: bool = False) -> Path:
    """A path that a file could be written to, before the work that it is for.

    With `new_folder` its folder may be one that is still to be made, by `make_folder`.

    Raises:
        InputError: `path` is a folder, is in none, or does not end in one of `suffixes`, if there are any.
    """
    path = Path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise InputError(f"{path} must end in {' or '.join(suffixes)}.")
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file.")
    if new_folder:
        check_folder(path.parent)
    elif not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {path.parent}.")
    return path


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """A folder that is there or could be made, before the work that it is for.

    Raises:
        InputError: it is a file, or the folder above it is not there.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give the name of a folder.")
    if not folder.absolute().parent.is_dir():
        raise InputError(f"{folder} cannot be made: there is no folder {folder.parent}.")
    return folder


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Make a folder if it is not there and the one above it is. Raises `InputError` as `check_folder` does."""
    folder = check_folder(folder)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}.") from None
    return folder


@contextmanager
def made_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """As `make_folder`; if anything goes wrong inside, a folder that was not there before is gone again."""
    new = not check_folder(folder).exists()
    folder = make_folder(folder)
    try:
        yield folder
    except BaseException:
        if new:
            with suppress(OSError):  # somebody else wrote into it
                folder.rmdir()
        raise


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


def relative_path(path: str, folder: str | os.PathLike[str]) -> str:
    """How a file in `folder` names the file `path`: relative to `folder`, in full where that is on another drive."""
    full = os.path.abspath(path)
    # Where a folder on the way is a link, ".." may lead elsewhere. The file's own name stays, link or not.
    real = os.path.join(os.path.realpath(os.path.dirname(full)), os.path.basename(full))
    try:
        names = [os.path.relpath(full, os.path.abspath(folder)), os.path.relpath(real, os.path.realpath(folder))]
    except ValueError:  # Windows knows no way from one drive to another
        return full
    right = [name for name in names if same_file(os.path.join(folder, name), path)]
    return min(right or names, key=lambda name: Path(name).parts.count(os.pardir))  # what is inside moves along


def joined_path(path: str, folder: str | os.PathLike[str]) -> str:
    """The file that a file in `folder` names `path`, spelled without "." and ".." where that is the same file."""
    full = os.path.join(folder, path)
    short = os.path.normpath(full)
    return short if same_file(short, full) or not os.path.exists(full) else full


def same_file(path: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether both are there and the same, links followed."""
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):
        return False

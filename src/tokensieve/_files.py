"""Files that are written completely or not at all, and the relative paths between files that move together."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError


def check_place(path: str | os.PathLike[str], suffixes: tuple[str, ...] = (), *, new_folder: bool = False) -> Path:
    """Check that a file can be written at `path`, before slow work begins.

    With `new_folder` its folder need not exist yet, but must be one that `make_folder` can make.

    Raises:
        InputError: `path` is a folder, its folder does not exist, or it does not end in one of `suffixes`, if any.
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
    """Check that a folder exists or can be made, before slow work begins.

    Raises:
        InputError: it is a file, or its parent folder does not exist.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give the name of a folder.")
    if not folder.absolute().parent.is_dir():
        raise InputError(f"{folder} cannot be made: there is no folder {folder.parent}.")
    return folder


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Make a folder if it does not exist; its parent must exist. Raises `InputError` as `check_folder` does."""
    folder = check_folder(folder)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}.") from None
    return folder


@contextmanager
def made_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Make a folder as `make_folder` does; if the code inside raises, a new folder is removed again."""
    new = not check_folder(folder).exists()
    folder = make_folder(folder)
    try:
        yield folder
    except BaseException:
        if new:
            with suppress(OSError):  # it may hold files of another process
                folder.rmdir()
        raise


@contextmanager
def draft(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file to write to, which replaces `path` at the end; if the code inside raises, it is removed.

    Files written next to the draft, in its folder, are moved to the folder of `path` too, before it.

    Raises:
        InputError: `path` is a folder, its folder does not exist, or it cannot be written.
    """
    path = check_place(path)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            file = Path(folder) / path.name
            yield file
            # The file that names the others comes last, so that it never names a missing file.
            for part in sorted(Path(folder).iterdir(), key=lambda part: part == file):
                os.replace(part, path.parent / part.name)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error


def relative_path(path: str, folder: str | os.PathLike[str]) -> str:
    """The path of the file `path` relative to `folder`; the absolute path if it is on another drive."""
    full = os.path.abspath(path)
    # If a folder in the path is a link, ".." may lead elsewhere. The file's own name is not resolved.
    real = os.path.join(os.path.realpath(os.path.dirname(full)), os.path.basename(full))
    try:
        names = [os.path.relpath(full, os.path.abspath(folder)), os.path.relpath(real, os.path.realpath(folder))]
    except ValueError:  # Windows has no relative path from one drive to another
        return full
    valid = [name for name in names if same_file(os.path.join(folder, name), path)]
    return min(valid or names, key=lambda name: Path(name).parts.count(os.pardir))  # prefer paths inside the folder


def joined_path(path: str, folder: str | os.PathLike[str]) -> str:
    """`path` joined to `folder`, without "." and ".." where that is the same file."""
    full = os.path.join(folder, path)
    short = os.path.normpath(full)
    return short if same_file(short, full) or not os.path.exists(full) else full


def same_file(path: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether both paths exist and are the same file, links followed."""
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):
        return False

"""The folder that a job writes to, on this machine or in a store: every file appears whole, or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from .._files import check_folder
from ..data.remote import as_input_errors, filesystem, is_url
from ..errors import InputError

UNFINISHED = ".unfinished"
"""Behind the name of a file that is being written: no reader of Parquet takes it for one."""


class Place(ABC):
    """A folder by its name, and names in it, with "/" between folders."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def prepare(self) -> None:
        """Make the folder, and see that it can be written to. Raises `InputError`."""

    @abstractmethod
    def lock(self) -> None:
        """Keep other processes from working here until this one ends. Raises `InputError` where one does."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """The finished files of a folder in it; none where that is not there."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """The content of a file; None where it is not there."""

    @abstractmethod
    def write(self, name: str, fill: Callable[[Path], None]) -> None:
        """Have `fill` write a file, which then takes its name at once. Raises `InputError` where there is no room."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Take a file away, if it is there."""

    @abstractmethod
    def log(self, lines: str) -> None:
        """Add lines to log.txt."""

    def write_text(self, name: str, text: str) -> None:
        def fill(path: Path) -> None:
            path.write_text(text, encoding="utf-8")

        self.write(name, fill)


def place_of(out: str) -> Place:
    """The place of a folder's path or URL."""
    return RemotePlace(out) if is_url(out) else LocalPlace(out)


class LocalPlace(Place):
    """A folder of this machine."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.folder = Path(name)
        self._locked: Any = None

    def prepare(self) -> None:
        check_folder(self.folder)
        with self._sentence():
            for folder in ("", "rows", "errors"):
                (self.folder / folder).mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass

    def lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        with self._sentence():
            self._locked = open(self.folder / ".lock", "w")  # noqa: SIM115 - it is held until the process ends
        try:
            # Of this process alone: those that it starts would hold the other kind of lock on after it was killed.
            fcntl.lockf(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return  # a file system without locks
            raise InputError(
                f"Another process is at work in {self.name}: wait for it, or give another --out."
            ) from None
        for left in self.folder.rglob(f"*{UNFINISHED}"):
            with suppress(OSError):
                left.unlink()

    def names(self, folder: str) -> list[str]:
        path = self.folder / folder
        return sorted(os.listdir(path)) if path.is_dir() else []

    def read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"{self.folder / name} cannot be read: {error.strerror}.") from error

    def write(self, name: str, fill: Callable[[Path], None]) -> None:
        place = self.folder / name
        aside = place.with_name(f"{place.name}.{uuid4().hex[:8]}{UNFINISHED}")
        with self._sentence():
            try:
                fill(aside)
                _to_disk(aside)
                os.replace(aside, place)
                _to_disk(place.parent)
            finally:
                with suppress(OSError):
                    aside.unlink()

    def remove(self, name: str) -> None:
        with self._sentence(), suppress(FileNotFoundError):
            (self.folder / name).unlink()

    def log(self, lines: str) -> None:
        with self._sentence(), open(self.folder / "log.txt", "a", encoding="utf-8") as file:
            file.write(lines)

    @contextmanager
    def _sentence(self) -> Iterator[None]:
        """Why a file cannot be written, as a sentence that a user can act on."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise InputError(
                    f"There is no room left to write to {self.name} ({_reason(error)}): make some, and give the same "
                    "command again. Finished files are kept."
                ) from error
            raise InputError(f"{self.name} cannot be written to: {_reason(error)}.") from error


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _to_disk(path: Path) -> None:
    """Have what was written survive a loss of power."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class RemotePlace(Place):
    """A folder of a store, in which a file appears when its upload is over. It has no locks and adds to no file."""

    def __init__(self, name: str) -> None:
        super().__init__(name.rstrip("/"))
        self.system, self.root = filesystem(self.name)
        self._log, self._log_name = "", f"log-{uuid4().hex[:8]}.txt"

    def prepare(self) -> None:
        probe = f"probe-{uuid4().hex[:8]}"
        self.write_text(probe, "can this be written to?\n")
        self.remove(probe)

    def lock(self) -> None:
        """A store has none: that two jobs write the same rows does no harm, each file being whole."""

    def names(self, folder: str) -> list[str]:
        self.system.invalidate_cache()
        path = f"{self.root}/{folder}"
        with as_input_errors(self.name):
            if not self.system.exists(path):
                return []
            return sorted(name.rpartition("/")[2] for name in self.system.ls(path, detail=False))

    def read(self, name: str) -> bytes | None:
        with as_input_errors(self.name):
            try:
                content: bytes = self.system.cat_file(f"{self.root}/{name}")
            except FileNotFoundError:
                return None
        return content

    def write(self, name: str, fill: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory(prefix="tokensieve-") as folder, as_input_errors(self.name):
            aside = Path(folder) / "file"
            fill(aside)
            place = f"{self.root}/{name}"
            self.system.makedirs(place.rpartition("/")[0], exist_ok=True)
            self.system.put_file(str(aside), place)

    def remove(self, name: str) -> None:
        with as_input_errors(self.name):
            if self.system.exists(place := f"{self.root}/{name}"):
                self.system.rm_file(place)

    def log(self, lines: str) -> None:
        self._log += lines
        self.write_text(self._log_name, self._log)

"""The output folder of a job, local or in object storage; files are written atomically."""

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
"""Suffix of a file that is being written, so that readers of Parquet skip it."""


class OutputFolder(ABC):
    """The output folder of a job. Files are named by their relative paths, with "/" as separator."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def prepare(self) -> None:
        """Create the folder, and check that it is writable. Raises `InputError` if not."""

    @abstractmethod
    def lock(self) -> None:
        """Lock the folder until this process ends. Raises `InputError` if another process has locked it."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Names of the finished files in a subfolder; none if it does not exist."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """The content of a file; None if it does not exist."""

    @abstractmethod
    def write(self, name: str, fill: Callable[[Path], None]) -> None:
        """Write a file atomically: `fill` writes a temporary file, which is then renamed. Raises `InputError` if the
        disk is full."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""

    @abstractmethod
    def log(self, lines: str) -> None:
        """Add lines to log.txt."""

    def tidy(self) -> None:  # noqa: B027 - object storage has no unfinished files
        """Remove unfinished files of processes that were killed; called when no process is writing."""

    def write_text(self, name: str, text: str) -> None:
        def fill(path: Path) -> None:
            path.write_text(text, encoding="utf-8")

        self.write(name, fill)


def open_output(out: str) -> OutputFolder:
    """The output folder of a path or URL."""
    return RemoteOutput(out) if is_url(out) else LocalOutput(out)


class LocalOutput(OutputFolder):
    """A local folder."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.folder = Path(name)
        self._lock_file: Any = None
        self._locked = False

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
            self._lock_file = open(self.folder / ".lock", "w")  # noqa: SIM115 - it is held until the process ends
        try:
            # Not flock, which child processes inherit: they would keep the lock after this process was killed.
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return  # a file system without locks
            raise InputError(
                f"Another process is writing to {self.name}: wait for it, or give another --out."
            ) from None
        self._locked = True
        self.tidy()

    def tidy(self) -> None:
        if self._locked:
            for path in self.folder.rglob(f"*{UNFINISHED}"):
                with suppress(OSError):
                    path.unlink()

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
        target = self.folder / name
        temporary = target.with_name(f"{target.name}.{uuid4().hex[:8]}{UNFINISHED}")
        with self._sentence():
            try:
                fill(temporary)
                _to_disk(temporary)
                os.replace(temporary, target)
                _to_disk(target.parent)
            finally:
                with suppress(OSError):
                    temporary.unlink()

    def remove(self, name: str) -> None:
        with self._sentence(), suppress(FileNotFoundError):
            (self.folder / name).unlink()

    def log(self, lines: str) -> None:
        with self._sentence(), open(self.folder / "log.txt", "a", encoding="utf-8") as file:
            file.write(lines)

    @contextmanager
    def _sentence(self) -> Iterator[None]:
        """A context that turns an `OSError` into an `InputError` that says what to do."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise InputError(
                    f"There is no space left to write to {self.name} ({_reason(error)}): free some space, and run the "
                    "same command again. Finished files are kept."
                ) from error
            raise InputError(f"{self.name} cannot be written to: {_reason(error)}.") from error


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _to_disk(path: Path) -> None:
    """Flush a file or folder to disk."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class RemoteOutput(OutputFolder):
    """A folder in object storage, where uploads are atomic, and there are no locks and no appending to files."""

    def __init__(self, name: str) -> None:
        super().__init__(name.rstrip("/"))
        self.system, self.root = filesystem(self.name)
        self._log, self._log_name = "", f"log-{uuid4().hex[:8]}.txt"

    def prepare(self) -> None:
        probe = f"probe-{uuid4().hex[:8]}"
        self.write_text(probe, "test whether the folder is writable\n")
        self.remove(probe)

    def lock(self) -> None:
        """Do nothing: object storage has no locks, and two processes of the same job write the same rows."""

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
            temporary = Path(folder) / "file"
            fill(temporary)
            target = f"{self.root}/{name}"
            self.system.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.system.put_file(str(temporary), target)

    def remove(self, name: str) -> None:
        with as_input_errors(self.name):
            if self.system.exists(target := f"{self.root}/{name}"):
                self.system.rm_file(target)

    def log(self, lines: str) -> None:
        self._log += lines
        self.write_text(self._log_name, self._log)

"""Files in object stores, by URLs that fsspec supports: s3://, gs://, hf://, https://, memory:// and others."""

from __future__ import annotations

import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from ..errors import InputError, first_line

_URL = re.compile(r"[a-z][a-z0-9+.-]+://")


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether this is a URL with a protocol, not the path of a local file."""
    return isinstance(path, str) and _URL.match(path) is not None


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises:
        InputError: no library for its protocol is installed, or the store cannot be reached.
    """
    import fsspec

    with as_input_errors(url):
        result: tuple[Any, str] = fsspec.core.url_to_fs(url)
    return result


@contextmanager
def as_input_errors(url: str) -> Iterator[None]:
    """A context that turns any exception of a store's client into an `InputError` with the URL."""
    try:
        yield
    except (ImportError, ValueError) as error:
        raise InputError(f"{url} cannot be used: {first_line(error)}.") from error
    except FileNotFoundError:
        raise InputError(f"{url} does not exist.") from None
    except Exception as error:  # each store's client has errors of its own
        raise InputError(f"{url} cannot be reached: {type(error).__name__}: {first_line(error)}.") from error


def open_file(path: str) -> BinaryIO:
    """Open a local file, or a file in a store, for reading bytes at any position."""
    if not is_url(path):
        return open(path, "rb")
    system, path = filesystem(path)
    opened: BinaryIO = system.open(path, "rb")
    return opened


class Opener(ABC):
    """A picture or video that is not a local file. `open` can be called in any process, and opens it anew each time."""

    @abstractmethod
    def open(self) -> Any:
        """An open file, or a PIL image."""


class RemoteFile(Opener):
    """A file in a store; opened anew each time, so that worker processes do not share a connection."""

    def __init__(self, url: str) -> None:
        self.url = url

    def open(self) -> BinaryIO:
        system, path = filesystem(self.url)
        return io.BytesIO(system.cat_file(path))


def find(url: str) -> dict[str, str]:
    """The files in a folder of a store, recursively: path relative to the folder -> URL, in order of path.

    Raises:
        InputError: the store cannot be reached.
    """
    system, path = filesystem(url)
    root = path.rstrip("/")
    with as_input_errors(url):
        paths = sorted(system.find(root))
    return {path[len(root) :].lstrip("/"): system.unstrip_protocol(path) for path in paths}

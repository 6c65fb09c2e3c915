"""What can go wrong, said in sentences a user can act on.

The command line turns every `SieveError` into one line and exit code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SieveError(Exception):
    """Parent of every error that this package raises on purpose."""


class UnsupportedHost(SieveError, TypeError):
    """A model, or a part of it, that a recipe cannot be applied to: says which, what is missing, what would work."""


class DenseOnly(UnsupportedHost, AttributeError):
    """Something of the host that would silently run the dense model; as an AttributeError, so that hasattr is False."""


class RecipeError(SieveError, ValueError):
    """A recipe that cannot be read, or settings that make no sense."""


class InputError(SieveError, ValueError):
    """Images, weights or files that cannot be used as they are."""


class SettingError(InputError):
    """A setting that makes no sense: `setting` begins the sentence, and `problem` continues it.

    The command line begins it with the option that sets it instead.
    """

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(setting, problem)
        self.setting, self.problem = setting, problem

    def __str__(self) -> str:
        return f"{self.setting} {self.problem}"


class ExportError(SieveError, RuntimeError):
    """A model that cannot be written for another runtime, or a file that answers otherwise than the model."""


def nearest(word: object, words: Iterable[str]) -> str:
    """The middle of an error's sentence: the valid words most like `word`; nothing if none is like it."""
    close = difflib.get_close_matches(str(word).lower(), list(words), n=5, cutoff=0.5)
    if not close:
        return ""
    return f"; the nearest is {close[0]}" if len(close) == 1 else f"; the nearest are {', '.join(close)}"


def cause(error: BaseException) -> str:
    """The first line of the message of an error's cause, without a full stop."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without a full stop; its type where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".")

"""The package's errors, whose messages are sentences that a user can act on.

The command line turns every `SieveError` into one line and exit code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SieveError(Exception):
    """Base class of every error that this package raises on purpose."""


class UnsupportedHost(SieveError, TypeError):
    """A recipe cannot be applied to a model or to a part of it."""


class DenseOnly(UnsupportedHost, AttributeError):
    """An attribute of the host that would silently run the dense model. An AttributeError, so hasattr() is False."""


class RecipeError(SieveError, ValueError):
    """A recipe that cannot be read, or settings that make no sense."""


class InputError(SieveError, ValueError):
    """Images, weights or files that cannot be used as they are."""


class SettingError(InputError):
    """A setting that makes no sense; the message is `setting`, then `problem`.

    The command line replaces `setting` by its option.
    """

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(setting, problem)
        self.setting, self.problem = setting, problem

    def __str__(self) -> str:
        return f"{self.setting} {self.problem}"


class ExportError(SieveError, RuntimeError):
    """A model that cannot be exported, or a file whose outputs differ from the model's."""


def nearest(name: object, known: Iterable[str]) -> str:
    """A clause for an error message with the known names most similar to `name`; empty if none is similar."""
    close = difflib.get_close_matches(str(name).lower(), list(known), n=5, cutoff=0.5)
    if not close:
        return ""
    return f"; the nearest is {close[0]}" if len(close) == 1 else f"; the nearest are {', '.join(close)}"


def cause(error: BaseException) -> str:
    """The first line of the message of an error's cause, without a full stop."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without a full stop; its type where the message is empty."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".")

"""Progress of slow work, and lists of failures, on stderr, because stdout holds the result."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from itertools import chain
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.text import Text

from ..data import Batch, Batches, Failure
from ..data.scanning import PICTURES, Kind
from .messages import Heartbeat, say

SHOWN = 5
"""Number of failures listed one by one."""


class Work(Protocol):
    """Display of slow work."""

    def update(self, doing: str) -> None:
        """Change the text that describes the current step."""


@contextmanager
def working(doing: str) -> Iterator[Work]:
    """Show the current step: a spinner if stderr is a terminal, else a line from time to time."""
    console = Console(stderr=True)
    with _Spinner(Text(doing), console=console) if console.is_terminal else Heartbeat(doing) as work:
        yield work


class _Spinner(Status):
    def update(self, doing: str) -> None:  # type: ignore[override]
        super().update(Text(doing))


class Counting:
    """Progress over a number of items: a bar if stderr is a terminal, else a line from time to time.

    Nothing is shown before the first `update`, so that earlier steps can show their own progress.
    """

    def __init__(self, label: str) -> None:
        self.label, console = label, Console(stderr=True)
        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._task = self._bar.add_task(label, total=None)
        self._display: Progress | Heartbeat = self._bar if console.is_terminal else Heartbeat(label)
        self._began = False

    def update(self, done: int, total: int | None, note: str = "") -> None:
        """Set the number of items done and the total, if known."""
        if not self._began:
            self._display.__enter__()
        self._began = True
        if isinstance(self._display, Heartbeat):
            of = "" if total is None else f" of {total}"
            self._display.update(f"{done}{of} {self.label}" + (note and f", {note}"))
        else:
            self._bar.update(self._task, completed=done, total=total, description=note or self.label)

    def say(self, sentence: str) -> None:
        """Print a line that remains above the progress bar."""
        if isinstance(self._display, Heartbeat):
            say(sentence)
        else:
            self._bar.console.print(f"tokensieve: {sentence}", markup=False, highlight=False)

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *_: object) -> None:
        if self._began:
            self._display.__exit__(None, None, None)


class TrackedBatches:
    """Batches with their progress on stderr. Can be iterated once.

    The first batch is read in the constructor, because it shows whether there are labels.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches, self.rest = batches, iter(batches)
        self.first = next(self.rest, None)

    @property
    def labelled(self) -> bool:
        unlabelled: int = getattr(self.batches.dataset, "unlabelled", 0)
        return not unlabelled and self.first is not None and bool((self.first.labels >= 0).all())

    @property
    def failures(self) -> list[Failure]:
        """The pictures that could not be read so far."""
        return self.batches.failures

    @property
    def kind(self) -> Kind:
        """The kind of the data: pictures or videos."""
        return self.batches.kind

    def __iter__(self) -> Iterator[Batch]:
        if self.first is None:
            return
        dataset, done = self.batches.dataset, 0
        total = len(dataset) if isinstance(dataset, Sized) else None
        with Counting(f"{self.kind.many} read") as counting:
            for batch in chain([self.first], self.rest):
                yield batch
                done += len(batch.images)
                counting.update(done, total)


def list_failures(failures: Sequence[Failure], kind: Kind = PICTURES) -> None:
    """Print the number of pictures or videos that could not be read, and the first of them with the reason."""
    if not failures:
        return
    lines = [f"  {failure}" for failure in failures[:SHOWN]]
    if len(failures) > SHOWN:
        lines.append(f"  and {len(failures) - SHOWN} more: --json lists all of them")
    count = f"1 {kind.one} was" if len(failures) == 1 else f"{len(failures)} {kind.many} were"
    print(f"tokensieve: {count} left out:", *lines, sep="\n", file=sys.stderr)

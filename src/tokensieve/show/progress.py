"""What is said while work goes on, and about what had to be left out: on stderr, because stdout holds the result."""

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
"""Failures named one by one."""


class Work(Protocol):
    """Work that goes on."""

    def update(self, doing: str) -> None:
        """Change the text that says what is being done."""


@contextmanager
def working(doing: str) -> Iterator[Work]:
    """Show what is being done: a turning sign where stderr is a terminal, elsewhere a line now and then."""
    console = Console(stderr=True)
    with _Turning(Text(doing), console=console) if console.is_terminal else Heartbeat(doing) as work:
        yield work


class _Turning(Status):
    def update(self, doing: str) -> None:  # type: ignore[override]
        super().update(Text(doing))


class Counting:
    """Progress over a number of things: a bar where stderr is a terminal, elsewhere a line now and then.

    Nothing is shown before the first `update`, so that what comes before may show its own.
    """

    def __init__(self, label: str) -> None:
        self.what, console = label, Console(stderr=True)
        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._task = self._bar.add_task(label, total=None)
        self._shown: Progress | Heartbeat = self._bar if console.is_terminal else Heartbeat(label)
        self._begun = False

    def update(self, done: int, total: int | None, note: str = "") -> None:
        """So many are done of so many."""
        if not self._begun:
            self._shown.__enter__()
        self._begun = True
        if isinstance(self._shown, Heartbeat):
            of = "" if total is None else f" of {total}"
            self._shown.update(f"{done}{of} {self.what}" + (note and f", {note}"))
        else:
            self._bar.update(self._task, completed=done, total=total, description=note or self.what)

    def say(self, sentence: str) -> None:
        """A line that stays."""
        if isinstance(self._shown, Heartbeat):
            say(sentence)
        else:
            self._bar.console.print(f"tokensieve: {sentence}", markup=False, highlight=False)

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *_: object) -> None:
        if self._begun:
            self._shown.__exit__(None, None, None)


class TrackedBatches:
    """Batches with their progress on stderr. Can be read once.

    The first batch is read at once, because it shows whether there are labels, where the set does not know.
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
        """The pictures left out so far."""
        return self.batches.failures

    @property
    def kind(self) -> Kind:
        """Whether pictures or videos are read."""
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
    """How many pictures or videos were left out, and the first of them with the reason."""
    if not failures:
        return
    lines = [f"  {failure}" for failure in failures[:SHOWN]]
    if len(failures) > SHOWN:
        lines.append(f"  and {len(failures) - SHOWN} more: --json lists all of them")
    count = f"1 {kind.one} was" if len(failures) == 1 else f"{len(failures)} {kind.many} were"
    print(f"tokensieve: {count} left out:", *lines, sep="\n", file=sys.stderr)

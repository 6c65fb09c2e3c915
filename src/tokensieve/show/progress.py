"""What is said while work goes on, and about what had to be left out: on stderr, because stdout holds the result."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence, Sized
from itertools import chain

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..data import Batch, Batches, Failure

SHOWN = 5
"""Failures named one by one."""


class Watched:
    """Batches with a progress bar where stderr is a terminal. Can be read once.

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

    def __iter__(self) -> Iterator[Batch]:
        if self.first is None:
            return
        console = Console(stderr=True)
        columns = TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            dataset = self.batches.dataset
            task = progress.add_task("", total=len(dataset) if isinstance(dataset, Sized) else None)
            for batch in chain([self.first], self.rest):
                yield batch
                progress.update(task, advance=len(batch.images))


def list_failures(failures: Sequence[Failure]) -> None:
    """How many pictures were left out, and the first of them with the reason."""
    if not failures:
        return
    lines = [f"  {failure}" for failure in failures[:SHOWN]]
    if len(failures) > SHOWN:
        lines.append(f"  and {len(failures) - SHOWN} more: --json lists all of them")
    count = "1 picture was" if len(failures) == 1 else f"{len(failures)} pictures were"
    print(f"tokensieve: {count} left out:", *lines, sep="\n", file=sys.stderr)

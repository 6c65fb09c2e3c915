"""The progress of a job, on a terminal and in its log file."""

from __future__ import annotations

from datetime import datetime
from time import monotonic
from types import TracebackType

import torch

from ..about.machine import cores
from ..data.scanning import Kind
from ..errors import InputError
from ..measure.decoding import Decoding
from ..show.messages import duration
from ..show.progress import Counting
from ..show.verdict import decoding_limit
from .output_folder import OutputFolder
from .shards import ShardProgress

EVERY = 15.0
"""Seconds between two progress lines in the log file."""
STARVED = 0.2
"""Share of the model's time spent waiting for items, from which decoding is reported as the limit."""

QUICK = 0.02
"""Seconds of the model for an item below which decoding it, some ten milliseconds of one core, is a good part of it."""


class TooManyErrors(InputError):
    """More items than `max_errors` could not be read."""


class Progress:
    """Counts finished items, shows their rate, and writes the log.

    Attributes:
        done, errors: number of finished items, and of those that could not be read, earlier runs included.
        fresh: number of items finished in this run.
        waited, computed: seconds that the models spent waiting for items, and computing.
    """

    def __init__(
        self,
        kind: Kind,
        total: int,
        output: OutputFolder,
        *,
        done: int,
        errors: int,
        max_errors: int | None,
        shown: bool,
    ) -> None:
        self.kind, self.total, self.output, self.max_errors = kind, total, output, max_errors
        self.done, self.errors, self.fresh = done, errors, 0
        self.waited = self.computed = 0.0
        self._counting = Counting(f"{kind.many} done") if shown else None
        self._started = self._logged = monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._counting is not None:
            self._counting.__exit__()
        if error is not None:
            self.log(f"ended: {error or type(error).__name__}")

    @property
    def seconds(self) -> float:
        """Seconds since this run started to read."""
        return monotonic() - self._started

    @property
    def per_second(self) -> float:
        return self.fresh / max(self.seconds, 1e-9)

    def advance(self, progress: ShardProgress) -> None:
        """Add a report, and show the progress. Raises `TooManyErrors` if there are more than `max_errors`."""
        self.done += progress.items
        self.fresh += progress.items
        self.errors += progress.errors
        self.waited += progress.waited
        self.computed += progress.computed
        if self._counting is not None:
            self._counting.update(self.done, self.total, self.line())
        if monotonic() - self._logged >= EVERY:
            self.log(f"{self.done} of {self.total} {self.kind.many}, {self.line()}")
        if self.max_errors is not None and self.errors > self.max_errors:
            raise TooManyErrors(
                f"{self.errors} {self.kind.many} could not be read, and --max-errors is {self.max_errors}: "
                f"errors/ in {self.output.name} lists those of finished shards."
            )

    def line(self) -> str:
        """Rate, remaining time and errors, in words."""
        if self.fresh <= 0:
            return "starting"
        seconds_left = (self.total - self.done) / self.per_second
        failed = f", {self.errors} could not be read" if self.errors else ""
        return f"{self.per_second:.3g} a second, {duration(seconds_left)} left{failed}"

    def say(self, sentence: str) -> None:
        """Print a message above the progress line, and log it."""
        if self._counting is not None:
            self._counting.say(sentence)
        self.log(sentence)

    def log(self, sentence: str) -> None:
        """Write a line to the log file only."""
        self._logged = monotonic()
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self.output.log(f"{now}  {' '.join(sentence.split())}\n")

    def limit(self, workers: int, devices: int) -> list[str]:
        """A list with a sentence if decoding was the limit, otherwise empty."""
        total = self.waited + self.computed
        if self.fresh <= 0 or self.waited < STARVED * total:
            return []
        # Without workers decoding only runs while the model waits; with workers it runs all the time.
        seconds = self.waited if workers == 0 else total
        decoded = Decoding(devices * self.fresh / seconds, self.fresh, workers * devices, (), self.kind.many)
        return decoding_limit(decoded, "the model", devices * self.fresh / max(self.computed, 1e-9))

    def shared_cores(self, workers: int) -> list[str]:
        """A sentence where a quick model's threads and the decoding workers are more than the cores of this machine."""
        threads, count = torch.get_num_threads(), cores()
        quick = self.fresh > 0 and self.computed < QUICK * self.fresh
        if not quick or workers == 0 or threads + workers <= count:
            return []
        readers = f"{workers} worker{'s' if workers > 1 else ''} that decode{'' if workers > 1 else 's'}"
        return [
            f"The model's {threads} threads and {readers} share {count} cores, and a model this quick may wait for "
            f"them: compare with --threads {max(1, count - workers)}."
        ]

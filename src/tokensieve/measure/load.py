"""What else a machine does while something is timed on it."""

from __future__ import annotations

from time import perf_counter

import psutil

BESIDE = 0.1
"""Share of the measured threads that others may take without being called a disturbance."""
WIDE = 0.2
"""Spread over ratio above this: the machine was not quiet."""


class OtherWork:
    """Counts, from its making on, the cores that other processes keep busy."""

    def __init__(self) -> None:
        self._since, self._before = perf_counter(), _others()

    def cores(self) -> float:
        """Mean cores since then."""
        now, seconds = _others(), perf_counter() - self._since
        return max(0.0, (now - self._before) / seconds) if seconds > 0 else 0.0


def disturbs(other_load: float, threads: int) -> bool:
    """Whether so many busy cores leave too few for `threads`."""
    free = (psutil.cpu_count() or 1) - threads
    return other_load > max(0, free) + BESIDE * threads


def _others() -> float:
    """CPU seconds that all processes but this one have used since the machine started."""
    machine, process = psutil.cpu_times(), psutil.Process().cpu_times()
    # guests are counted in user and nice already
    idle = sum(getattr(machine, kind, 0.0) for kind in ("idle", "iowait", "guest", "guest_nice"))
    return sum(machine) - idle - process.user - process.system

"""Load that other processes put on the machine during a measurement."""

from __future__ import annotations

from time import perf_counter

import psutil

BESIDE = 0.1
"""Cores that other processes may use before it counts as a disturbance, as a share of the measured threads."""
WIDE = 0.2
"""Spread of a ratio, divided by the ratio, above which the machine was too busy to measure well."""


class OtherWork:
    """Counts the cores that other processes keep busy, from the moment it is created."""

    def __init__(self) -> None:
        self._since, self._before = perf_counter(), _others()

    def cores(self) -> float:
        """Mean number of cores used by other processes since this object was created."""
        now, seconds = _others(), perf_counter() - self._since
        return max(0.0, (now - self._before) / seconds) if seconds > 0 else 0.0


def disturbs(other_load: float, threads: int) -> bool:
    """Whether `other_load` busy cores leave too few for `threads`."""
    free = (psutil.cpu_count() or 1) - threads
    return other_load > max(0, free) + BESIDE * threads


def _others() -> float:
    """CPU seconds that all processes but this one have used since the machine started."""
    machine, process = psutil.cpu_times(), psutil.Process().cpu_times()
    # guest times are already included in user and nice
    idle = sum(getattr(machine, kind, 0.0) for kind in ("idle", "iowait", "guest", "guest_nice"))
    return sum(machine) - idle - process.user - process.system

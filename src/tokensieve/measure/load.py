"""What else a machine does while something is timed on it."""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter

STAT = Path("/proc/stat")
BESIDE = 0.1
"""Share of the measured threads that others may take without being called a disturbance."""
WIDE = 0.2
"""Spread over ratio above this: the machine was not quiet."""


class OtherWork:
    """Counts, from its making on, the cores that other processes keep busy."""

    def __init__(self) -> None:
        self._since, self._before = perf_counter(), _others()

    def cores(self) -> float | None:
        """Mean cores since then; where the system has no /proc/stat by the load average, or None for neither."""
        now, passed = _others(), perf_counter() - self._since
        if now is not None and self._before is not None and passed > 0:
            return max(0.0, (now - self._before) / passed)
        try:
            return max(0.0, os.getloadavg()[0] - 1)
        except (AttributeError, OSError):  # Windows
            return None


def disturbs(others: float | None, threads: int) -> bool:
    """Whether so many busy cores leave too few for `threads`."""
    free = (os.cpu_count() or 1) - threads
    return others is not None and others > max(0, free) + BESIDE * threads


def _others() -> float | None:
    """CPU seconds that all processes but this one have used since the machine started."""
    try:
        user, nice, system, _idle, _wait, irq, soft, steal = map(int, STAT.read_text("ascii").split()[1:9])
    except (OSError, ValueError):
        return None
    own = os.times()
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK") - own.user - own.system

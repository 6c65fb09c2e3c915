"""Messages on stderr, one sentence per line, and repeated messages during slow work."""

from __future__ import annotations

import sys
from threading import Event, Thread
from time import monotonic

FIRST, EVERY = 10.0, 60.0
"""Seconds until the first message about slow work, and between later ones."""


def say(sentence: str) -> None:
    """Print a sentence to stderr."""
    print(f"tokensieve: {sentence}", file=sys.stderr, flush=True)


class Heartbeat:
    """Prints from time to time the current step and the time it has taken; nothing if the work is short."""

    def __init__(self, doing: str) -> None:
        self.doing, self._over = doing, Event()
        self._began = monotonic()
        self._thread = Thread(target=self._print_messages, daemon=True)

    def update(self, doing: str) -> None:
        self.doing = doing

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _print_messages(self) -> None:
        wait = FIRST
        while not self._over.wait(wait):
            say(f"{self.doing} ({duration(monotonic() - self._began)})")
            wait = EVERY


def duration(seconds: float) -> str:
    """A duration as text: 40 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

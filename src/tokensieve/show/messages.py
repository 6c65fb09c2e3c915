"""Messages on stderr, a sentence a line, and the heartbeat of work that takes long."""

from __future__ import annotations

import sys
from threading import Event, Thread
from time import monotonic

FIRST, EVERY = 10.0, 60.0
"""Seconds until the first message about work that goes on, and between two messages after that."""


def say(sentence: str) -> None:
    print(f"tokensieve: {sentence}", file=sys.stderr, flush=True)


class Heartbeat:
    """Prints from time to time what is going on, and for how long; nothing of what is soon over."""

    def __init__(self, doing: str) -> None:
        self.doing, self._over = doing, Event()
        self._begun = monotonic()
        self._thread = Thread(target=self._speak, daemon=True)

    def update(self, doing: str) -> None:
        self.doing = doing

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _speak(self) -> None:
        wait = FIRST
        while not self._over.wait(wait):
            say(f"{self.doing} ({duration(monotonic() - self._begun)})")
            wait = EVERY


def duration(seconds: float) -> str:
    """A duration in words: 40 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

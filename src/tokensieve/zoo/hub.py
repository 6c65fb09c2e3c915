"""What the hub's client says of its retries, cut to one sentence."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

RETRIES = ("thrown while requesting", "Retrying in")
"""Parts of its lines, of which it writes some twenty for a file that cannot be had."""


class _Once(logging.Filter):
    """Lets the first of those lines through in our words, and none of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.said = False

    def filter(self, record: logging.LogRecord) -> bool:
        if not any(part in record.getMessage() for part in RETRIES):
            return True
        if self.said:
            return False
        self.said = True
        record.msg, record.args = "The hub does not answer, trying again for up to a minute.", ()
        return True


@contextmanager
def one_sentence_of_retries() -> Iterator[None]:
    """Within, the hub's client says once that it tries again."""
    try:
        from huggingface_hub.utils import logging as hub
    except ImportError:  # nothing will use a hub
        yield
        return
    once = _Once()
    handlers = [*hub.get_logger("huggingface_hub").handlers, *logging.getLogger().handlers]
    for handler in handlers:
        handler.addFilter(once)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(once)

"""Reduces the log messages of huggingface_hub about retries to one sentence."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

RETRIES = ("thrown while requesting", "Retrying in")
"""Text found in these messages; the client logs about twenty of them for a file that it cannot download."""


class _RetryFilter(logging.Filter):
    """Replaces the first message about a retry by a short sentence, and drops the later ones."""

    def __init__(self) -> None:
        super().__init__()
        self.logged = False

    def filter(self, record: logging.LogRecord) -> bool:
        if not any(text in record.getMessage() for text in RETRIES):
            return True
        if self.logged:
            return False
        self.logged = True
        record.msg, record.args = "The hub does not answer, trying again for up to a minute.", ()
        return True


@contextmanager
def one_sentence_of_retries() -> Iterator[None]:
    """A context in which huggingface_hub logs one message about retries, not one for each."""
    try:
        from huggingface_hub.utils import logging as hub
    except ImportError:  # not installed, so it cannot log anything
        yield
        return
    retry_filter = _RetryFilter()
    handlers = [*hub.get_logger("huggingface_hub").handlers, *logging.getLogger().handlers]
    for handler in handlers:
        handler.addFilter(retry_filter)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(retry_filter)

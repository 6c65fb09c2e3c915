"""Twenty lines of a hub's retries become one sentence."""

import logging

import pytest

from tokensieve.zoo.hub import one_sentence_of_retries

hub = pytest.importorskip("huggingface_hub.utils.logging")


def retry(logger):
    for number in range(5):
        logger.warning("'[Errno -2] Name or service not known' thrown while requesting HEAD https://hub.example/file")
        logger.warning("Retrying in %ds [Retry %d/5].", number, number)


def test_retries_are_one_sentence_and_other_warnings_stay(monkeypatch):
    class Lines(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    lines = []
    handler = Lines()
    hub.get_logger("huggingface_hub").addHandler(handler)
    logger = hub.get_logger("huggingface_hub.utils._http")
    try:
        with one_sentence_of_retries():
            retry(logger)
            logger.warning("You are not logged in.")
        assert lines == ["The hub does not answer, trying again for up to a minute.", "You are not logged in."]
        retry(logger)
        assert len(lines) == 12, "outside nothing is changed"
    finally:
        hub.get_logger("huggingface_hub").removeHandler(handler)

"""What is said of long work where stderr is no terminal."""

import io
import time

import pytest

from tokensieve.show import messages
from tokensieve.show.progress import Counting, working


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(messages, "FIRST", 0.05)
    monkeypatch.setattr(messages, "EVERY", 0.05)


def until(capsys, *words):
    """What stderr holds once all words are there."""
    found, end = "", time.monotonic() + 10
    while not all(word in found for word in words) and time.monotonic() < end:
        time.sleep(0.02)
        found += capsys.readouterr().err
    return found


def test_long_work_speaks_now_and_then(capsys, soon):
    with working("opening the model") as work:
        assert "tokensieve: opening the model (0 s)\n" in until(capsys, "opening")
        work.update("reading pictures")
        until(capsys, "tokensieve: reading pictures (")
    capsys.readouterr()
    time.sleep(0.15)
    assert capsys.readouterr().err == ""


def test_what_is_soon_over_is_not_spoken_of(capsys):
    with working("opening the model"), Counting("pictures read") as counting:
        counting.update(1, 2)
    assert capsys.readouterr().err == ""


def test_counts_are_told(capsys, soon):
    with Counting("recipes tried") as counting:
        counting.update(3, 20, "1.90x tome")
        assert "tokensieve: 3 of 20 recipes tried, 1.90x tome (" in until(capsys, "recipes")
        counting.say("resnet18 was left out.")
        assert "tokensieve: resnet18 was left out.\n" in until(capsys, "left out")


def test_a_terminal_has_a_bar_and_lines_that_stay(capsys, soon, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with Counting("recipes tried") as counting:
        counting.update(3, 20, "[1.90x] tome")
        counting.say("[a] was left out.")
    err = capsys.readouterr().err
    assert "[1.90x] tome" in err
    assert "3/20" in err
    assert "tokensieve: [a] was left out." in err
    with working("opening [bold]the model"):
        pass
    assert "opening [bold]the model" in capsys.readouterr().err
    with working("opening") as work:
        work.update("reading [x]")
    assert "reading [x]" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (119, "119 s"), (125, "2 min"), (9000, "2.5 h")])
def test_durations(seconds, text):
    assert messages.duration(seconds) == text


def test_say_is_a_line(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    messages.say("A sentence.")
    assert stream.getvalue() == "tokensieve: A sentence.\n"

"""What is told of another library's error."""

from __future__ import annotations

import pytest

from tokensieve.errors import cause, first_line


@pytest.mark.parametrize(
    ("error", "told"),
    [(ValueError("no.\nmore"), "no"), (OSError("\n  a file \n"), "a file"), (RuntimeError(), "RuntimeError")],
)
def test_the_first_line_says_something(error: Exception, told: str) -> None:
    assert first_line(error) == cause(error) == told


def test_a_cause_is_told_in_the_place_of_what_it_caused() -> None:
    outer, inner = ValueError("outer"), OSError("inner.")
    outer.__cause__ = inner
    assert (first_line(outer), cause(outer)) == ("outer", "inner")

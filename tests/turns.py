"""Which of many forms are tested at each change; `make test` and `make test-lowest` test all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from _pytest.mark import ParameterSet

SHARE = 4


def in_turn(rows: Iterable[str], columns: Iterable[str], share: int = SHARE) -> list[ParameterSet]:
    """Every cell as (row, column); all but every `share`-th, each row beginning with another column, are slow.

    So each row and each column is seen at each change.
    """
    columns = list(columns)
    return [
        pytest.param(row, column, id=f"{row}-{column}", marks=() if (i + j) % share == 0 else pytest.mark.versions)
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    ]


def forms(names: Iterable[str], at_each_change: Iterable[str]) -> Iterator[ParameterSet]:
    """All names as parameters; those that are not tested at each change are marked."""
    chosen = set(at_each_change)
    for name in names:
        yield pytest.param(name, id=name, marks=() if name in chosen else pytest.mark.versions)

"""Frozen dataclasses in a forward that torch.compile can handle."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


def replace(data: T, **changes: Any) -> T:
    """`dataclasses.replace`, written so that torch.compile and torch.export of torch 2.6 can trace it."""
    kind: Any = type(data)
    return kind(**{**{name: getattr(data, name) for name in kind.__match_args__}, **changes})

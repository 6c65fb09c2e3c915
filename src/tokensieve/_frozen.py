"""Frozen dataclasses in a forward that is to be compiled."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


def replace(data: T, **changes: Any) -> T:
    """`dataclasses.replace` in words that torch.compile and torch.export of torch 2.6 understand too."""
    kind: Any = type(data)
    return kind(**{**{name: getattr(data, name) for name in kind.__match_args__}, **changes})

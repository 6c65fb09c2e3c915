"""Schedules: the number of tokens that a method removes in each block, and the blocks in which it acts."""

from __future__ import annotations

from dataclasses import field
from numbers import Real
from typing import Any

from ..errors import RecipeError

Schedule = int | tuple[float, ...]
"""A number for every block, a pair (r, inflect), or one number for each block."""
Layers = slice | tuple[int, ...] | None
"""Blocks as a slice or a tuple of indices; None is the method's default."""


def share_field() -> Any:
    """A setting that is a number in (0, 1]."""
    return field(metadata={"check": check_share})


def shares_field(*default: float | None) -> Any:
    """A setting that is a number in (0, 1], or a tuple of such numbers; or None if that is its default."""
    check: dict[str, Any] = {"check": _check_shares}
    if default == (None,):
        check = {
            "check": lambda method, setting, value: None if value is None else _check_shares(method, setting, value)
        }
    return field(default=default[0], metadata=check) if default else field(metadata=check)


def schedule_field(default: Schedule | None = None) -> Any:
    """A setting that is a `Schedule`; with default None it is required."""
    check = {"check": check_schedule}
    return field(metadata=check) if default is None else field(default=default, metadata=check)


def levels_field(default: float, low: float, high: float) -> Any:
    """A setting that is a number from `low` to `high`, or a tuple of such numbers, one for each block."""

    def check(method: str, setting: str, value: Any) -> float | tuple[float, ...]:
        value = as_tuple(value)
        for level in value if isinstance(value, tuple) else (value,):
            if isinstance(level, bool) or not isinstance(level, int | float) or not low <= level <= high:
                raise RecipeError(
                    f"{method}: {setting} must be a number from {low:g} to {high:g}, or one for each block, not "
                    f"{value!r}."
                )
        return value

    return field(default=default, metadata={"check": check})


def layers_field() -> Any:
    """A setting that selects blocks, see `Layers`."""
    return field(default=None, metadata={"check": check_layers})


def tuple_field() -> Any:
    """A setting that is stored as a tuple if it is a list, as in JSON."""
    return field(default=None, metadata={"check": lambda _method, _setting, value: as_tuple(value)})


def as_tuple(value: Any) -> Any:
    """Convert a list to a tuple; other values are unchanged."""
    return tuple(value) if isinstance(value, list) else value


def _check_shares(method: str, setting: str, value: Any) -> float | tuple[float, ...]:
    value = as_tuple(value)
    for share in value if isinstance(value, tuple) else (value,):
        check_share(method, setting, share)
    return value


def check_schedule(method: str, setting: str, value: Any) -> Schedule:
    """Return the schedule in the form in which it is stored; raises `RecipeError` if it is invalid.

    A list of two numbers is stored with a third one, 0, since a pair means (number, inflect).
    """
    if isinstance(value, list):
        value = tuple(value) if len(value) != 2 else (*value, 0)
    if isinstance(value, tuple) and len(value) == 2:
        if not -1 <= value[1] <= 1:
            raise RecipeError(
                f"{method}: {setting}={value} is read as ({setting}, inflect) and inflect must lie in [-1, 1]; "
                f"for a number for each block write a list, {setting}={list(value)}."
            )
        counts: tuple[float, ...] = value[:1]
    else:
        counts = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(n, Real) and not isinstance(n, bool) and n == int(n) and n >= 0 for n in counts):
        raise RecipeError(f"{method}: {setting} must consist of integers from 0 up, not {value!r}.")
    return value


def check_share(method: str, setting: str, value: Any) -> float:
    """Return the value if it is a number in (0, 1]; raises `RecipeError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise RecipeError(f"{method}: {setting} must be a number in (0, 1], not {value!r}.")
    return value


def check_layers(method: str, setting: str, layers: Any) -> Layers:
    """Return the blocks in the form in which they are stored; raises `RecipeError` if they are invalid."""
    if isinstance(layers, list | tuple):
        layers = tuple(layers)
        if all(isinstance(layer, int) and not isinstance(layer, bool) for layer in layers):
            return layers
    elif layers is None or isinstance(layers, slice):
        return layers
    raise RecipeError(
        f"{method}: {setting} must be a slice of blocks such as 6:12 or their indices such as (3, 6, 9), "
        f"not {layers!r}."
    )


def spread(schedule: Schedule, depth: int) -> list[int]:
    """Expand a schedule to a list with one number for each of `depth` blocks."""
    if not isinstance(schedule, tuple):
        return [int(schedule)] * depth
    if len(schedule) == 2:
        low = int(schedule[0] * (1 - schedule[1]))
        high = 2 * schedule[0] - low
        return [int(low + (high - low) * i / max(depth - 1, 1)) for i in range(depth)]
    return [int(n) for n in schedule[:depth]] + [0] * (depth - len(schedule))


def blocks(layers: Layers, depth: int, default: range | tuple[int, ...] | None = None) -> range | tuple[int, ...]:
    """The indices of the blocks in which a method acts, ascending; negative indices count from the last block."""
    if layers is None:
        return range(depth) if default is None else default
    if isinstance(layers, slice):
        return range(depth)[layers]
    return tuple(sorted({layer % depth for layer in layers if -depth <= layer < depth}))


def quarters(depth: int) -> tuple[int, ...]:
    """The blocks after one, two and three quarters of the depth (3, 6 and 9 of 12), where methods act in the papers."""
    return tuple(sorted({depth // 4, depth // 2, 3 * depth // 4}))


def at(schedule: Schedule, layers: Layers, block: int, depth: int) -> int:
    """The number of a schedule for a block; 0 outside `layers`."""
    return spread(schedule, depth)[block] if block in blocks(layers, depth) else 0

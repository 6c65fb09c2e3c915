"""The four kinds of budget of a search, and the search for a speed, which must be measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..cascade_recipe import check_share
from ..errors import RecipeError
from .results import points_of
from .timing import with_speed

if TYPE_CHECKING:
    from .budget_search import Search


def budget(
    macs: float | None, time: float | None, divergence: float | None, agree: float | None = None
) -> dict[str, float]:
    """The name and value of the given budget. Raises `RecipeError` unless exactly one of the four is given."""
    named = (("macs", macs), ("time", time), ("divergence", divergence), ("agree", agree))
    limits = {name: value for name, value in named if value is not None}
    if len(limits) != 1:
        raise RecipeError(
            "A search has exactly one budget, macs=, time=, divergence= or agree=; it was given "
            f"{' and '.join(limits) or 'none'}."
        )
    ((name, value),) = limits.items()
    if name == "agree":
        check_share(name, value)
        return limits
    least = 0 if name == "divergence" else 1
    if not least < value < float("inf"):
        raise RecipeError(f"{name}={value:g} makes no sense: it must be larger than {least}.")
    return limits


def until_fast(search: Search, target: float, trials: int) -> None:
    """Search by MACs, measure speed, and change the budget until a recipe reaches the speed ratio `target`."""
    from .budget_search import search_budgets

    search_budgets(search, target, 2 * trials // 3)
    for _ in range(3):
        points = [point for point in points_of(search, True) if point.kind == "searched"] or points_of(search, True)
        if not points:
            return
        speeds: dict[float, float] = {}
        for point in with_speed(search.evaluator, points, points):
            if point.speed is not None:
                speeds[point.budget] = max(speeds.get(point.budget, 0.0), point.speed.ratio)
        fast = [ratio for ratio, speed in speeds.items() if speed >= target]
        slow = [ratio for ratio, speed in speeds.items() if speed < target and ratio < min(fast, default=float("inf"))]
        if fast and slow:
            low, high = max(slow), min(fast)
            if high / low < 1.02:
                return
            fraction = (target - speeds[low]) / (speeds[high] - speeds[low])
            step = low + (high - low) * min(0.9, max(0.1, fraction))
        elif fast:
            return
        else:
            step = max(speeds) * min(1.4, 1.02 * target / max(speeds.values()))
        step = round(step, 4)
        if step in search.studies:
            return
        search.search_budget(step, trials // 9, near=min(speeds, key=lambda other: abs(other - step)))

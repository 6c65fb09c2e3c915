"""Finds the most expensive recipe of a series whose MACs do not exceed a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp

from ..errors import RecipeError
from ..recipe import Recipe
from .costs import Costs


@dataclass(frozen=True)
class Fit:
    """A budget, and functions that scale recipes to it."""

    costs: Costs
    target: float
    """MACs per image that the host may use, without those of the network that ranks patches (the proposal)."""
    readout: bool = False
    """Whether the host supports `readout()`, which skips what the head does not read; the output stays the same."""
    count_proposal: bool = True
    """Whether the proposal's MACs count towards the budget: they were subtracted from it to get `target`."""

    def meets(self, recipe: Recipe) -> bool:
        """Whether a recipe is within the budget."""
        return self.costs.of(recipe) <= self.target

    def count(self, low: int, high: int, build: Callable[[int], Recipe]) -> Recipe:
        """The recipe `build(n)` with the largest n in low ... high that meets the budget; cost must rise with n.

        Raises:
            RecipeError: even `low` exceeds the budget.
        """
        if not self.meets(build(low)):
            raise RecipeError(
                f"{build(low)} still takes {self._times_budget(build(low))} times the MACs of the budget."
            )
        while high > low:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.meets(build(middle)) else (low, middle - 1)
        return build(low)

    def schedule(
        self, weights: Sequence[float], build: Callable[[list[int]], Recipe], patches: int | None = None
    ) -> Recipe:
        """The most expensive recipe within the budget that removes an integer number of tokens in each block, in
        proportion to `weights`.

        The scale is found by bisection; then each number is reduced while the recipe stays within the budget, first
        where rounding added most.

        Args:
            weights: relative number of tokens that each block removes.
            build: numbers -> recipe.
            patches: number of patches of an image; if given, a block removes the share 1 - exp(-scale * weight) of the
                patches that reach it.

        Raises:
            RecipeError: no scale meets the budget.
        """

        def scaled(scale: float) -> list[int]:
            if patches is None:
                return [int(scale * weight + 0.5) for weight in weights]
            counts, remaining = [], float(patches)
            for weight in weights:
                remaining_after = remaining * exp(-scale * weight)
                counts.append(int(remaining + 0.5) - int(remaining_after + 0.5))
                remaining = remaining_after
            return counts

        low, high = 0.0, 1.0 / max(weights)
        while not self.meets(build(scaled(high))):
            if high * max(weights) > 64 * self.costs.patches:  # each block already removes all that it can
                cheapest = build(scaled(high))
                raise RecipeError(
                    f"{cheapest} still takes {self._times_budget(cheapest)} times the MACs of the budget."
                )
            high *= 2
        while scaled(low) != scaled(high) and high - low > 1e-9 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if self.meets(build(scaled(middle))) else (middle, high)
        counts = scaled(high)
        for block in sorted(range(len(counts)), key=lambda block: high * weights[block] - counts[block]):
            while counts[block] and self.meets(build([n - (i == block) for i, n in enumerate(counts)])):
                counts[block] -= 1
        return build(counts)

    def _times_budget(self, recipe: Recipe) -> str:
        return f"{self.costs.of(recipe) / self.target:.2f}" if self.target > 0 else "many"

"""Scales recipes to a budget of MACs: to the most expensive one that does not exceed it."""

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
    """MACs that the host may use, without the proposal's."""
    readout: bool = False
    """Whether the host supports `readout()`, which loses nothing."""
    count_proposal: bool = True
    """Whether the proposal's MACs are part of the budget."""

    def meets(self, recipe: Recipe) -> bool:
        """Whether a recipe is within the budget."""
        return self.costs.of(recipe) <= self.target

    def count(self, low: int, high: int, build: Callable[[int], Recipe]) -> Recipe:
        """The recipe `build(n)` with the largest n in low ... high that meets the budget; cost must rise with n.

        Raises:
            RecipeError: even `low` exceeds the budget.
        """
        if not self.meets(build(low)):
            raise RecipeError(f"{build(low)} still takes {self._over(build(low))} times the MACs of the budget.")
        while high > low:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.meets(build(middle)) else (low, middle - 1)
        return build(low)

    def schedule(
        self, weights: Sequence[float], build: Callable[[list[int]], Recipe], patches: int | None = None
    ) -> Recipe:
        """The recipe with an integer for each block, in the proportions `weights`, that meets the budget.

        The scale is found by bisection; then every number is reduced as far as the budget allows.

        Args:
            weights: relative number of tokens that each block removes.
            build: numbers -> recipe.
            patches: number of patches; if given, the weights are for shares of the patches that the block before left.

        Raises:
            RecipeError: no scale meets the budget.
        """

        def scaled(scale: float) -> list[int]:
            if patches is None:
                return [int(scale * weight + 0.5) for weight in weights]
            counts, left = [], float(patches)
            for weight in weights:
                remaining = left * exp(-scale * weight)
                counts.append(int(left + 0.5) - int(remaining + 0.5))
                left = remaining
            return counts

        low, high = 0.0, 1.0 / max(weights)
        while not self.meets(build(scaled(high))):
            if high * max(weights) > 64 * self.costs.patches:
                raise RecipeError(
                    f"{build(scaled(high))} still takes {self._over(build(scaled(high)))} times the MACs of the budget."
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

    def _over(self, recipe: Recipe) -> str:
        return f"{self.costs.of(recipe) / self.target:.2f}" if self.target > 0 else "many"

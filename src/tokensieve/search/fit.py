"""Recipes that meet a budget of MACs exactly: the largest that one more token in any block would overstep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp

from ..errors import RecipeError
from ..recipe import Recipe
from .costs import Costs


@dataclass(frozen=True)
class Fit:
    """A budget, and the ways to spend it."""

    costs: Costs
    target: float
    """MACs that the host may take, the proposal's left out."""
    readout: bool = False
    """Whether the host takes `readout()`, which loses nothing."""
    count_proposal: bool = True
    """Whether the proposal's MACs are part of the budget."""

    def meets(self, recipe: Recipe) -> bool:
        return self.costs.of(recipe) <= self.target

    def count(self, low: int, high: int, build: Callable[[int], Recipe]) -> Recipe:
        """The recipe of the largest number in low ... high that meets the budget, where more costs more.

        Raises:
            RecipeError: `low` costs too much already.
        """
        if not self.meets(build(low)):
            raise RecipeError(f"{build(low)} still takes {self._over(build(low))} times the MACs that it may.")
        while high > low:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.meets(build(middle)) else (low, middle - 1)
        return build(low)

    def schedule(
        self, weights: Sequence[float], build: Callable[[list[int]], Recipe], patches: int | None = None
    ) -> Recipe:
        """The recipe of whole numbers in the proportions `weights`, one a block, that meets the budget.

        The scale is found by halving; then every number that is larger than it has to be gives back.

        Args:
            weights: what each block takes away; the scale is this method's.
            build: numbers -> recipe.
            patches: if given, the weights are of shares, of these at first and then of what the block before left.

        Raises:
            RecipeError: no scale is enough.
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
                    f"{build(scaled(high))} still takes {self._over(build(scaled(high)))} times the MACs that it may."
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

"""Families of `dtop`: which exits of a segmenter are used, and at which confidence tokens leave there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import exp

import torch
from torch import Tensor

from ..errors import RecipeError
from ..methods import DToP
from ..recipe import Recipe
from .exit_costs import ExitCosts
from .exits import DIGITS
from .families import EXITS, Family, Variant
from .fit import Fit

KEPT = 5
"""Tokens of each class that stay as context, as published."""
STRETCH, CONTEXT = 3.0, 1.6
"""Natural logarithm of the factor by which a parameter of 1 changes an exit's weight, and the tokens kept as
context."""
LEAST = 0.1
"""Weight, beside the largest, below which an exit is not used."""
EVERY_SET = 3
"""Exits, the last left out, up to which every set of them is a beginning."""
PASSES = 8
"""Thresholds that are counted on the images to meet a budget with one for all exits."""
NEAR = 0.997
"""Share of a budget that is near enough."""


@dataclass(frozen=True)
class OneThreshold(Family):
    """`dtop` at all exits with one threshold, as published; the budget decides it."""

    name: str = "dtop"

    def variants(self) -> Sequence[Variant]:
        return [{}, {"class_probability": "stage"}]

    def recipe(self, params: Mapping[str, float], variant: Variant, fit: Fit) -> Recipe:
        costs = exit_costs(fit)

        def build(threshold: float) -> Recipe:
            return Recipe.of(DToP(threshold=threshold, keep_per_class=KEPT, **variant))

        # What a threshold costs is guessed from the confidences without exits, then counted on the images; by how far
        # the guess was off the next one is corrected.
        steps, guess = _guesses(costs)
        low, high, best, off = 0, len(steps) - 1, None, 1.0
        for _ in range(PASSES):
            if low > high:
                break
            index = _last(low, high, lambda step: guess(step) * off <= fit.target)  # noqa: B023
            cost = costs.of(build(steps[index]))
            off = cost / guess(index)
            if cost > fit.target:
                high = index - 1
                continue
            best, low = build(steps[index]), index + 1
            if cost >= NEAR * fit.target:
                break
        if best is None:
            best = build(steps[0])
            _check(costs.of(best), best, fit)
        return best


def _guesses(costs: ExitCosts) -> tuple[list[float], Callable[[int], float]]:
    """Thresholds worth trying, in rising order, and what each of them is guessed to cost."""
    arrived = {block: costs.arrived(block) for block in costs.exits[:-1]}
    confidences = torch.cat([at.confidence.flatten() for at in arrived.values()]).double()
    steps = [step for step in (confidences * 10**DIGITS).round().unique().tolist() if 0 < step < 10**DIGITS]
    steps = [step / 10**DIGITS for step in steps] or [0.5]

    def guess(index: int) -> float:
        left: dict[int, Tensor] = {}
        stays: Tensor | None = None
        for block, at in arrived.items():
            staying = at.stays(steps[index], KEPT)
            stays = staying if stays is None else stays & staying
            left[block] = stays.sum(1).clamp(min=1) + at.prefix
        return costs.of_exits(left)

    return steps, guess


def _last(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The last number in low ... high for which something holds that holds of all below it; else `low`."""
    while high > low:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


@dataclass(frozen=True)
class Exits(Family):
    """`dtop` with the exits that serve, and a threshold for each.

    An exit with a weight of w lets exp(-s w) of the tokens that arrive there stay, on the mean over the images; the
    budget decides s, and the last threshold what is left of it. Parameters: the logarithms of the weights, of which
    small ones mean that the exit is not used, and of how many tokens of each class stay as context.

    Args:
        exits: the blocks with a head behind them, the last one left out.
    """

    exits: tuple[int, ...]
    name: str = "scheduled-dtop"
    searched: bool = True

    def param_names(self, depth: int) -> list[str]:
        return [*(f"exit{block}" for block in self.exits), "context"]

    def variants(self) -> Sequence[Variant]:
        """All exits, and fewer of them; all once more where each stage says how sure its classes are."""
        all_exits, sizes = self.exits, range(len(self.exits) - 1, 0, -1)
        if len(all_exits) <= EVERY_SET:
            fewer = [layers for size in sizes for layers in combinations(all_exits, size)]
        else:
            fewer = [*pairwise(all_exits), *((block,) for block in all_exits)]
        return [
            {"layers": all_exits},
            *({"layers": layers} for layers in fewer),
            {"layers": all_exits, "class_probability": "stage"},
        ]

    def recipe(self, params: Mapping[str, float], variant: Variant, fit: Fit) -> Recipe:
        costs, weights = exit_costs(fit), self._weights(params, variant["layers"])
        keep = round(KEPT * exp(CONTEXT * params.get("context", 0.0)))
        settings = {name: value for name, value in variant.items() if name != "layers"}
        thresholds: dict[int, float] = {}
        left: dict[int, Tensor] = {}

        def build() -> DToP:
            values = tuple(thresholds.values())
            return DToP(threshold=values, layers=tuple(thresholds), keep_per_class=keep, **settings)

        for index, block in enumerate(weights):
            at = costs.arrived(block, build() if thresholds else None)
            if index < len(weights) - 1:
                target_shares = _wanted(costs, left, dict(list(weights.items())[index:]), fit.target)
                threshold = at.threshold(keep, lambda counts: float(counts.double().mean()) <= target_shares)  # noqa: B023
            else:
                threshold = at.threshold(keep, lambda counts: costs.of_exits({**left, block: counts}) <= fit.target)  # noqa: B023
            if threshold < 1:
                thresholds[block], left[block] = threshold, at.left(threshold, keep)
        if not thresholds:
            raise RecipeError(f"No token has to leave for {fit.target / 1e9:.3g} GMAC.")
        recipe = Recipe.of(build())
        _check(costs.of_exits(left), recipe, fit)
        return recipe

    def _weights(self, params: Mapping[str, float], layers: Sequence[int]) -> dict[int, float]:
        """Of the exits that are used. Those that the beginning leaves out join where their parameter is large
        enough."""
        weights = {
            block: exp(STRETCH * (min(3.0, max(-3.0, params.get(f"exit{block}", 0.0))) - (block not in layers)))
            for block in self.exits
        }
        return {block: weight for block, weight in weights.items() if weight >= LEAST * max(weights.values())}


def _wanted(costs: ExitCosts, left: Mapping[int, Tensor], weights: Mapping[int, float], target: float) -> float:
    """How many tokens are to stay at the first of these exits, the mean over images, so that the budget is met where
    the same holds of those behind it."""
    now = [*left.values()][-1].double() if left else torch.tensor([float(costs.patches + costs.prefix)]).double()
    patches = now - costs.prefix

    def behind(scale: float) -> dict[int, Tensor]:
        counts, total = {}, 0.0
        for block, weight in weights.items():
            total += weight
            counts[block] = costs.prefix + patches * exp(-scale * total)
        return counts

    low, high = 0.0, 8.0 / min(weights.values())
    for _ in range(40):
        middle = (low + high) / 2
        enough = costs.of_exits({**left, **behind(middle)}) <= target
        low, high = (low, middle) if enough else (middle, high)
    return float(behind(high)[next(iter(weights))].mean())


def exit_costs(fit: Fit) -> ExitCosts:
    """The costs of a segmenter with exits."""
    assert isinstance(fit.costs, ExitCosts)
    return fit.costs


def _check(cost: float, recipe: Recipe, fit: Fit) -> None:
    if cost > fit.target:
        over = f"{cost / fit.target:.2f}" if fit.target > 0 else "many"
        raise RecipeError(f"{recipe} still takes {over} times the MACs that it may.")


def exit_families(names: Sequence[str], exits: Sequence[int]) -> list[Family]:
    """The families of these names, for a segmenter with heads behind these blocks."""
    by_name: dict[str, Family] = dict(zip(EXITS, (Exits(tuple(exits[:-1])), OneThreshold()), strict=True))
    return [by_name[name] for name in names if name in by_name]

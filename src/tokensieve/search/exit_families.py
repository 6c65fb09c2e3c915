"""Families of `dtop` recipes: the exits of a segmenter that are used, and the confidence at which tokens exit."""

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
"""Number of tokens of each class that stay as context, as published."""
STRETCH, CONTEXT = 3.0, 1.6
"""Natural logarithm of the factor by which a parameter of 1 changes an exit's weight, and the number of context
tokens."""
LEAST = 0.1
"""Share of the largest weight below which an exit is not used."""
EVERY_SET = 3
"""Maximum number of exits, without the last, for which every subset is a variant."""
PASSES = 8
"""Maximum number of thresholds whose cost is counted on the images to meet a budget with one threshold."""
NEAR = 0.997
"""Share of a budget that is close enough to it."""


@dataclass(frozen=True)
class OneThreshold(Family):
    """`dtop` at all exits with one threshold, as published; the threshold follows from the budget."""

    name: str = "dtop"

    def variants(self) -> Sequence[Variant]:
        return [{}, {"class_probability": "stage"}]

    def recipe(self, params: Mapping[str, float], variant: Variant, fit: Fit) -> Recipe:
        costs = exit_costs(fit)

        def build(threshold: float) -> Recipe:
            return Recipe.of(DToP(threshold=threshold, keep_per_class=KEPT, **variant))

        # The cost of a threshold is estimated from the confidences without exits, then counted on the images; the ratio
        # of the two corrects the next estimate.
        steps, estimate = _estimates(costs)
        low, high, best, correction = 0, len(steps) - 1, None, 1.0
        for _ in range(PASSES):
            if low > high:
                break
            index = _last(low, high, lambda step: estimate(step) * correction <= fit.target)  # noqa: B023
            cost = costs.of(build(steps[index]))
            correction = cost / estimate(index)
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


def _estimates(costs: ExitCosts) -> tuple[list[float], Callable[[int], float]]:
    """Thresholds to try, in rising order, and a function from their index to their estimated cost."""
    arrived = {block: costs.arrived(block) for block in costs.exits[:-1]}
    confidences = torch.cat([at.confidence.flatten() for at in arrived.values()]).double()
    steps = [step for step in (confidences * 10**DIGITS).round().unique().tolist() if 0 < step < 10**DIGITS]
    steps = [step / 10**DIGITS for step in steps] or [0.5]

    def estimate(index: int) -> float:
        left: dict[int, Tensor] = {}
        stays: Tensor | None = None
        for block, at in arrived.items():
            staying = at.stays(steps[index], KEPT)
            stays = staying if stays is None else stays & staying
            left[block] = stays.sum(1).clamp(min=1) + at.prefix
        return costs.of_exits(left)

    return steps, estimate


def _last(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The largest number in low ... high for which `holds` is True, if it is monotonic; else `low`."""
    while high > low:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


@dataclass(frozen=True)
class Exits(Family):
    """`dtop` with a choice of exits, and a threshold for each.

    At an exit with weight w a share exp(-s w) of the arriving tokens stays, on average over the images; s follows from
    the budget, and the last threshold uses up the rest of it. Parameters: the logarithms of the weights, where small
    ones mean that the exit is not used, and of the number of tokens of each class that stay as context.

    Args:
        exits: the blocks that are followed by a head, without the last one.
    """

    exits: tuple[int, ...]
    name: str = "scheduled-dtop"
    searched: bool = True

    def param_names(self, depth: int) -> list[str]:
        return [*(f"exit{block}" for block in self.exits), "context"]

    def variants(self) -> Sequence[Variant]:
        """All exits, subsets of them, and all exits with `class_probability` of the stage."""
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
                target_count = _target_count(costs, left, dict(list(weights.items())[index:]), fit.target)
                threshold = at.threshold(keep, lambda counts: float(counts.double().mean()) <= target_count)  # noqa: B023
            else:
                threshold = at.threshold(keep, lambda counts: costs.of_exits({**left, block: counts}) <= fit.target)  # noqa: B023
            if threshold < 1:
                thresholds[block], left[block] = threshold, at.left(threshold, keep)
        if not thresholds:
            raise RecipeError(f"No token has to exit to meet {fit.target / 1e9:.3g} GMAC.")
        recipe = Recipe.of(build())
        _check(costs.of_exits(left), recipe, fit)
        return recipe

    def _weights(self, params: Mapping[str, float], layers: Sequence[int]) -> dict[int, float]:
        """Block -> weight of the exits that are used. An exit not in `layers` is used if its parameter is large."""
        weights = {
            block: exp(STRETCH * (min(3.0, max(-3.0, params.get(f"exit{block}", 0.0))) - (block not in layers)))
            for block in self.exits
        }
        return {block: weight for block, weight in weights.items() if weight >= LEAST * max(weights.values())}


def _target_count(costs: ExitCosts, left: Mapping[int, Tensor], weights: Mapping[int, float], target: float) -> float:
    """Mean number of tokens that should stay at the first of these exits, so that the budget is met if the later exits
    keep tokens according to their weights."""
    now = [*left.values()][-1].double() if left else torch.tensor([float(costs.patches + costs.prefix)]).double()
    patches = now - costs.prefix

    def later_counts(scale: float) -> dict[int, Tensor]:
        counts, total = {}, 0.0
        for block, weight in weights.items():
            total += weight
            counts[block] = costs.prefix + patches * exp(-scale * total)
        return counts

    low, high = 0.0, 8.0 / min(weights.values())
    for _ in range(40):
        middle = (low + high) / 2
        enough = costs.of_exits({**left, **later_counts(middle)}) <= target
        low, high = (low, middle) if enough else (middle, high)
    return float(later_counts(high)[next(iter(weights))].mean())


def exit_costs(fit: Fit) -> ExitCosts:
    """The costs of a segmenter with exits."""
    assert isinstance(fit.costs, ExitCosts)
    return fit.costs


def _check(cost: float, recipe: Recipe, fit: Fit) -> None:
    if cost > fit.target:
        over = f"{cost / fit.target:.2f}" if fit.target > 0 else "many"
        raise RecipeError(f"{recipe} still takes {over} times the MACs of the budget.")


def exit_families(names: Sequence[str], exits: Sequence[int]) -> list[Family]:
    """The families with these names, for a segmenter with heads after the blocks `exits`."""
    by_name: dict[str, Family] = dict(zip(EXITS, (Exits(tuple(exits[:-1])), OneThreshold()), strict=True))
    return [by_name[name] for name in names if name in by_name]

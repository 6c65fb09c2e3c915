"""Recipes that merge or drop just enough tokens to fit a budget of MACs, to compare methods at equal cost."""

from __future__ import annotations

from functools import cache

from torch import nn

from ..data.inputs import InputSize
from ..errors import RecipeError
from ..hosts import open_tokens
from ..methods import PaPr, ToMe
from ..recipe import Recipe
from ..stream import sieve
from .macs import macs


def merge_to(
    model: nn.Module,
    target: float,
    input_size: InputSize | None = None,
    before: Recipe | str = "",
    *,
    pretrained: bool = True,
) -> Recipe:
    """The recipe `before` followed by the weakest ToMe, spread evenly over the blocks, that fits a budget.

    Args:
        model: the host.
        target: MACs per image that the host may use; a proposal's are not counted.
        input_size: as in `macs`.
        before: the methods before ToMe in the recipe.
        pretrained: False builds named proposals with random weights, as in `sieve`.

    Raises:
        RecipeError: merging alone cannot reach the budget.
    """
    start, depth = Recipe.of(before), len(open_tokens(model, "merged").blocks)

    def recipe(total: int) -> Recipe:
        return start + even_tome(total, depth)

    @cache
    def cost(total: int) -> float:
        return macs(sieve(model, recipe(total), pretrained=pretrained), input_size, proposal=False)

    high = 1
    while cost(high) > target:
        if high > 1 and cost(high) == cost(high // 2):
            raise RecipeError(
                f"Merging cannot bring {type(model).__name__} to {target / 1e9:.3g} GMAC: with half of the tokens "
                f"merged in every block {cost(high) / 1e9:.3g} remain."
            )
        high *= 2
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= target else (middle, high)
    return recipe(high)


def even_tome(total: int, depth: int) -> ToMe:
    """ToMe that merges away `total` tokens, as evenly over `depth` blocks as whole numbers allow."""
    per_block = tuple(total * (block + 1) // depth - total * block // depth for block in range(depth))
    return ToMe(r=per_block if depth != 2 else (*per_block, 0))  # two numbers alone would mean (r, inflect)


STEPS = 256
"""Number of keep ratios that `drop_to` chooses from."""


def drop_to(
    model: nn.Module, target: float, input_size: InputSize | None = None, *, significance: str = "random"
) -> Recipe:
    """The recipe that keeps as many patches as a budget allows, ranked without a proposal.

    Args:
        model: the host.
        target: MACs per image.
        input_size: as in `macs`.
        significance: "random" or "centre".

    Raises:
        RecipeError: even the smallest keep ratio costs more.
    """

    def recipe(step: int) -> Recipe:
        return Recipe.of(PaPr(keep=step / STEPS, significance=significance))

    def fits(step: int) -> bool:
        return macs(sieve(model, recipe(step)), input_size) <= target

    low, high = 1, STEPS
    if not fits(low):
        raise RecipeError(
            f"Dropping patches cannot bring {type(model).__name__} to {target / 1e9:.3g} GMAC: at a keep ratio of "
            f"1/{STEPS} it still costs more."
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return recipe(high if fits(high) else low)

"""Merging or dropping by as much as a budget of MACs asks for: how methods are compared at equal cost."""

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
    """The recipe `before` with the least ToMe after it, spread evenly over the blocks, that fits a budget.

    Args:
        model: the host.
        target: MACs for each image that the host may take; a proposal's come on top and are not counted.
        input_size: as in `macs`.
        before: what the recipe begins with.
        pretrained: False builds named proposals with random weights, as in `sieve`.

    Raises:
        RecipeError: merging alone cannot save as much.
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
    """ToMe that merges away so many tokens in all, as evenly over `depth` blocks as whole numbers allow."""
    share = tuple(total * (block + 1) // depth - total * block // depth for block in range(depth))
    return ToMe(r=share if depth != 2 else (*share, 0))  # two numbers alone mean something else


STEPS = 256
"""Keep ratios that `drop_to` chooses from."""


def drop_to(
    model: nn.Module, target: float, input_size: InputSize | None = None, *, significance: str = "random"
) -> Recipe:
    """The recipe that keeps as many patches as fit a budget, ranked without a proposal.

    Args:
        model: the host.
        target: MACs for each image.
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

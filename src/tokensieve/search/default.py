"""The default recipe of commands. It needs no training and, if the host allows it, no downloaded proposal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import SieveError

if TYPE_CHECKING:  # heavy imports wait until a recipe is made, so that --help answers at once
    from torch import nn

    from ..data.inputs import InputSize
    from ..recipe import Recipe
    from .fit import Fit

SAVING = 1.5
"""Ratio of dense to sieved MACs. A DeiT-Tiny keeps 96 % of its predictions (results/compare.csv, 35 % saved)."""
RANKED = "papr(keep=0.65)"
"""For hosts with stages, and if tokens can be neither merged nor ranked by a class token."""
MOVING = "papr(keep=0.65, significance=motion)"
"""The same for hosts that read videos; motion ranks patches without a network."""
EXITS = "dtop()"
"""For segmenters with heads after several blocks, which were trained for it."""
DEFAULT_RECIPE_TEXT = (
    f"guarded merging at {SAVING:g}x fewer MACs, no proposal; {RANKED} on hosts with stages; {EXITS} on segmenters "
    "with exits"
)


def default_recipe(model: nn.Module, input_size: InputSize) -> Recipe:
    """The best recipe without training or proposal, scaled to `SAVING` on this host.

    Guarded merging with the fixed schedule and the readout, if the head reads a class token; else ToMe with the same
    schedule; else `RANKED`. For segmenters with exits `EXITS`. On a DeiT-Tiny the first loses least at 25 to 55 % of
    the MACs saved (results/compare.csv); `tune` starts from it.

    Args:
        model: the host.
        input_size: size of its images or clips, as in `measure.macs`.

    Raises:
        UnsupportedHost: the model cannot be sieved.
    """
    from ..data.inputs import own_input
    from ..hosts import Host, open_host
    from ..recipe import Recipe
    from .families import Scheduled

    host, spec = open_host(model), own_input(model, input_size)
    ranked = Recipe.parse(RANKED if host.layout == "CHW" else MOVING)
    if host.units == "pixels":
        return ranked
    if isinstance(host, Host) and len(host.exits) > 1:
        return Recipe.parse(EXITS)

    try:
        fit = budget_of(model, spec, 1 / SAVING)
    except SieveError:  # the cost of some parts cannot be computed beforehand
        return ranked
    for family in (Scheduled("guarded"), Scheduled("tome")):
        try:
            recipe = family.recipe({}, family.variants()[0], fit)
        except SieveError:  # merging cannot save as much
            continue
        if _takes(model, recipe):
            return recipe
    return ranked


def budget_of(model: nn.Module, input_size: InputSize | None, share: float) -> Fit:
    """A budget of `share` of the model's MACs, to scale recipes to.

    Raises:
        SieveError: the model cannot be sieved, or the cost of some parts cannot be computed beforehand.
    """
    from ..data.inputs import own_input
    from ..stream import sieve
    from .costs import Costs
    from .fit import Fit

    costs = Costs(sieve(model), own_input(model, input_size))
    return Fit(costs, costs.dense * share, _takes(model, "readout()"))


def _takes(model: nn.Module, recipe: Recipe | str) -> bool:
    from ..stream import sieve

    try:
        sieve(model, recipe)
    except SieveError:
        return False
    return True

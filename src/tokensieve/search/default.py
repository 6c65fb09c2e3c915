"""The recipe that commands take where none is given: no training, no proposal to download where the host allows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import SieveError

if TYPE_CHECKING:  # heavy imports wait until a recipe is made, so that --help answers at once
    from torch import nn

    from ..data.inputs import InputSize
    from ..recipe import Recipe
    from .fit import Fit

SAVING = 1.5
"""Times fewer MACs. A DeiT-Tiny keeps 96 % of its answers there (results/compare.csv, 35 % saved)."""
RANKED = "papr(keep=0.65)"
"""Where tokens can be neither merged nor ranked by a class token, and on hosts with stages."""
MOVING = "papr(keep=0.65, significance=motion)"
"""The same for hosts that read videos, where motion ranks without a network."""
EXITS = "dtop()"
"""On segmenters with a head behind several blocks, which were trained for it."""
DEFAULT_RECIPE_TEXT = (
    f"guarded merging at {SAVING:g}x fewer MACs, no proposal; {RANKED} on hosts with stages; {EXITS} on segmenters "
    "with exits"
)


def default_recipe(model: nn.Module, input_size: InputSize) -> Recipe:
    """The best recipe without training or proposal, scaled to `SAVING` on this host.

    Guarded merging by the schedule known, with the readout, where the head reads a class token; else ToMe by the same
    schedule; else `RANKED`. Of segmenters with exits `EXITS`. On a DeiT-Tiny the first loses least of all at 25 to 55 %
    of the MACs saved (results/compare.csv), and it is what `tune` begins with.

    Args:
        model: the host.
        input_size: of its images or clips, as in `measure.macs`.

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
    except SieveError:  # parts whose cost is not known beforehand
        return ranked
    for family in (Scheduled("guarded"), Scheduled("tome")):
        try:
            recipe = family.recipe({}, family.variants()[0], fit)
        except SieveError:  # so much cannot be saved by merging
            continue
        if _takes(model, recipe):
            return recipe
    return ranked


def budget_of(model: nn.Module, input_size: InputSize | None, share: float) -> Fit:
    """A budget of `share` of the model's MACs, for recipes that are scaled to one.

    Raises:
        SieveError: the model cannot be sieved, or has parts whose cost is not known beforehand.
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

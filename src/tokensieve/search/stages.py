"""Hosts with stages, such as Swin and ConvNeXt: the costs of recipes, and the families to search.

Their layers need a whole rectangular map, so that nothing can be merged: the only method is `papr`, with a keep ratio
for each stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import torch

from ..forward.stage_plan import StagePlan
from ..measure import macs
from ..methods.base import make
from ..recipe import Recipe
from ..stream import Sieved, sieve
from .costs import Costs
from .families import Family, Variant, layers
from .fit import Fit

CENTRE: Variant = {"significance": "centre"}
"""Settings of `papr` that rank pixels by their distance to the centre, without a network."""
RATIO_STEPS = 10_000
"""Number of steps into which a keep ratio is divided."""
REACH = 0.5
"""What a stage's parameter of 1 adds to its keep ratio."""


class StageCosts(Costs):
    """The MACs of a model with stages under any recipe, as `measure.macs(..., proposal=False)` counts them.

    They are linear in the pixels that each stage keeps. `depth` is the number of stages, `pixels` the number of pixels
    in each stage's map, and `per_pixel` the MACs of one pixel, summed over the blocks of its stage. Arguments and
    errors are those of `Costs`.
    """

    def __init__(self, fast: Sieved, input_size: Sequence[int]) -> None:
        weight = next(fast.model.parameters())
        with torch.no_grad():
            sizes = fast.sizes(torch.zeros(1, *input_size, device=weight.device, dtype=weight.dtype))
        self.host: Any = fast.host
        self.depth, self.pixels = len(sizes), [prod(size) for size in sizes]
        self.dense, self.rest = round(macs(fast.model, input_size)), 0
        self.per_pixel = []
        for stage, pixels in enumerate(self.pixels):
            recipe = make("papr", {"keep": 0.5 / pixels, "significance": "centre", "stages": (stage,)})
            # one pixel is kept: the difference is what the other pixels cost
            counted = macs(sieve(fast.model, recipe), input_size, proposal=False)
            self.per_pixel.append(round((self.dense - counted) / max(1, pixels - 1)))
        self._check(fast, input_size, 0.6)

    def kept(self, recipe: Recipe) -> list[int]:
        """Number of pixels that each stage keeps under a recipe."""
        plan = StagePlan(recipe, self.host)
        return [plan.reads(stage, pixels)[0].mlp for stage, pixels in enumerate(self.pixels)]

    def of(self, recipe: Recipe) -> int:
        """MACs per image under a recipe, without its proposal."""
        counts = zip(self.pixels, self.kept(recipe), self.per_pixel, strict=True)
        return self.dense - sum((pixels - kept) * per_pixel for pixels, kept, per_pixel in counts)


def costs_of(fast: Sieved, input_size: Sequence[int]) -> Costs:
    """The costs of a host, with tokens or with stages."""
    return StageCosts(fast, input_size) if fast.units == "pixels" else Costs(fast, input_size)


def _variants(proposal: Mapping[str, Any] | None) -> list[Variant]:
    """Variants of `papr`: what stands where pixels are dropped (zeros, or the block's input), and the layer of the
    proposal whose features rank them."""
    return [{"background": background, **layer} for layer in layers(proposal) for background in ("zero", "keep")]


@dataclass(frozen=True)
class Shared(Family):
    """`papr` with one keep ratio for all stages, as in the paper: the largest that the budget allows."""

    name: str
    settings: Variant
    proposal: Mapping[str, Any] | None = None

    def variants(self) -> Sequence[Variant]:
        return _variants(self.proposal)

    def recipe(self, params: Mapping[str, float], variant: Variant, fit: Fit) -> Recipe:
        settings = {**self.settings, **variant}
        return fit.count(1, RATIO_STEPS - 1, lambda n: Recipe.of(make("papr", {"keep": n / RATIO_STEPS, **settings})))


@dataclass(frozen=True)
class Staged(Family):
    """`papr` with a keep ratio for each stage; pixels are ranked by a proposal or by their distance to the centre.

    The keep ratio of a stage is min(1, level + REACH * parameter), with one level for all stages, the largest that the
    budget allows. What rounding leaves of the budget keeps further pixels, first in the stage with the most MACs per
    pixel.
    """

    proposal: Mapping[str, Any] | None = None
    name: str = "scheduled-papr"
    searched: bool = True

    def param_names(self, depth: int) -> list[str]:
        return [f"stage{i}" for i in range(depth)]

    def beginnings(self, depth: int) -> list[dict[str, float]]:
        """Starting points: the same keep ratio in all stages; then, for each stage, one where it keeps all pixels."""
        return [{}, *({name: 1 / REACH} for name in self.param_names(depth))]

    def variants(self) -> Sequence[Variant]:
        return _variants(self.proposal)

    def recipe(self, params: Mapping[str, float], variant: Variant, fit: Fit) -> Recipe:
        costs = fit.costs
        assert isinstance(costs, StageCosts)
        pixels, settings = costs.pixels, {**(self.proposal or CENTRE), **variant}
        offsets = [REACH * params.get(name, 0.0) for name in self.param_names(costs.depth)]

        def build(counts: Sequence[int]) -> Recipe:
            keep = tuple(_keep_ratio(count, total) for count, total in zip(counts, pixels, strict=True))
            return Recipe.of(make("papr", {"keep": keep, **settings}))

        def recipe_at(step: int) -> Recipe:
            level = step / RATIO_STEPS - max(offsets)
            shares = (level + offset for offset in offsets)
            return build([min(n, max(1, round(n * ratio))) for n, ratio in zip(pixels, shares, strict=True)])

        recipe = fit.count(0, ceil((1 + max(offsets) - min(offsets)) * RATIO_STEPS), recipe_at)
        counts, spare = costs.kept(recipe), fit.target - costs.of(recipe)
        for stage in sorted(range(costs.depth), key=lambda stage: -costs.per_pixel[stage]):
            added = min(pixels[stage] - counts[stage], int(spare / max(1, costs.per_pixel[stage])))
            counts[stage] += added
            spare -= added * costs.per_pixel[stage]
        return build(counts)


def _keep_ratio(count: int, pixels: int) -> float:
    """The keep ratio with the fewest decimals for which int(pixels * ratio) is `count`."""
    if count == pixels:
        return 1.0
    return next(
        ratio for digits in range(2, 18) if int(pixels * (ratio := round((count + 0.5) / pixels, digits))) == count
    )


NAMES = ("scheduled-papr", "papr", "centre", "random")
"""Families for hosts with stages. `random` is a control, which is searched only if requested by name."""


def stage_families(names: Sequence[str], proposals: Sequence[Mapping[str, Any]]) -> list[Family]:
    """The families with these names: `papr` and `scheduled-papr` once for each proposal, `scheduled-papr` also once
    ranked by the distance to the centre."""
    families: list[Family] = []
    for name in names:
        if name == "scheduled-papr":
            families += [Staged(proposal) for proposal in (None, *proposals)]
        elif name == "papr":
            families += [Shared("papr", proposal, proposal) for proposal in proposals]
        else:
            families.append(Shared(name, {"significance": name}))
    return families

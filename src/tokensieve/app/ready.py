"""Ready recipes for a model, each with one number that a slider sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from ..errors import SieveError
from ..measure.budget import even_tome
from ..methods import EViT, PaPr
from ..model_spec import OpenedModel
from ..recipe import Recipe
from ..search.default import budget_of
from ..search.families import Scheduled
from ..search.fit import Fit
from ..show.variants import ranking, varied
from ..stream import sieve
from .copied import bare
from .offers import Offer


@dataclass(frozen=True)
class Dial:
    """Settings of the slider: label, meaning, range, default and step."""

    label: str
    meaning: str
    low: float
    high: float
    value: float
    step: float = 0.05


KEEP = Dial("Keep", "Share of the patches that the model goes on reading.", 0.1, 1.0, 0.5)
WORK = Dial("Compute to keep", "Share of the model's multiply-accumulates.", 0.35, 0.95, 0.65)
SURE = Dial("Confidence", "A patch leaves as soon as the model is surer of it than this.", 0.5, 1.0, 0.95, 0.01)
CHANGE = Dial("Threshold", "A patch is left out where it changes less than this between frames.", 0.0, 1.0, 0.1)


@dataclass(frozen=True)
class Ready:
    """A recipe to choose: its name, its description, and the recipe for each value of the dial, None without a dial."""

    name: str
    about: str
    build: Callable[[float], Recipe]
    dial: Dial | None = KEEP

    def recipe(self, value: float | None = None) -> Recipe:
        """The recipe with the dial at `value`, clipped to its range, or at its default."""
        if self.dial is None:
            return self.build(1.0)
        value = self.dial.value if value is None else min(max(value, self.dial.low), self.dial.high)
        return self.build(round(value, 4))


def ready_recipes(opened: OpenedModel, offer: Offer) -> dict[str, Ready]:
    """The recipes that the model accepts, by name: the one that the page was started with, then the best known."""
    return {ready.name: ready for ready in _all(opened, offer) if _takes(opened, ready, offer)}


def _takes(opened: OpenedModel, ready: Ready, offer: Offer) -> bool:
    if offer.recipe is not None and ready.name == STARTED:
        return True  # it was checked when the page was started
    try:
        sieve(opened.dense, ready.recipe(), mean=opened.preprocessing.mean, std=opened.preprocessing.std)
    except SieveError:
        return False
    return True


STARTED = "The recipe this page was started with"


def _all(opened: OpenedModel, offer: Offer) -> Iterator[Ready]:
    host, given = opened.fast.host, offer.recipe
    staged = opened.fast.units == "pixels"
    what = "pixels" if staged else "patches"
    if given is not None:
        yield _given(given)
    if getattr(host, "exits", ()) and len(host.exits) > 1:
        yield Ready(
            "Early exits: patches leave when the model is sure (dtop)",
            "Easy patches leave the model at its first or second head; hard ones go on to the last.",
            lambda value: Recipe.parse(f"dtop(threshold={value:g})"),
            SURE,
        )
    if offer.videos:
        yield _papr("Keep what moves (papr, motion)", "Patches that change from frame to frame are kept.", "motion")
    if offer.proposal is not None:
        yield Ready(
            f"Keep what matters (papr, ranked by {offer.proposal})",
            f"A tiny network looks first and ranks the {what}; the model reads the top ones.",
            lambda value: Recipe.of(PaPr(keep=value, proposal=offer.proposal)),
        )
    if not staged:
        yield from _merging(opened, offer)
    if offer.videos:
        yield Ready(
            "Leave out what stands still (rlt)",
            "A patch that looks as it did a moment ago is left out; how many are read depends on the clip.",
            lambda value: Recipe.parse(f"rlt(threshold={value:g})"),
            CHANGE,
        )
    yield _papr("Keep the middle (control)", f"The {what} nearest the middle are kept, whatever they show.", "centre")
    yield _papr("Keep at random (control)", f"As many {what}, drawn at random: what choosing is worth.", "random")


def _given(recipe: Recipe) -> Ready:
    """The given recipe; the dial sets its keep ratio, where that is one number."""
    about = f"{bare(recipe)}"
    try:
        keep = ranking(recipe).keep
    except SieveError:
        return Ready(STARTED, about, lambda _: recipe, None)
    if isinstance(keep, tuple):
        return Ready(STARTED, about, lambda _: recipe, None)
    dial = replace(KEEP, value=keep, low=min(KEEP.low, keep), step=0.05 if round(20 * keep, 6).is_integer() else 0.01)
    return Ready(STARTED, about, lambda value: varied(recipe, keep=value), dial)


def _papr(name: str, about: str, significance: str) -> Ready:
    return Ready(name, about, lambda value: Recipe.of(PaPr(keep=value, significance=significance)))


def _merging(opened: OpenedModel, offer: Offer) -> Iterator[Ready]:
    budgets = _Budgets(opened)
    if not offer.videos and (lowest := budgets.lowest()) is not None:
        yield Ready(
            "Merge what is alike, guard what matters (guarded)",
            "Patches that look alike become one; those that the model attends to are spared. Loses least of all.",
            budgets.recipe,
            replace(WORK, low=lowest, value=max(WORK.value, lowest)),
        )
    host = opened.fast.host
    like = next(opened.dense.parameters())
    (grid,) = opened.fast.sizes(like.new_zeros(1, *opened.input_spec))
    patches, depth = prod(grid), len(host.blocks)

    def merged(value: float) -> Recipe:
        """ToMe that leaves this share of the patches after the last block."""
        return Recipe.of(even_tome(round((1 - value) * patches), depth))

    yield Ready(
        "Merge what is alike (tome)",
        "In every block the patches that are most alike become one.",
        merged,
        replace(KEEP, low=0.2),
    )
    if host.class_token:
        yield Ready(
            "Keep what the model attends to (evit)",
            "Three times on its way the model keeps the patches that it attends to most.",
            lambda value: Recipe.of(EViT(keep=round(value ** (1 / 3), 3))),
        )


class _Budgets:
    """Guarded merging scaled to a share of the model's MACs, which are counted at first use."""

    def __init__(self, opened: OpenedModel) -> None:
        self.opened = opened

    @cached_property
    def dense(self) -> Fit:
        return budget_of(self.opened.dense, self.opened.input_spec, 1.0)

    def lowest(self) -> float | None:
        """The smallest share on the dial that merging can reach; None if it reaches none."""
        steps = round((WORK.high - WORK.low) / WORK.step)
        for share in (round(WORK.low + step * WORK.step, 4) for step in range(steps)):
            with suppress(SieveError):
                self.recipe(share)
                return share
        return None

    def recipe(self, share: float) -> Recipe:
        family = Scheduled("guarded")
        return family.recipe({}, family.variants()[0], replace(self.dense, target=self.dense.target * share))

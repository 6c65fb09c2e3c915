"""Preset recipes for a model, each with one number that a slider sets."""

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
from .copied import without_folders
from .models import ModelEntry


@dataclass(frozen=True)
class Slider:
    """Settings of the slider: label, meaning, range, default and step."""

    label: str
    meaning: str
    low: float
    high: float
    value: float
    step: float = 0.05


KEEP = Slider("Keep", "Share of the patches that the model goes on reading.", 0.1, 1.0, 0.5)
COMPUTE = Slider("Compute to keep", "Share of the model's multiply-accumulates.", 0.35, 0.95, 0.65)
CONFIDENCE = Slider("Confidence", "A patch leaves as soon as the model is surer of it than this.", 0.5, 1.0, 0.95, 0.01)
MOTION = Slider("Threshold", "A patch is left out where it changes less than this between frames.", 0.0, 1.0, 0.1)


@dataclass(frozen=True)
class Preset:
    """A recipe to choose: its name, its description, and the recipe for each value of the slider; `slider` is None
    where nothing can be set."""

    name: str
    about: str
    build: Callable[[float], Recipe]
    slider: Slider | None = KEEP

    def recipe(self, value: float | None = None) -> Recipe:
        """The recipe with the slider at `value`, clipped to its range, or at its default."""
        if self.slider is None:
            return self.build(1.0)
        value = self.slider.value if value is None else min(max(value, self.slider.low), self.slider.high)
        return self.build(round(value, 4))


def presets_for(opened: OpenedModel, entry: ModelEntry) -> dict[str, Preset]:
    """The recipes that the model accepts, by name: the one that the page was started with, then the best known."""
    return {preset.name: preset for preset in _candidates(opened, entry) if _accepts(opened, preset, entry)}


def _accepts(opened: OpenedModel, preset: Preset, entry: ModelEntry) -> bool:
    if entry.recipe is not None and preset.name == STARTING_RECIPE:
        return True  # it was checked when the page was started
    try:
        sieve(opened.dense, preset.recipe(), mean=opened.preprocessing.mean, std=opened.preprocessing.std)
    except SieveError:
        return False
    return True


STARTING_RECIPE = "The recipe this page was started with"


def _candidates(opened: OpenedModel, entry: ModelEntry) -> Iterator[Preset]:
    host, given = opened.fast.host, entry.recipe
    staged = opened.fast.units == "pixels"
    what = "pixels" if staged else "patches"
    if given is not None:
        yield _starting_preset(given)
    if getattr(host, "exits", ()) and len(host.exits) > 1:
        yield Preset(
            "Early exits: patches leave when the model is sure (dtop)",
            "Easy patches leave the model at its first or second head; hard ones go on to the last.",
            lambda value: Recipe.parse(f"dtop(threshold={value:g})"),
            CONFIDENCE,
        )
    if entry.videos:
        yield _papr("Keep what moves (papr, motion)", "Patches that change from frame to frame are kept.", "motion")
    if entry.proposal is not None:
        yield Preset(
            f"Keep what matters (papr, ranked by {entry.proposal})",
            f"A tiny network looks first and ranks the {what}; the model reads the top ones.",
            lambda value: Recipe.of(PaPr(keep=value, proposal=entry.proposal)),
        )
    if not staged:
        yield from _merging(opened, entry)
    if entry.videos:
        yield Preset(
            "Leave out what stands still (rlt)",
            "A patch that looks as it did a moment ago is left out; how many are read depends on the clip.",
            lambda value: Recipe.parse(f"rlt(threshold={value:g})"),
            MOTION,
        )
    yield _papr("Keep the middle (control)", f"The {what} nearest the middle are kept, whatever they show.", "centre")
    yield _papr("Keep at random (control)", f"As many {what}, drawn at random: what choosing is worth.", "random")


def _starting_preset(recipe: Recipe) -> Preset:
    """The given recipe; the slider sets its keep ratio, where that is one number."""
    about = f"{without_folders(recipe)}"
    try:
        keep = ranking(recipe).keep
    except SieveError:
        return Preset(STARTING_RECIPE, about, lambda _: recipe, None)
    if isinstance(keep, tuple):
        return Preset(STARTING_RECIPE, about, lambda _: recipe, None)
    slider = replace(KEEP, value=keep, low=min(KEEP.low, keep), step=0.05 if round(20 * keep, 6).is_integer() else 0.01)
    return Preset(STARTING_RECIPE, about, lambda value: varied(recipe, keep=value), slider)


def _papr(name: str, about: str, significance: str) -> Preset:
    return Preset(name, about, lambda value: Recipe.of(PaPr(keep=value, significance=significance)))


def _merging(opened: OpenedModel, entry: ModelEntry) -> Iterator[Preset]:
    budgets = _Budgets(opened)
    if not entry.videos and (lowest := budgets.lowest()) is not None:
        yield Preset(
            "Merge what is alike, guard what matters (guarded)",
            "Patches that look alike become one; those that the model attends to are spared. Loses least of all.",
            budgets.recipe,
            replace(COMPUTE, low=lowest, value=max(COMPUTE.value, lowest)),
        )
    host = opened.fast.host
    like = next(opened.dense.parameters())
    (grid,) = opened.fast.sizes(like.new_zeros(1, *opened.input_spec))
    patches, depth = prod(grid), len(host.blocks)

    def merged(value: float) -> Recipe:
        """ToMe that leaves this share of the patches after the last block."""
        return Recipe.of(even_tome(round((1 - value) * patches), depth))

    yield Preset(
        "Merge what is alike (tome)",
        "In every block the patches that are most alike become one.",
        merged,
        replace(KEEP, low=0.2),
    )
    if host.class_token:
        yield Preset(
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
        """The smallest share on the slider that merging can reach; None if it reaches none."""
        steps = round((COMPUTE.high - COMPUTE.low) / COMPUTE.step)
        for share in (round(COMPUTE.low + step * COMPUTE.step, 4) for step in range(steps)):
            with suppress(SieveError):
                self.recipe(share)
                return share
        return None

    def recipe(self, share: float) -> Recipe:
        family = Scheduled("guarded")
        return family.recipe({}, family.variants()[0], replace(self.dense, target=self.dense.target * share))

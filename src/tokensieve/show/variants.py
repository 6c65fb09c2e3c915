"""Variants of one recipe on one host, which differ in keep ratio, proposal network or significance map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError, RecipeError, nearest
from ..methods import PaPr
from ..methods.papr import SIGNIFICANCES
from ..recipe import Recipe
from ..stream import Sieved, Trace, sieve
from .explain import Verdict, compare_answers, dense_output, traced

MAPS = {"papr": "mean", **{name: name for name in SIGNIFICANCES if name != "mean" and "motion" not in name}}
"""Maps that `--compare` takes, each with its `significance` setting; `papr` is the published one, the mean over the
channels of the proposal's features. Maps of motion need clips and are left out."""
Key = TypeVar("Key", str, tuple[str, float])


def ranking(recipe: Recipe) -> PaPr:
    """The `papr` of a recipe, which keeps patches by a significance map. Raises `RecipeError` if there is none."""
    for method in recipe:
        if isinstance(method, PaPr):
            return method
    raise RecipeError(f'"{recipe}" keeps no patches by a significance map: add papr, for example papr(keep=0.5).')


def needs_proposal(recipe: Recipe) -> bool:
    """Whether a recipe computes its significance map with a proposal network."""
    return any(isinstance(method, PaPr) and method.needs_proposal for method in recipe)


def varied(recipe: Recipe, **settings: Any) -> Recipe:
    """The recipe with other settings for its `papr`."""
    papr = ranking(recipe)
    return replace(recipe, methods=tuple(replace(m, **settings) if m is papr else m for m in recipe))


def choose(
    recipe: Recipe,
    *,
    keeps: Sequence[float] = (),
    proposals: Sequence[str] = (),
    maps: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
) -> dict[str, Recipe]:
    """The recipes to show, by the name of their proposal or map; if no option is given, the recipe itself under "".

    Args:
        recipe: the recipe to vary.
        keeps: keep ratios to show. The recipes have the smallest, so that a map is computed (at 1 there is none);
            `with_keeps` then gives one variant for each ratio.
        proposals: names of proposal networks. The recipe's settings for its own proposal (layer, weights, constructor
            arguments) apply to that one alone.
        maps: names in `MAPS`, all computed from the recipe's own proposal.
        files: weights file of each proposal by its name; that of "" is for all without their own.

    Raises:
        RecipeError: the recipe has no `papr`, or no proposal to vary; an unknown map.
        InputError: weights for a proposal that is not used.
    """
    files = files or {}
    if not (keeps or proposals or maps or files):
        return {"": recipe}
    if keeps:
        recipe = varied(recipe, keep=min(keeps))
    recipes = _by_proposal(recipe, proposals, files)
    if not maps:
        return recipes
    (recipe,) = recipes.values()  # the command line refuses maps beside several proposals
    if not ranking(recipe).ranks:
        raise RecipeError("--compare needs a keep ratio below 1: at 1 no patch is dropped and all maps are equal.")
    for name in maps:
        if name not in MAPS:
            raise RecipeError(f"There is no map {name!r}{nearest(name, MAPS)}. Known: {', '.join(MAPS)}.")
    return {name: varied(recipe, significance=MAPS[name]) for name in maps}


def _by_proposal(recipe: Recipe, names: Sequence[str], files: Mapping[str, str]) -> dict[str, Recipe]:
    papr, has_proposal = ranking(recipe), needs_proposal(recipe)
    if (names or files) and not has_proposal:
        raise RecipeError(f'"{recipe}" has no proposal: leave --proposals and --proposal-weights out.')
    names = names or [papr.proposal if has_proposal else papr.significance]
    for name in files:
        if name and name not in names:
            raise InputError(f"--proposal-weights {name}=... names a proposal that is not used{nearest(name, names)}.")
    recipes = {}
    for name in names:
        settings: dict[str, Any] = {}
        if has_proposal and name != papr.proposal:
            settings = {"proposal": name, "layer": None, "proposal_args": None}
            settings |= {"proposal_weights": None, "proposal_sha256": None}
        file = files.get(name, files.get(""))
        if file is not None:
            settings |= {"proposal_weights": file, "proposal_sha256": None}
        recipes[name] = varied(recipe, **settings)
    return recipes


def open_variants(
    dense: nn.Module,
    recipes: Mapping[str, Recipe],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    pretrained: bool = True,
) -> dict[str, Sieved]:
    """A sieved model for each recipe, all of one host. A proposal with random weights has the same weights in each."""
    device = next(dense.parameters()).device
    fasts: dict[str, Sieved] = {}
    for name, recipe in recipes.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fasts[name] = sieve(dense, recipe, mean=mean, std=std, pretrained=pretrained).to(device)
    return fasts


def with_keeps(fasts: Mapping[str, Sieved], keeps: Sequence[Any]) -> dict[tuple[str, Any], Sieved]:
    """A sieved model for each variant and keep ratio, by default its own; they share host and proposal network."""
    by_name_and_keep: dict[tuple[str, Any], Sieved] = {}
    for name, fast in fasts.items():
        for keep in keeps or [ranking(fast.recipe).keep]:
            recipe, stream_class = varied(fast.recipe, keep=keep), type(fast.stream)
            significance = fast.significance if ranking(recipe).ranks else None
            stream = stream_class(fast.host, stream_class.planned(fast.host, recipe), significance, fast.parts)
            by_name_and_keep[name, keep] = Sieved(stream, recipe)
    return by_name_and_keep


class Variants(Generic[Key]):
    """Runs sieved variants of one host on pictures, one by one, and collects their predictions."""

    def __init__(self, fasts: Mapping[Key, Sieved], dense: nn.Module, classes: Sequence[str] | None) -> None:
        self.fasts: Mapping[Key, Sieved] = fasts
        self.dense, self.classes = dense, classes
        self.verdicts: dict[Key, list[Verdict]] = {key: [] for key in fasts}

    def run(self, image: Tensor) -> dict[Key, tuple[Trace, Verdict | None]]:
        """Run every variant on an image (3, H, W): its trace, and its prediction compared with the dense one."""
        _, probabilities = dense_output(self.dense, image[None])
        results = {}
        for key, fast in self.fasts.items():
            trace = traced(fast, image[None])
            (verdict,) = compare_answers(probabilities, trace.output, self.classes)
            if verdict is not None:
                self.verdicts[key].append(verdict)
            results[key] = trace, verdict
        return results

    def summary(self, key: Key) -> dict[str, float | None]:
        """Over all pictures so far: the share of equal predictions, and the mean probability of the dense class."""
        verdicts = self.verdicts[key]
        return {
            "answers_kept": fmean(verdict.same for verdict in verdicts) if verdicts else None,
            "confidence": fmean(verdict.confidence for verdict in verdicts) if verdicts else None,
        }

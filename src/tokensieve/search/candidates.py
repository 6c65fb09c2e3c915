"""Selects the families of recipes and the proposals for a search, as requested and as the host allows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import InputError, RecipeError, SieveError, UnsupportedHost, nearest
from ..methods import DToP, PaPr
from ..recipe import Recipe
from ..stream import sieve
from .evaluator import Evaluator
from .exit_families import exit_families
from .families import ADAPTIVE, CONTROLS, EXITS, Family, Scheduled, family_names, ranked_by
from .families import families as families_of
from .fit import Fit
from .stages import NAMES, stage_families

MAPS = ("motion",)
"""Maps without a network that may be named among proposals: for videos, the change of each patch over time."""


def names_of(requested: Sequence[str] | None, model: nn.Module, staged: bool) -> list[str] | None:
    """The requested names of families, checked; None if none were requested.

    Raises:
        UnsupportedHost: a family does not fit the host.
        RecipeError: a name is unknown, or the list is empty.
    """
    if requested is None:
        return None
    allowed, other_names = (list(NAMES), family_names()) if staged else (family_names(), list(NAMES))
    for name in [requested] if isinstance(requested, str) else requested:
        if name in other_names and name not in allowed:
            kind = "has stages, whose maps keep their size" if staged else "has no stages"
            raise UnsupportedHost(
                f"{type(model).__name__} cannot be tuned by {name}: it {kind}. Families for it: {', '.join(allowed)}."
            )
        if name in EXITS:
            sieve(model, DToP())  # raises if the model has no exits
        if name not in allowed:
            raise RecipeError(f"There is no family {name!r}{nearest(name, allowed)}. Known: {', '.join(allowed)}.")
    if ADAPTIVE in requested and "scheduled-guarded" not in requested:
        raise RecipeError(f"{ADAPTIVE} is derived from the best of scheduled-guarded: name that as well.")
    if not requested:
        raise RecipeError(f"families is empty: name some of {', '.join(allowed)}.")
    return [requested] if isinstance(requested, str) else list(requested)


def proposals_of(requested: str | Sequence[str] | Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """`papr` settings for each proposal, or for each map without a network."""
    if isinstance(requested, str):
        requested = (requested,)
    files = dict(requested) if isinstance(requested, Mapping) else dict.fromkeys(requested or ())
    for name, file in files.items():
        if not isinstance(name, str):
            raise RecipeError(f"A proposal is the name of a model, not {type(name).__name__}: recipe files hold names.")
        if file is not None and name in MAPS:
            raise InputError(f"{name} uses no network, so it cannot have weights ({os.fspath(file)}).")
        if file is not None and not Path(file).is_file():
            raise InputError(f"There is no weights file {os.fspath(file)} for the proposal {name}.")
    return [
        {"significance": name}
        if name in MAPS
        else {"proposal": name, **({} if file is None else {"proposal_weights": os.fspath(file)})}
        for name, file in files.items()
    ]


def families_for(
    names: list[str] | None,
    staged: bool,
    proposals: list[dict[str, Any]],
    evaluator: Evaluator,
    mild: Fit,
    left_out: dict[str, str],
) -> list[Family]:
    """The families that the host supports. For others, an error is raised if they were requested; else the reason is
    added to `left_out`."""
    usable = []
    for settings in proposals:
        try:
            evaluator.check_map(PaPr(keep=0.5, **settings))
            usable.append(settings)
        except (SieveError, RuntimeError) as error:
            left_out[ranked_by(settings)] = " ".join(str(error).split())
    make_families, all_names = (stage_families, NAMES) if staged else (families_of, family_names())
    exits = () if staged else evaluator.empty.host.exits
    chosen_names = names or [name for name in all_names if name not in (*CONTROLS, *(EXITS if len(exits) < 2 else ()))]
    families: list[Family] = []
    for family in [
        *make_families([name for name in chosen_names if name not in EXITS], usable),
        *exit_families(chosen_names, exits),
    ]:
        scheduled = isinstance(family, Scheduled) and any(isinstance(other, Scheduled) for other in families)
        if names is None and scheduled and family.name != "scheduled-guarded":
            continue  # the weaker of the two is used only if requested, or if the host does not support the stronger
        reason: SieveError | None = None
        if family.name in EXITS:  # the budgets that they reach depend on the images
            reason = refusal(evaluator, Recipe.of(DToP()))
        elif family.proposal is None:
            try:
                reason = refusal(evaluator, family.recipe({}, family.variants()[0], mild))
            except RecipeError as error:
                reason = error
        elif family.name in left_out:
            continue
        if reason is None:
            families.append(family)
        elif names is not None:
            raise reason
        else:
            left_out[family.name] = str(reason)
    if not families:
        reasons = "; ".join(text.rstrip(".") for text in left_out.values())
        raise InputError(f"There is nothing to search: {reasons or 'papr needs a proposal'}.")
    return families


def refusal(evaluator: Evaluator, recipe: Recipe) -> SieveError | None:
    """The error of sieving the model with a recipe; None if it works."""
    try:
        evaluator.sieved(recipe)
    except SieveError as error:
        return error
    return None

"""Assembles the front of a search: its points, the recommended one, and its correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, SieveError, UnsupportedHost
from ..methods import Adaptive, Corrected
from ..recipe import Recipe
from ..stream import sieve
from .bars import mean_macs
from .correction import LEAST, correct
from .evaluator import Evaluator, Figures
from .exit_costs import ExitCosts
from .families import ranked_by
from .front import Front, Point, mark_dominated
from .timing import with_speed

if TYPE_CHECKING:
    from .budget_search import Search

FINALISTS = 10
"""Maximum number of further recipes that are reported at the budget of the recommended one."""


def assemble_front(
    search: Search,
    target: dict[str, float],
    include_proposal: bool,
    left_out: dict[str, str],
    settings: dict[str, Any],
    stopped: str | None,
    with_heldout: bool,
) -> Front:
    """The front of a search, evaluated on the held-out images too if `with_heldout`."""
    evaluator = search.evaluator
    points = mark_dominated(points_of(search, include_proposal, with_heldout))
    if not points:
        reason = search.failures[0].reason if search.failures else "the timeout ended before the first; allow more time"
        raise InputError(f"No recipe could be evaluated: {reason.rstrip('.')}.")
    if "time" in target:
        points = with_speed(evaluator, points, points)
    eligible = [point for point in points if search.recommends_adapted or not point.varies]
    best, reached = choose(eligible, target)
    at_budget = [
        (trial.figures.value, study, trial) for study in search.studies[best.budget] for trial in study.top(FINALISTS)
    ]
    finalists = [
        point_of(search, study, trial, include_proposal, with_heldout)
        for _, study, trial in sorted(at_budget, key=lambda entry: entry[0])[:FINALISTS]
    ]
    return Front(
        points=tuple(points),
        best=best,
        wanted=target,
        reached=reached,
        objective=evaluator.kind.divergence_name,
        dense_macs=search.fit(1.0).costs.dense,
        dense_accuracy=dict(evaluator.dense_accuracy.items()),
        finalists=tuple(finalists),
        trials=search.trials,
        stopped=stopped,
        failures=tuple(search.failures),
        left_out=dict(left_out),
        settings=settings,
    )


def points_of(search: Search, include_proposal: bool, with_heldout: bool = True) -> list[Point]:
    """The best recipe of each study, evaluated on the held-out images too if `with_heldout`."""
    points = [
        point_of(search, study, trial, include_proposal, with_heldout)
        for studies in search.studies.values()
        for study in studies
        if (trial := study.best()) is not None
    ]
    return points + [
        adapted_point(search, ratio, trial.recipe, with_heldout)
        for ratio, study in search.adapted.items()
        if (trial := study.best()) is not None  # None: it merges too little to need thresholds
    ]


def adapted_point(search: Search, ratio: float, recipe: Recipe, with_heldout: bool) -> Point:
    """The point of a recipe whose number of tokens varies between images, with its mean MACs."""
    evaluator, costs = search.evaluator, search.fit(ratio).costs
    heldout = with_heldout and len(evaluator.parts["heldout"]) > 0
    cost = mean_macs(evaluator, costs, recipe)
    return Point(
        recipe=recipe,
        family=Adaptive.name,
        proposal=None,
        kind="searched",
        budget=ratio,
        macs=cost,
        ratio=costs.dense / cost,
        search=evaluator.recalled(recipe, "search"),
        heldout=evaluator.recalled(recipe, "heldout") if heldout else None,
        heldout_macs=mean_macs(evaluator, costs, recipe, "heldout") if heldout else None,
    )


def point_of(search: Search, study: Any, trial: Any, include_proposal: bool, with_heldout: bool) -> Point:
    """The point of a trial, with its MACs and figures."""
    evaluator, family = search.evaluator, study.family
    figures = evaluator.recalled(trial.recipe, "heldout") if with_heldout and len(evaluator.parts["heldout"]) else None
    costs, varies = study.fit.costs, isinstance(study.fit.costs, ExitCosts) and study.fit.costs.varies(trial.recipe)
    cost = costs.mean(trial.recipe) if varies else evaluator.macs(trial.recipe, include_proposal)
    return Point(
        recipe=trial.recipe,
        family=family.name,
        proposal=None if family.proposal is None else ranked_by(family.proposal),
        kind="searched" if family.searched else "single",
        budget=study.ratio,
        macs=cost,
        ratio=costs.dense / cost,
        search=trial.figures,
        heldout=figures,
        heldout_macs=costs.mean(trial.recipe, "heldout") if varies and figures is not None else None,
    )


def choose(points: Sequence[Point], target: Mapping[str, float]) -> tuple[Point, bool]:
    """The recommended point, and whether it meets the target; if none does, the closest one."""
    ((kind, value),) = target.items()
    if kind == "divergence":
        valid = [point for point in points if point.divergence <= value]
        if valid:
            return max(valid, key=lambda point: (point.ratio, -point.divergence)), True
        return min(points, key=lambda point: point.divergence), False

    def saving(point: Point) -> float:
        return point.ratio if kind == "macs" else 0.0 if point.speed is None else point.speed.ratio

    valid = [point for point in points if saving(point) >= value * (1 - 1e-9)]
    if valid:
        return min(valid, key=lambda point: point.divergence), True
    return max(points, key=lambda point: (saving(point), point.ratio)), False


def cannot_correct(evaluator: Evaluator) -> SieveError | None:
    """Why a recipe cannot be corrected here; None if it can."""
    if len(evaluator.parts["search"]) < LEAST:
        return InputError(f"it needs at least {LEAST} search images.")
    if evaluator.wrapped is not None:
        return UnsupportedHost("it corrects the head's input of a whole model, and here a sub-module is sieved.")
    try:
        sieve(evaluator.model, Corrected(), pretrained=False)
    except SieveError as error:
        return error
    return None


def corrected(front: Front, evaluator: Evaluator, file: Path, include_proposal: bool, seed: int) -> Front:
    """The front with a correction of its recommended recipe; unchanged if no correction helps.

    Its figures on the search images are cross-validated: each image's correction was fitted without that image.
    """
    best = front.best
    assert isinstance(best.recipe, Recipe)  # a cascade is not corrected
    images = evaluator.images[evaluator.parts["search"]]
    try:
        correction = correct(
            evaluator.model, best.recipe, images, file, batch=evaluator.batch, seed=seed, **evaluator.settings
        )
        if correction.ridge is None:
            return front
        cost = evaluator.macs(correction.recipe, include_proposal)
        held_out = evaluator.evaluate(correction.recipe, "heldout") if len(evaluator.parts["heldout"]) else None
    except (SieveError, KeyboardInterrupt) as error:  # return the front without a correction
        return replace(front, left_out={**front.left_out, "correction": str(error) or "it was interrupted"})
    point = replace(
        best, recipe=correction.recipe, kind="corrected", macs=cost, ratio=front.dense_macs / cost, heldout=held_out,
        speed=None, search=Figures(correction.corrected_divergence, correction.corrected_agreement, None,
                                   correction.images, evaluator.kind.name),
    )  # fmt: skip
    (point,) = with_speed(evaluator, [point], [point])
    return replace(front, corrected=point)

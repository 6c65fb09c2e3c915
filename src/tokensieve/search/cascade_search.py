"""The search for the cheapest cascade: its recipes and their thresholds.

These are chosen on the search images; the promise is certified on the held-out images, which the choice has not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cascade_recipe import CascadeRecipe, check_score, check_share
from ..cascades.certifying import certify, lower_bound
from ..errors import InputError, RecipeError, SieveError, UnsupportedHost
from ..recipe import Recipe
from .budget_search import Search
from .cascade_goal import CascadeGoal, agreement_needed, answers, smallest_share_passed_on
from .cascading import shortfall
from .evaluator import Evaluator, Figures, Part
from .families import Scheduled
from .front import Front, Point, mark_dominated
from .results import points_of

SPARES = (1 / 6, 1 / 4, 1 / 3)
"""Shares of the depth that a first member may run without reduction, so that the next member continues from there."""
FIRST = (2.1, 1.75, 2.5)
"""Savings at which a first member is searched."""
BETWEEN = (1.6, 1.4, 1.25)
"""Savings of the middle member of three."""
FINALISTS = 3
"""Number of first members that are combined with others."""
PROMISES = (0.95, 0.97, 0.98, 0.99, 0.995)
"""Agreements for which the front has a cascade, in addition to the requested one."""
GRID = 60
"""Number of thresholds that are tried for each of two members."""
WORTH = 0.01
"""Minimum saving of a third member, as a share of the cost of the best cascade of two."""


def check_classes(evaluator: Evaluator, backbone: str | None, score: str) -> None:
    """Raise `UnsupportedHost` for models without class scores for each image."""
    check_score(score)
    if backbone is not None or evaluator.kind.name != "classes" or evaluator.dense.shape[1] < 2:
        raise UnsupportedHost(
            f"{type(evaluator.model).__name__} gives no class scores for each image, from which a cascade computes the "
            "confidence of a prediction: give another budget than agree."
        )


def search_cascades(search: Search, agree: float, confidence: float, score: str, trials: int) -> None:
    """Search first members by the cost of the cascade they begin; half of the trials are at the first saving."""
    check_share("confidence", confidence)
    evaluator, fit = search.evaluator, search.fit(1.0)
    heldout_count = len(evaluator.parts["heldout"])
    needed = agreement_needed(agree, confidence, heldout_count)
    if needed == 1:  # too few images to certify anything, which `cascade_front` reports
        needed = agree
    last = Recipe.parse("readout()") if fit.readout else Recipe()
    evaluator.goal = CascadeGoal(evaluator, needed, last, fit.costs.dense, score)
    starts = sum(len(family.variants()) for family in search.families)
    search.expected = starts + trials + (len(FIRST) - 1) * (len(search.families) // 2 + 1)
    search.search_budget(FIRST[0], trials // 2)
    for ratio in FIRST[1:]:
        search.search_budget(ratio, trials // 2 // (len(FIRST) - 1), near=FIRST[0])


@dataclass(frozen=True)
class _Chain:
    """Members of a possible cascade, the MACs that each adds, and their outputs on all images of each part."""

    recipes: tuple[Recipe, ...]
    added: tuple[float, ...]
    outputs: Mapping[Part, tuple[Tensor, ...]]


def cascade_front(
    search: Search,
    agree: float,
    confidence: float,
    left_out: dict[str, str],
    settings: dict[str, Any],
    stopped: str | None,
    with_heldout: bool,
) -> Front:
    """The front of a search: single recipes, and the cheapest cascade for each of several promises.

    Cascades need `with_heldout`: a promise is certified only on held-out images.
    """
    evaluator, goal = search.evaluator, search.evaluator.goal
    assert isinstance(goal, CascadeGoal)
    plain = points_of(search, True, with_heldout)
    if not plain:
        reason = search.failures[0].reason if search.failures else "the timeout ended before the first; allow more time"
        raise InputError(f"No recipe could be evaluated: {reason.rstrip('.')}.")
    cascades: dict[float, Point] = {}
    if with_heldout and len(evaluator.parts["heldout"]):
        chains = _chains(search, goal)
        for level in sorted({*PROMISES, agree}):
            point, problem = _promised(chains, goal, level, confidence)
            if problem is None or level == agree:
                cascades[level] = point
            if problem is not None:
                left_out[f"A cascade of {100 * level:g} %"] = problem
    points = mark_dominated([*plain, *cascades.values()])
    valid = [point for point in points if _keeps_promise(point, agree, confidence)]
    best = (
        min(valid, key=_macs, default=None) or cascades.get(agree) or max(plain, key=lambda point: point.agreement or 0)
    )
    best = next(point for point in points if point.recipe == best.recipe)
    return Front(
        points=tuple(points),
        best=best,
        wanted={"agree": agree},
        reached=bool(valid),
        objective=evaluator.kind.divergence_name,
        dense_macs=goal.dense,
        dense_accuracy=dict(evaluator.dense_accuracy.items()),
        finalists=(),
        trials=search.trials,
        stopped=stopped,
        failures=tuple(search.failures),
        left_out=dict(left_out),
        settings=settings,
    )


def _chains(search: Search, goal: CascadeGoal) -> list[_Chain]:
    """The best first members, each followed by the last member; the best one also with a middle member."""
    tried = {
        trial.text: (trial, study)
        for studies in search.studies.values()
        for study in studies
        for trial in study.top(FINALISTS)
    }
    best = sorted(tried.values(), key=lambda pair: pair[0].figures.value)[:FINALISTS]
    outputs_of: dict[str, dict[Part, Tensor]] = {}

    parts: tuple[Part, ...] = ("search", "heldout")

    def chain(*recipes: Recipe) -> _Chain:
        for recipe in recipes:
            if str(recipe) not in outputs_of:
                outputs_of[str(recipe)] = {part: goal.evaluator.outputs(recipe, part) for part in parts}
        outputs = {part: tuple(outputs_of[str(recipe)][part] for recipe in recipes) for part in parts}
        return _Chain(tuple(recipes), goal.added(recipes), outputs)

    chains = [chain(trial.recipe, goal.last) for trial, _ in best]
    trial, study = best[0]
    if isinstance(study.family, Scheduled):
        for ratio in BETWEEN:
            try:
                middle = study.family.recipe(trial.params, study.family.variants()[trial.variant], search.fit(ratio))
                chains.append(chain(trial.recipe, middle, goal.last))
            except (RecipeError, SieveError):  # the family cannot save so little
                continue
    return chains


def _promised(chains: Sequence[_Chain], goal: CascadeGoal, agree: float, confidence: float) -> tuple[Point, str | None]:
    """The cheapest cascade for a promise on the search images, with thresholds certified on the held-out ones; and the
    reason why no threshold could be certified, or None."""
    evaluator = goal.evaluator
    needed = agreement_needed(agree, confidence, len(evaluator.parts["heldout"]))
    needed = agree if needed == 1 else needed
    costs = [_cheapest(chain, goal, needed) for chain in chains]
    two = min(cost for (cost, _), chain in zip(costs, chains, strict=True) if len(chain.recipes) == 2)
    totals = [
        (cost if len(chain.recipes) == 2 else cost + WORTH * two, index)
        for index, ((cost, _), chain) in enumerate(zip(costs, chains, strict=True))
    ]
    index = min(totals)[1]
    chosen, towards = chains[index], costs[index][1]
    scores, same = _scores_and_agreement(chosen, goal, "heldout")
    inside = None if len(towards) == 1 else tuple(min(max(threshold, 0.01), 0.99) for threshold in towards)
    certificate = certify(scores, same, agree, confidence, inside)
    promise: dict[str, Any] = (
        {"agree": agree, "confidence": confidence} if certificate.certified or bool(same[-1].all()) else {}
    )
    recipe = CascadeRecipe(
        chosen.recipes,
        certificate.thresholds,
        goal.score,
        images=certificate.images,
        shares=certificate.shares,
        **promise,
    )
    figures: dict[Part, Figures] = {}
    macs: dict[Part, float] = {}
    parts: tuple[Part, ...] = ("search", "heldout")
    for part in parts:
        rows, shares = _routed(chosen, goal, part, certificate.thresholds)
        figures[part] = evaluator.figures_of(rows, part)
        macs[part] = sum(share * cost for share, cost in zip(shares, chosen.added, strict=True))
    active = [cost for cost, threshold in zip(chosen.added, (*certificate.thresholds, 0), strict=True) if threshold < 1]
    if len(active) == 1:  # the remaining member shares nothing
        macs = dict.fromkeys(parts, goal.added(recipe.recipes[-1:] * 2)[0])
    point = Point(
        recipe=recipe,
        family="cascade" if len(chosen.recipes) == 2 else "cascade of three",
        proposal=None,
        kind="cascade",
        budget=agree,
        macs=macs["search"],
        ratio=goal.dense / macs["search"],
        search=figures["search"],
        heldout=figures["heldout"],
        heldout_macs=macs["heldout"],
    )
    return point, shortfall(certificate, agree, confidence)


def _scores_and_agreement(
    chain: _Chain, goal: CascadeGoal, part: Part
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores (M - 1, N) and agreement (M, N) of the members, as `certify` takes them."""
    dense = goal.evaluator.dense[goal.evaluator.parts[part]]
    pairs = [answers(outputs, dense, goal.score) for outputs in chain.outputs[part]]
    return np.stack([scores for scores, _ in pairs[:-1]]), np.stack([same for _, same in pairs])


def _routed(
    chain: _Chain, goal: CascadeGoal, part: Part, thresholds: Sequence[float]
) -> tuple[Tensor, tuple[float, ...]]:
    """The cascade's outputs (N, K), and the share of the images that reaches each member."""
    scores, _ = _scores_and_agreement(chain, goal, part)
    outputs = chain.outputs[part][-1].clone()
    pending, shares = torch.ones(len(outputs), dtype=torch.bool), []
    for threshold, sure, output in zip(thresholds, scores, chain.outputs[part][:-1], strict=True):
        shares.append(float(pending.double().mean()) if threshold < 1 else 0.0)
        accepted = pending & torch.from_numpy(sure >= threshold) & (threshold < 1)
        outputs[accepted] = output[accepted]
        pending = pending & ~accepted
    return outputs, (*shares, float(pending.double().mean()))


def _cheapest(chain: _Chain, goal: CascadeGoal, needed: float) -> tuple[float, tuple[float, ...]]:
    """The smallest MACs at which a share `needed` of the search images agrees, and the thresholds for it."""
    scores, same = _scores_and_agreement(chain, goal, "search")
    if len(chain.recipes) == 2:
        share, threshold = smallest_share_passed_on(scores[0], same[0], needed)
        return chain.added[0] + share * chain.added[1], (threshold,)
    count, best = scores.shape[1], (float("inf"), (1.0, 1.0))
    grids = [np.quantile(member_scores, np.linspace(0, 1, GRID)) for member_scores in scores]
    for first in grids[0]:
        accepted = scores[0] >= first
        agreeing, passed_on = int(same[0][accepted].sum()), ~accepted
        for second in grids[1]:
            accepted_second = passed_on & (scores[1] >= second)
            rest = passed_on & ~accepted_second
            if agreeing + same[1][accepted_second].sum() + same[2][rest].sum() < needed * count - 1e-9:
                continue
            cost = chain.added[0] + passed_on.mean() * chain.added[1] + rest.mean() * chain.added[2]
            if cost < best[0]:
                best = (float(cost), (float(first), float(second)))
    return best


def _keeps_promise(point: Point, agree: float, confidence: float) -> bool:
    """Whether the held-out images certify the promise for a point."""
    if isinstance(point.recipe, CascadeRecipe):
        saves = any(threshold < 1 for threshold in point.recipe.thresholds)  # else every image goes to the dense model
        return saves and point.recipe.agree is not None and point.recipe.agree >= agree
    if point.heldout is None or point.heldout.agreement is None:
        return False
    count = point.heldout.images
    return lower_bound(round(point.heldout.agreement * count / 100), count, confidence) >= agree


def _macs(point: Point) -> float:
    return point.macs if point.heldout_macs is None else point.heldout_macs

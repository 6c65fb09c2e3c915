"""The search for cascades: which recipe reads first, which in between, and at which thresholds it costs least.

On the search images; the promise is certified on the held-out ones alone, which the choice has not seen.
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
from .cascade_goal import CascadeGoal, agreement_needed, answers, least_again
from .cascading import shortfall
from .evaluator import Evaluator, Figures, Part
from .families import Scheduled
from .front import Front, Point, mark_dominated
from .results import points_of

SPARES = (1 / 6, 1 / 4, 1 / 3)
"""Shares of the depth that a first reading may leave alone, so that the next goes on from there."""
FIRST = (2.1, 1.75, 2.5)
"""Savings that a first reading is searched at, by itself."""
BETWEEN = (1.6, 1.4, 1.25)
"""Savings of readings in between, of three."""
FINALISTS = 3
"""First readings that are put together with others."""
PROMISES = (0.95, 0.97, 0.98, 0.99, 0.995)
"""Agreements for which the front has a cascade each, beside the wanted one."""
GRID = 60
"""Thresholds that are tried for each of two readings."""
WORTH = 0.01
"""How much less a third reading must cost to be worth having."""


def check_classes(evaluator: Evaluator, backbone: str | None, score: str) -> None:
    """Refuse models of which no answer is sure or not."""
    check_score(score)
    if backbone is not None or evaluator.kind.name != "classes" or evaluator.dense.shape[1] < 2:
        raise UnsupportedHost(
            f"{type(evaluator.model).__name__} gives no scores of classes for each image, by which a cascade tells how "
            "sure an answer is: give another budget than agree."
        )


def search_cascades(search: Search, agree: float, confidence: float, score: str, trials: int) -> None:
    """First readings by what a cascade costs that begins with them: half of the trials at the first saving."""
    check_share("confidence", confidence)
    evaluator, fit = search.evaluator, search.fit(1.0)
    held = len(evaluator.parts["heldout"])
    needed = agreement_needed(agree, confidence, held)
    if needed == 1:  # nothing can be certified; it is said when it was tried
        needed = agree
    last = Recipe.parse("readout()") if fit.readout else Recipe()
    evaluator.goal = CascadeGoal(evaluator, needed, last, fit.costs.dense, score)
    starts = sum(len(family.variants()) for family in search.families)
    search.expected = starts + trials + (len(FIRST) - 1) * (len(search.families) // 2 + 1)
    search.at(FIRST[0], trials // 2)
    for ratio in FIRST[1:]:
        search.at(ratio, trials // 2 // (len(FIRST) - 1), near=FIRST[0])


@dataclass(frozen=True)
class _Chain:
    """Readings, what each adds in MACs, and what they answered to all images of each part."""

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
    held: bool,
) -> Front:
    """All that a search found: plain recipes, and the cheapest cascade for each of several promises.

    Without `held` the cascades stay away: what promises is certified on held-out images alone.
    """
    evaluator, goal = search.evaluator, search.evaluator.goal
    assert isinstance(goal, CascadeGoal)
    plain = points_of(search, True, held)
    if not plain:
        why = search.failures[0].reason if search.failures else "the time was over before the first one; allow more"
        raise InputError(f"No recipe could be judged: {why.rstrip('.')}.")
    found: dict[float, Point] = {}
    if held and len(evaluator.parts["heldout"]):
        chains = _chains(search, goal)
        for level in sorted({*PROMISES, agree}):
            point, lacking = _promised(chains, goal, level, confidence)
            if lacking is None or level == agree:
                found[level] = point
            if lacking is not None:
                left_out[f"a cascade of {100 * level:g} %"] = lacking
    points = mark_dominated([*plain, *found.values()])
    kept = [point for point in points if _keeps(point, agree, confidence)]
    best = min(kept, key=_macs, default=None) or found.get(agree) or max(plain, key=lambda point: point.agreement or 0)
    best = next(point for point in points if point.recipe == best.recipe)
    return Front(
        points=tuple(points),
        best=best,
        wanted={"agree": agree},
        reached=bool(kept),
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
    """The best first readings with the last, and with milder ones of their family in between."""
    tried = {
        each.text: (each, study)
        for studies in search.studies.values()
        for study in studies
        for each in study.top(FINALISTS)
    }
    best = sorted(tried.values(), key=lambda pair: pair[0].figures.value)[:FINALISTS]
    answered: dict[str, dict[Part, Tensor]] = {}

    parts: tuple[Part, ...] = ("search", "heldout")

    def chain(*recipes: Recipe) -> _Chain:
        for recipe in recipes:
            if str(recipe) not in answered:
                answered[str(recipe)] = {part: goal.evaluator.outputs(recipe, part) for part in parts}
        outputs = {part: tuple(answered[str(recipe)][part] for recipe in recipes) for part in parts}
        return _Chain(tuple(recipes), goal.added(recipes), outputs)

    chains = [chain(each.recipe, goal.last) for each, _ in best]
    each, study = best[0]
    if isinstance(study.family, Scheduled):
        for ratio in BETWEEN:
            try:
                mild = study.family.recipe(each.params, study.family.variants()[each.variant], search.fit(ratio))
                chains.append(chain(each.recipe, mild, goal.last))
            except (RecipeError, SieveError):  # the family has none of this saving
                continue
    return chains


def _promised(chains: Sequence[_Chain], goal: CascadeGoal, agree: float, confidence: float) -> tuple[Point, str | None]:
    """The cheapest cascade of a promise, by the search images, its thresholds certified on the held-out ones; and why
    it keeps no promise but by reading everything again, if that is so."""
    evaluator = goal.evaluator
    needed = agreement_needed(agree, confidence, len(evaluator.parts["heldout"]))
    needed = agree if needed == 1 else needed
    costs = [_cheapest(each, goal, needed) for each in chains]
    two = min(cost for (cost, _), each in zip(costs, chains, strict=True) if len(each.recipes) == 2)
    worth = [
        (cost if len(each.recipes) == 2 else cost + WORTH * two, place)
        for place, ((cost, _), each) in enumerate(zip(costs, chains, strict=True))
    ]
    place = min(worth)[1]
    chosen, towards = chains[place], costs[place][1]
    scores, same = _told(chosen, goal, "heldout")
    inside = None if len(towards) == 1 else tuple(min(max(each, 0.01), 0.99) for each in towards)
    found = certify(scores, same, agree, confidence, inside)
    promise: dict[str, Any] = (
        {"agree": agree, "confidence": confidence} if found.certified or bool(same[-1].all()) else {}
    )
    recipe = CascadeRecipe(
        chosen.recipes, found.thresholds, goal.score, images=found.images, shares=found.shares, **promise
    )
    figures: dict[Part, Figures] = {}
    macs: dict[Part, float] = {}
    parts: tuple[Part, ...] = ("search", "heldout")
    for part in parts:
        rows, shares = _routed(chosen, goal, part, found.thresholds)
        figures[part] = evaluator.figures_of(rows, part)
        macs[part] = sum(share * cost for share, cost in zip(shares, chosen.added, strict=True))
    active = [cost for cost, threshold in zip(chosen.added, (*found.thresholds, 0), strict=True) if threshold < 1]
    if len(active) == 1:  # nothing is shared with readings that are left out
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
    return point, shortfall(found, agree, confidence)


def _told(chain: _Chain, goal: CascadeGoal, part: Part) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """What `certify` takes."""
    dense = goal.evaluator.dense[goal.evaluator.parts[part]]
    pairs = [answers(each, dense, goal.score) for each in chain.outputs[part]]
    return np.stack([scores for scores, _ in pairs[:-1]]), np.stack([same for _, same in pairs])


def _routed(
    chain: _Chain, goal: CascadeGoal, part: Part, thresholds: Sequence[float]
) -> tuple[Tensor, tuple[float, ...]]:
    """The cascade's outputs, and the share of the images that each reading reads."""
    scores, _ = _told(chain, goal, part)
    outputs = chain.outputs[part][-1].clone()
    going, shares = torch.ones(len(outputs), dtype=torch.bool), []
    for threshold, sure, answered in zip(thresholds, scores, chain.outputs[part][:-1], strict=True):
        shares.append(float(going.double().mean()) if threshold < 1 else 0.0)
        accepted = going & torch.from_numpy(sure >= threshold) & (threshold < 1)
        outputs[accepted] = answered[accepted]
        going = going & ~accepted
    return outputs, (*shares, float(going.double().mean()))


def _cheapest(chain: _Chain, goal: CascadeGoal, needed: float) -> tuple[float, tuple[float, ...]]:
    """The least MACs at which `needed` of the search images agree, with the thresholds."""
    scores, same = _told(chain, goal, "search")
    if len(chain.recipes) == 2:
        share, threshold = least_again(scores[0], same[0], needed)
        return chain.added[0] + share * chain.added[1], (threshold,)
    count, best = scores.shape[1], (float("inf"), (1.0, 1.0))
    grids = [np.quantile(each, np.linspace(0, 1, GRID)) for each in scores]
    for first in grids[0]:
        accepted = scores[0] >= first
        right, left = int(same[0][accepted].sum()), ~accepted
        for second in grids[1]:
            later = left & (scores[1] >= second)
            rest = left & ~later
            if right + same[1][later].sum() + same[2][rest].sum() < needed * count - 1e-9:
                continue
            cost = chain.added[0] + left.mean() * chain.added[1] + rest.mean() * chain.added[2]
            if cost < best[0]:
                best = (float(cost), (float(first), float(second)))
    return best


def _keeps(point: Point, agree: float, confidence: float) -> bool:
    """Whether a point keeps the promise with certainty, by the images that the search did not see."""
    if isinstance(point.recipe, CascadeRecipe):
        saves = any(threshold < 1 for threshold in point.recipe.thresholds)  # to read all by the dense model is none
        return saves and point.recipe.agree is not None and point.recipe.agree >= agree
    if point.heldout is None or point.heldout.agreement is None:
        return False
    count = point.heldout.images
    return lower_bound(round(point.heldout.agreement * count / 100), count, confidence) >= agree


def _macs(point: Point) -> float:
    return point.macs if point.heldout_macs is None else point.heldout_macs

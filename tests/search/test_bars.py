"""Bars that let images keep, on average, as many tokens as a schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests import contrasts
from tests.contrasts import SIZE
from tokensieve import Recipe, RecipeError, sieve, tune
from tokensieve.measure import macs
from tokensieve.search.bars import BUDGET_TOLERANCE, Thresholds, adapted, mean_macs
from tokensieve.search.costs import Costs
from tokensieve.search.evaluator import Evaluator
from tokensieve.search.front import mark_dominated

SCHEDULE = "guarded(r=(3, 9, 4), drop=(0, 0, 6, 0), source_guard=0.1) + readout()"


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    words = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "pretrained": False}
    model, images = contrasts.classifier(), contrasts.images(20)
    return Evaluator(model, images, holdout=0.3, seed=0, batch=8, check=lambda: None, **words)


def test_the_mean_meets_the_budget(evaluator: Evaluator) -> None:
    recipe, costs = Recipe.parse(SCHEDULE), Costs(evaluator.empty, SIZE)
    target = costs.of(recipe)
    found = adapted(evaluator, costs, recipe, target)
    images = evaluator.images[evaluator.parts["search"]]
    fast = sieve(evaluator.model, found)
    counted = macs(fast, images=images)
    assert target * (1 - 2 * BUDGET_TOLERANCE) <= counted <= target
    assert mean_macs(evaluator, costs, found) == pytest.approx(counted, rel=1e-12)
    lengths = torch.stack(fast.trace(images).lengths).double()
    assert lengths[1].std() > 0
    fixed = torch.tensor(sieve(evaluator.model, recipe).trace(images[:1]).tokens_per_block).double()
    assert (lengths.mean(1) - fixed).abs().max() < 1.5  # one factor for all, and whole tokens
    assert found.methods[1:] == recipe.methods[1:]


def test_trials_for_another_recipe_are_stored_apart(evaluator: Evaluator) -> None:
    """A search that is resumed may have another best recipe."""
    keys = {Thresholds(text, evaluator).key for text in (SCHEDULE, "guarded(r=2)", SCHEDULE)}
    assert len(keys) == 2
    assert Thresholds(SCHEDULE, evaluator).title == "adaptive"


def test_what_has_no_numbers_has_no_bars(evaluator: Evaluator) -> None:
    costs = Costs(evaluator.empty, SIZE)
    for text in ("tome(r=3)", "guarded(r=1) + guarded(r=1)"):
        with pytest.raises(RecipeError, match="replace the numbers of one guarded"):
            adapted(evaluator, costs, Recipe.parse(text), costs.dense)
    with pytest.raises(RecipeError, match="No thresholds were found"):
        adapted(evaluator, costs, Recipe.parse("guarded(r=1)"), 1000.0)


@pytest.mark.slow
def test_tune_has_adaptive_points_on_its_front(
    evaluator: Evaluator, brief_timing: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    brief_timing(monkeypatch)
    settings = {"proposals": (), "trials": 6, "seed": 0}
    front = tune(evaluator.model, evaluator.images, macs=1.4, families=("scheduled-guarded", "adaptive"), **settings)
    points = [point for point in front.points if point.family == "adaptive"]
    assert {point.budget for point in points} == {point.budget for point in front.points}
    for point in points:
        assert 1 <= point.ratio / point.budget < 1.01
        assert point.heldout_macs is not None
    again = Recipe.from_json(points[0].recipe.to_json())
    assert again == points[0].recipe
    at_best = [point for point in front.points if point.budget == front.best.budget]
    assert front.best.divergence == min(point.divergence for point in at_best)
    fixed = [point for point in front.points if not point.varies]
    assert [point.dominated for point in fixed] == [point.dominated for point in mark_dominated(fixed)]
    for beaten in points:
        better = [p for p in front.points if p.macs <= beaten.macs and p.divergence < beaten.divergence]
        assert beaten.dominated or not better
    unasked = replace(front, best=min(fixed, key=lambda point: abs(point.budget - 1.4)))
    closest = next(point for point in points if point.budget == unasked.best.budget)
    told = "a different number of tokens for each image" in unasked.summary
    assert told == (closest.divergence < unasked.best.divergence)
    with pytest.raises(RecipeError, match="name that as well"):
        tune(evaluator.model, evaluator.images, macs=1.4, families=("adaptive",), **settings)

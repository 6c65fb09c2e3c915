"""`tune(agree=...)`: recipe and thresholds for the cheapest cascade that keeps a promise on images held out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.cascades.small import HALF, classifier, pictures
from tokensieve import CascadeRecipe, Recipe, RecipeError, UnsupportedHost, sieve, tune
from tokensieve.cascades import Cascade, images_needed, lower_bound
from tokensieve.measure import fidelity, macs
from tokensieve.search.cascade_goal import CascadeGoal, agreement_needed, answers, smallest_share_passed_on
from tokensieve.search.costs import Costs
from tokensieve.search.evaluator import Evaluator
from tokensieve.search.families import Scheduled
from tokensieve.search.fit import Fit

COUNT = 120
AGREE = 0.9


@pytest.fixture(autouse=True)
def _quick(brief_timing, monkeypatch):
    brief_timing(monkeypatch)


def search(**settings):
    words = {"agree": AGREE, "confidence": 0.9, "families": ("scheduled-guarded", "tome"), "proposals": (), "trials": 6}
    return tune(classifier(), pictures(COUNT), holdout=0.5, **{**words, **settings})


def test_how_many_must_agree() -> None:
    for agree, confidence, images in [(0.98, 0.95, 500), (0.9, 0.9, 60), (0.9, 0.95, 30)]:
        needed = agreement_needed(agree, confidence, images)
        hits = round(needed * images)
        assert lower_bound(hits, images, confidence) >= agree > lower_bound(hits - 1, images, confidence)
    assert agreement_needed(0.98, 0.95, 500) == 0.992
    assert agreement_needed(0.98, 0.95, (images_needed(0.98, 0.95) or 0) - 1) == 1


@pytest.mark.parametrize("needed", [0.5, 0.8, 0.95, 1.0])
def test_the_least_share_read_again_is_that_of_every_threshold_tried(needed: float) -> None:
    rng = np.random.default_rng(2)
    scores = rng.random(40)
    same = rng.random(40) < scores + 0.2
    found = []
    for threshold in [0.0, *sorted(scores + 1e-9), 2.0]:
        again = scores < threshold
        if (same | again).mean() >= needed - 1e-12:
            found.append(again.mean())
    share, threshold = smallest_share_passed_on(scores, same, needed)
    assert share == min(found)
    assert (scores < threshold).mean() == share


def test_the_goal_is_what_the_cascade_costs() -> None:
    model, images = classifier(), pictures(COUNT)
    evaluator = Evaluator(
        model, images, holdout=0, seed=0, batch=32, mean=None, std=None, pretrained=True, check=lambda: None
    )
    goal = CascadeGoal(evaluator, 0.97, Recipe(), macs(model), "margin")
    recipe = Recipe.parse(HALF)
    outputs = evaluator.outputs(recipe, "search")
    dense = evaluator.dense[evaluator.parts["search"]]
    scores, same = answers(outputs, dense, "margin")
    costs = []
    for part in (0.75, 1.0, 1.25, 1.5):
        _, threshold = smallest_share_passed_on(scores, same, 1 - 0.03 * part)
        with torch.no_grad():
            cascade = sieve(model, CascadeRecipe((HALF, ""), (threshold,)))
            costs.append(macs(cascade, images=images) / macs(model))
    assert goal(recipe, outputs, dense) == pytest.approx(np.mean(costs), rel=1e-9)
    evaluator.goal = goal
    assert evaluator.evaluate(recipe, "search").value == pytest.approx(np.mean(costs), rel=1e-9)


def test_first_blocks_can_be_spared() -> None:
    fit = Fit(Costs(sieve(classifier(depth=12)), (3, 32, 32)), 0.8 * macs(classifier(depth=12)))
    family = Scheduled(spares=(0.25,))
    assert family.variants()[-1] == {"spared": 0.25}
    recipe = family.recipe({}, {"spared": 0.25}, fit)
    assert fit.meets(recipe)
    assert recipe.methods[0].r[:3] == (0, 0, 0)
    assert any(Scheduled().recipe({}, {}, fit).methods[0].r[:3])


@pytest.mark.slow
def test_a_front_of_plain_recipes_and_cascades(tmp_path) -> None:
    front = search()
    assert front.wanted == {"agree": AGREE}
    assert front.reached
    assert {point.kind for point in front.points} >= {"cascade", "single"}
    best = front.recommended
    certified = [p for p in front.points if isinstance(p.recipe, CascadeRecipe) and (p.recipe.agree or 0) >= AGREE]
    assert certified
    assert best.heldout_macs is None or best.heldout_macs <= min(point.heldout_macs for point in certified)
    model, images = classifier(), pictures(COUNT)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    for point in certified:
        cascade = sieve(model, point.recipe)
        assert isinstance(cascade, Cascade)
        for rows, figures, cost in (
            (order[:60], point.search, point.macs),
            (order[60:], point.heldout, point.heldout_macs),
        ):
            told = fidelity(cascade.unwatched(), model, [images[rows]])
            assert told.agreement == pytest.approx(figures.agreement)
            assert told.kl == pytest.approx(figures.divergence, abs=1e-6)
            with torch.no_grad():
                assert macs(cascade, images=images[rows]) == pytest.approx(cost, rel=1e-9)
        assert lower_bound(round(point.heldout.agreement * 0.6), 60, 0.9) >= point.recipe.agree
        assert point.recipe.shares == pytest.approx(cascade.trace(images[order[60:]]).shares)
    folder = front.save(tmp_path / "front")
    assert json.loads((folder / "front.json").read_text())["wanted"] == {"agree": AGREE}
    assert isinstance(sieve(model, folder / "best.json"), Cascade) == isinstance(best.recipe, CascadeRecipe)


@pytest.mark.slow
def test_without_enough_images_nothing_is_promised() -> None:
    front = search(agree=0.98, confidence=0.95, trials=0)
    assert not front.reached
    assert "at least 149 are needed" in front.summary
    assert isinstance(front.recommended.recipe, CascadeRecipe)
    assert front.recommended.recipe.thresholds[0] == 1.0


@pytest.mark.slow
def test_what_has_no_classes_is_refused() -> None:
    with pytest.raises(UnsupportedHost, match="no class scores"):
        tune(classifier(num_classes=0), pictures(8), agree=0.9, proposals=())
    with pytest.raises(RecipeError, match="agree is a share"):
        tune(classifier(), pictures(8), agree=98, proposals=())
    with pytest.raises(RecipeError, match="exactly one budget"):
        tune(classifier(), pictures(8), agree=0.9, macs=1.5, proposals=())

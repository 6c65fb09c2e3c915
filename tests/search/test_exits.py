"""Exits in a search: what they cost on images, thresholds for a budget, and `tune()` on a segmenter."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from tokensieve import RecipeError, UnsupportedHost, segmentation, sieve, tune
from tokensieve.measure import fidelity, macs
from tokensieve.methods.dtop import exits, rank_in_class
from tokensieve.recipe import Recipe
from tokensieve.search.evaluator import Evaluator
from tokensieve.search.exit_costs import ExitCosts
from tokensieve.search.exit_families import Exits, OneThreshold
from tokensieve.search.exits import Arrived
from tokensieve.search.fit import Fit

pytestmark = pytest.mark.versions

SIZE, CLASSES = (3, 32, 48), 4


def vit(**more):
    sizes = {"img_size": SIZE[1:], "patch_size": 8, "embed_dim": 64, "num_heads": 2, "num_classes": 3, "depth": 6}
    return VisionTransformer(**{**sizes, "mlp_ratio": 4.0, **more})


FORMS = {
    "segvit": lambda: segmentation.segvit(vit(), CLASSES, exits=(1, 3, 4, 5), width=8, heads=2, layers=1),
    "class token": lambda: segmentation.segvit(
        vit(), CLASSES, exits=(1, 4), width=8, heads=2, layers=1, class_token=True, final_norm=True
    ),
    "setr": lambda: segmentation.setr(vit(), CLASSES, form="naive", levels=(1, 3, 5), channels=8),
}


def made(form):
    torch.manual_seed(0)
    model = FORMS[form]().eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2)
        if "norm" in name and name.endswith("weight"):
            parameter.data += 1
    return model


def pictures():
    plain = torch.randn(7, *SIZE, generator=torch.Generator().manual_seed(1))
    return plain * torch.linspace(0.3, 2, 7)[:, None, None, None]


@pytest.fixture
def images():
    return pictures()


@cache
def costs_of(form):
    words = {"holdout": 0.3, "seed": 0, "batch": 3, "mean": None, "std": None, "pretrained": False}
    return ExitCosts(Evaluator(made(form), pictures(), check=lambda: None, **words))


def searched(costs):
    return costs.evaluator.images[costs.evaluator.parts["search"]]


def middle(costs, share=0.6):
    """A threshold in the midst of the confidences."""
    at = costs.arrived(costs.exits[0])
    return float(at.confidence[at.confidence > 0].quantile(share))


@pytest.mark.parametrize("form", FORMS)
def test_the_arithmetic_is_what_macs_counts_on_the_images(form):
    costs = costs_of(form)
    model = costs.evaluator.model
    inner, threshold = costs.exits[:-1], middle(costs)
    texts = [
        f"dtop(threshold={threshold}, keep_per_class=1)",
        f"dtop(threshold={threshold}, keep_per_class=0, layers=({inner[-1]},))",
        f"dtop(threshold={(*[threshold] * (len(inner) - 1), 1.0)}, keep_per_class=2, class_probability=stage)",
        "dtop(budget=0.5, keep_per_class=1)",
        "tome(r=3)",
        "",
    ]
    for text in texts:
        recipe = Recipe.parse(text)
        counted = macs(sieve(model, recipe), images=searched(costs))
        assert costs.of(recipe) == pytest.approx(counted, abs=0.51), text
    held = costs.evaluator.images[costs.evaluator.parts["heldout"]]
    recipe = Recipe.parse(texts[0])
    assert costs.mean(recipe, "heldout") == pytest.approx(macs(sieve(model, recipe), images=held), rel=1e-9)
    assert costs.mean(recipe, "heldout") != costs.mean(recipe)
    assert costs.of(recipe) < costs.of(Recipe.parse("dtop(threshold=0.999999)"))


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_who_stays_is_the_rule_of_dtop(keep):
    generator = torch.Generator().manual_seed(keep)
    prediction = (torch.rand(6, 3, 12, generator=generator) * 8).round() / 8  # ties
    gone = torch.rand(6, 12, generator=generator) < 0.3
    at = Arrived(prediction.amax(1).masked_fill(gone, -1), rank_in_class(prediction, ~gone), prefix=2)
    for threshold in (0.1, 0.5, 0.75, 0.9, 1.0):
        after = exits(prediction, gone, threshold, keep)
        assert torch.equal(at.stays(threshold, keep), ~after)
        assert torch.equal(at.left(threshold, keep), (~after).sum(1) + 2)


def test_the_largest_threshold_that_lets_enough_leave():
    confidence = torch.tensor([[0.9, 0.8, 0.3, -1.0], [0.7, 0.7, 0.6, 0.2]])
    at = Arrived(confidence, torch.tensor([[0, 1, 2, 9], [1, 2, 0, 3]]), prefix=0)
    assert at.threshold(0, lambda left: True) == 1.0
    for wanted in range(6, 2, -1):
        threshold = at.threshold(0, lambda left, wanted=wanted: int(left.sum()) <= wanted)
        assert int(at.left(threshold, 0).sum()) <= wanted
        rounded_up = min(step for step in (0.2, 0.3, 0.6, 0.7, 0.8, 0.9) if step > threshold)
        assert int(at.left(rounded_up, 0).sum()) > wanted, "a larger threshold does not do"
        assert len(str(threshold)) <= 5
    lowest = at.threshold(0, lambda left: False)
    assert at.left(lowest, 0).tolist() == [1, 1]
    assert at.left(at.threshold(2, lambda left: False), 2).tolist() == [2, 2]


@pytest.mark.parametrize("form", FORMS)
def test_budgets_are_met_on_the_images(form):
    costs = costs_of(form)
    model = costs.evaluator.model
    inner = costs.exits[:-1]
    everything = costs.of(Recipe.parse(f"dtop(threshold={tuple([1e-6] * len(inner))}, keep_per_class=1)"))
    fit = Fit(costs, (everything + costs.dense) / 2)
    family = Exits(inner)
    found = {}
    for index, variant in enumerate(family.variants()):
        try:
            (dtop,) = family.recipe({"context": -1.0}, variant, fit).methods
        except RecipeError:  # a late exit alone may save too little
            continue
        assert dtop.keep_per_class == 1
        assert set(dtop.layers) <= set(variant["layers"])
        counted = macs(sieve(model, dtop), images=searched(costs))
        assert 0.95 * fit.target < counted <= fit.target * (1 + 1e-9)
        found[index] = dtop
    assert len(found) > len(family.variants()) // 2
    assert 0 in found
    if len(inner) > 1:
        mild = Fit(costs, everything + 0.8 * (costs.dense - everything))
        few = {"context": -1.0}
        without = family.recipe({f"exit{inner[0]}": -1.0, **few}, family.variants()[0], mild).methods[0]
        assert inner[0] not in without.layers
        joined = family.recipe({f"exit{inner[0]}": 0.5, **few}, {"layers": inner[1:]}, mild).methods[0]
        assert inner[0] in joined.layers


def test_one_threshold_for_all_exits():
    costs = costs_of("segvit")
    few = costs.of(Recipe.parse("dtop(threshold=0.000001)"))
    fit = Fit(costs, few + 0.4 * (costs.dense - few))
    for variant in OneThreshold().variants():
        recipe = OneThreshold().recipe({}, variant, fit)
        (dtop,) = recipe.methods
        assert isinstance(dtop.threshold, float)
        assert dtop.layers is None
        assert 0.9 * fit.target < costs.of(recipe) <= fit.target
    with pytest.raises(RecipeError, match="still takes"):
        OneThreshold().recipe({}, {}, Fit(costs, few - 1))


def test_families_of_exits_are_for_segmenters_with_exits(images):
    with pytest.raises(UnsupportedHost, match="no heads between its blocks"):
        tune(vit(), images, macs=1.2, families=("dtop",), trials=0)


@pytest.mark.slow
def test_tune_searches_exits_without_labels(images, tmp_path, brief_timing, monkeypatch):
    brief_timing(monkeypatch)
    model = made("segvit")
    words = {"families": ("scheduled-dtop", "dtop", "tome"), "proposals": (), "trials": 8, "batch": 4}
    front = tune(model, images, macs=1.15, **words)
    assert {point.family for point in front.points} == {"scheduled-dtop", "dtop", "tome"}
    for point in front.points:
        assert point.ratio >= point.budget * (1 - 1e-9)
        if point.family == "tome":
            assert point.heldout_macs is None
            continue
        held = macs(sieve(model, point.recipe), images=images)
        both = point.search.images * point.macs + point.heldout.images * point.heldout_macs
        assert both / len(images) == pytest.approx(held, rel=1e-6)
    whole = fidelity(sieve(model, front.best.recipe), model, [images])
    parts = front.best.search, front.best.heldout
    assert sum(part.divergence * part.images for part in parts) / len(images) == pytest.approx(whole.kl, rel=1e-4)
    record = json.loads((front.save(tmp_path / "front") / "front.json").read_text())
    assert "heldout_macs" in record["best"]
    assert "x held out)" in front.summary or front.best.family == "tome"

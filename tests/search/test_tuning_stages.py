"""`tune()` on models with stages: exact costs, budgets met to a pixel, searches that find what was planted."""

from __future__ import annotations

import itertools
import json
from math import prod

import pytest
import torch
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from tests.reference.staged import staged_forms
from tokensieve import InputSpec, PaPr, Recipe, RecipeError, UnsupportedHost, sieve, tune
from tokensieve.measure import fidelity, macs
from tokensieve.search.evaluator import Evaluator
from tokensieve.search.fit import Fit
from tokensieve.search.stages import NAMES, Shared, StageCosts, Staged

pytestmark = pytest.mark.slow

SIZE = (3, 64, 64)
NORM = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "pretrained": False}
FORMS = staged_forms()


def convnext(**settings):
    torch.manual_seed(0)
    model = ConvNeXt(**{"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48), "num_classes": 7, **settings}).eval()
    return noisy(model)


def swin():
    torch.manual_seed(0)
    sizes = {"img_size": 64, "patch_size": 4, "window_size": 4, "embed_dim": 16, "num_classes": 7}
    return noisy(SwinTransformer(**sizes, depths=(2, 2, 2), num_heads=(2, 2, 2)).eval())


def noisy(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15 if parameter.ndim > 1 else 0.5)
    return model


@pytest.fixture(scope="module")
def model():
    return convnext()


@pytest.fixture(scope="module")
def images():
    return torch.randn(16, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _quick(brief_timing, monkeypatch):
    brief_timing(monkeypatch)


def search(model, images, **settings):
    return tune(model, images, **{"proposals": (), "trials": 12, **settings})


def texts(front):
    return [(str(point.recipe), point.search, point.heldout) for point in front.points]


@pytest.mark.parametrize("name", FORMS)
def test_the_arithmetic_is_what_macs_counts(name):
    host, size = FORMS[name].make().eval(), (3, *FORMS[name].size)
    fast = sieve(host)
    costs = StageCosts(fast, size)
    assert costs.dense == round(macs(host, size))
    assert costs.pixels == [prod(one) for one in fast.sizes(torch.zeros(1, *size))]
    last = costs.depth - 1
    shares = ", ".join([*("0.9", "0.3", "0.5", "0.01")[:last], "1"])
    for text in (
        "",
        "papr(keep=0.4, significance=random)",
        f"papr(keep=({shares}), significance=centre, background=keep)",
        f"papr(keep=(0.2, 0.7), stages=({last}, 0), significance=centre)",
    ):
        recipe = Recipe.parse(text)
        assert costs.of(recipe) == round(macs(sieve(host, recipe), size, proposal=False)), text


@pytest.mark.parametrize("make", [convnext, swin])
def test_budgets_are_spent_to_the_last_pixel(make):
    model = make()
    costs = StageCosts(sieve(model), SIZE)
    for ratio, params in itertools.product((1.1, 1.4), ({}, {"stage0": 0.8, "stage1": -1.0}, {"stage2": 2.0})):
        fit = Fit(costs, costs.dense / ratio)
        recipe = Staged().recipe(params, {"background": "keep"}, fit)
        cost = macs(sieve(model, recipe), SIZE)
        assert cost == costs.of(recipe) <= fit.target
        kept = costs.kept(recipe)
        more = [each for each, n, whole in zip(costs.per_pixel, kept, costs.pixels, strict=True) if n < whole]
        assert fit.target - cost < min(more)
    one = Shared("centre", {"significance": "centre"}).recipe({}, {}, fit)
    assert 0.9 * fit.target < costs.of(one) <= fit.target


def test_knobs_say_which_stages_keep_more(model):
    costs = StageCosts(sieve(model), SIZE)
    fit = Fit(costs, costs.dense / 1.3)
    kept = costs.kept(Staged().recipe({"stage1": 2.0, "stage3": -0.4}, {"background": "zero"}, fit))
    assert kept[1] == costs.pixels[1]
    shares = [n / whole for n, whole in zip(kept, costs.pixels, strict=True)]
    assert shares[0] == pytest.approx(shares[2], abs=0.07)
    assert shares[3] < shares[2]
    # where nothing but the stage that is spared could meet the budget, it gives too
    tight = Fit(costs, costs.dense - 0.9 * sum(n * each for n, each in zip(costs.pixels, costs.per_pixel, strict=True)))
    assert costs.kept(Staged().recipe({"stage1": 2.0}, {"background": "zero"}, tight))[1] < costs.pixels[1]
    with pytest.raises(RecipeError, match="times the MACs of the budget"):
        Staged().recipe({}, {"background": "zero"}, Fit(costs, costs.dense / 1000))


@pytest.mark.parametrize("make", [convnext, swin])
def test_a_front(make, images, tmp_path):
    model = make()
    front = search(model, images, macs=1.3)
    assert {point.title for point in front.points} == {"scheduled-papr", "centre"}
    assert front.reached
    for point in front.points:
        assert point.ratio >= point.budget * (1 - 1e-9)
        if point.kind == "searched":
            assert point.ratio <= 1.02 * point.budget
        assert point.macs == macs(sieve(model, point.recipe), SIZE)
    found = fidelity(sieve(model, front.best.recipe), model, [images])
    mine, held = front.best.search, front.best.heldout
    assert found.kl == pytest.approx(
        (mine.divergence * mine.images + held.divergence * held.images) / len(images), rel=1e-4
    )
    folder = front.save(tmp_path / "found")
    assert Recipe.load(folder / "best.json") == front.best.recipe
    assert json.loads((folder / "front.json").read_text())["left_out"] == {}
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_finds_the_same_and_an_ended_search_goes_on(model, images, tmp_path, monkeypatch):
    front = search(model, images, macs=1.3)
    assert texts(search(model, images, macs=1.3)) == texts(front)
    whole, calls = Evaluator.figures_by_step, itertools.count()

    def interrupted(self, *arguments, **settings):
        if next(calls) == 11:
            raise KeyboardInterrupt
        return whole(self, *arguments, **settings)

    monkeypatch.setattr(Evaluator, "figures_by_step", interrupted)
    first = search(model, images, macs=1.3, storage=tmp_path / "trials.db")
    assert first.stopped == "interrupted"
    monkeypatch.setattr(Evaluator, "figures_by_step", whole)
    assert texts(search(model, images, macs=1.3, storage=tmp_path / "trials.db")) == texts(front)


def test_what_was_planted_is_found(images):
    """Stage 2 adds nothing, so that leaving its pixels out as they were costs nothing, and zeroing them does."""
    model = convnext(depths=(1, 1, 6, 1))
    for block in model.stages[2].blocks:
        nn.init.zeros_(block.gamma)
    front = search(model, images, macs=1.25, trials=60)
    (method,) = front.best.recipe
    assert method.background == "keep"
    assert method.keep[2] == min(method.keep)
    singles = [point for point in front.points if point.budget == 1.25 and point.kind == "single"]
    assert front.best.divergence < 0.2 * min(point.divergence for point in singles)


def test_a_stage_that_must_stay_whole_is_left_whole(images):
    """The first stage, made to matter, among others that do little."""
    model = convnext(depths=(2, 1, 6, 1))
    for stage in model.stages[1:]:
        for block in stage.blocks:
            block.gamma.data.mul_(0.02)
    front = search(model, images, macs=1.3, trials=20)
    assert front.best.kind == "searched"
    assert front.best.recipe.methods[0].keep[0] == 1


def test_a_proposal_is_tried_beside_none_and_its_macs_count(images):
    model = convnext(dims=(64, 96, 192, 256), depths=(1, 1, 3, 1))
    front = tune(model, images, macs=1.2, proposals=("test_resnet",), trials=8, **NORM)
    at = {point.title: point for point in front.points if point.budget == 1.2}
    assert set(at) == {"scheduled-papr", "scheduled-papr with test_resnet", "papr with test_resnet", "centre"}
    assert "roposal paid" in front.summary
    for title in ("scheduled-papr with test_resnet", "papr with test_resnet"):
        fast = sieve(model, at[title].recipe, **NORM)
        assert at[title].macs == macs(fast, SIZE) > macs(fast, SIZE, proposal=False)
        assert at[title].ratio >= 1.2


@pytest.mark.parametrize("make", [convnext, swin])
def test_recalled_maps_are_those_of_the_proposal_in_every_stage(make, images):
    model = make()
    evaluator = Evaluator(model, images, holdout=0.3, seed=0, batch=8, check=lambda: None, **NORM)
    assert evaluator.input_size == InputSpec(tuple(images.shape[1:]))
    recipe = Recipe.parse("papr(keep=(0.8, 0.5, 0.6), stages=(0, 1, 2), proposal=test_resnet, background=keep)")
    rows = evaluator.parts["search"]
    torch.manual_seed(0)
    recalled = evaluator.evaluate(recipe, "search")
    ((maps, cost),) = evaluator._maps.values()
    (method,) = recipe
    fast = sieve(model, PaPr(keep=method.keep, stages=method.stages, significance=maps[rows], background="keep"))
    with torch.inference_mode():
        divergence = evaluator.kind.divergence(evaluator.dense[rows], fast(evaluator.images[rows]))
    assert recalled.divergence == pytest.approx(float(divergence.mean()), rel=1e-5)
    whole = sieve(model, recipe, **NORM)
    assert cost == macs(whole, SIZE) - macs(whole, SIZE, proposal=False)


def test_an_allowed_loss_is_kept_to(images):
    front = search(swin(), images, divergence=0.05, trials=6, families=("scheduled-papr",))
    assert front.reached
    assert front.best.divergence <= 0.05


def test_families_of_the_other_kind_are_refused(model, images):
    with pytest.raises(UnsupportedHost, match=r"cannot be tuned by tome: it has stages.* scheduled-papr, papr"):
        search(model, images, macs=1.3, families=("tome",))
    with pytest.raises(RecipeError, match="no family 'centr'; the nearest"):
        search(model, images, macs=1.3, families=("centr",))
    front = search(model, images, macs=1.3, trials=0, families=("random",))
    assert {point.title for point in front.points} == {"random"}
    assert "random" in NAMES

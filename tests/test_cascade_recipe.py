"""The text and the JSON of a cascade: what they say, what they refuse, and who opens them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from tests.cascades.small import HALF, classifier, pictures
from tokensieve import CascadeRecipe, ModelSpec, PaPr, Recipe, RecipeError, sieve
from tokensieve.cascade_recipe import read_recipe
from tokensieve.cascades import Cascade
from tokensieve.recipe import recipes_with

PLAIN = CascadeRecipe((HALF, ""), (0.31,))
FULL = CascadeRecipe(
    ("papr(keep=0.5, proposal='a b')", "papr(keep=0.5, significance=centre) + tome(r=2, layers=1:3)", ""),
    (0.31, 0.5),
    "entropy",
    0.98,
    0.95,
    500,
    (1.0, 0.4, 0.1),
)


def test_text_is_one_call() -> None:
    assert str(CascadeRecipe(("papr(keep=0.5)", ""), (0.31,))) == (
        'cascade(recipes=("papr(keep=0.5)", ""), thresholds=(0.31,), score="margin")'
    )
    assert CascadeRecipe.parse('cascade(recipes=["papr(keep=0.5)", ""], thresholds=[0.31])') == CascadeRecipe(
        (PaPr(keep=0.5), Recipe()), (0.31,)
    )


@pytest.mark.parametrize("cascade", [PLAIN, FULL], ids=["plain", "calibrated"])
def test_text_and_json_give_back_an_equal_cascade(cascade: CascadeRecipe, tmp_path: Path) -> None:
    assert CascadeRecipe.parse(str(cascade)) == cascade
    assert CascadeRecipe.from_json(cascade.to_json()) == cascade
    file = cascade.save(tmp_path / "best.json")
    assert CascadeRecipe.load(file) == cascade
    assert read_recipe(file) == cascade
    text = tmp_path / "best.recipe"
    text.write_text(str(cascade))
    assert read_recipe(str(text)) == cascade
    assert json.loads(file.read_text())["tokensieve_cascade"] == 1


def test_recipes_stay_recipes(tmp_path: Path) -> None:
    file = Recipe.parse(HALF).save(tmp_path / "plain.json")
    assert read_recipe(file) == Recipe.parse(HALF) == read_recipe(HALF)
    assert read_recipe(PaPr(keep=0.5)) == Recipe.of("papr(keep=0.5)")
    with pytest.raises(RecipeError, match="is a single recipe, not a cascade"):
        CascadeRecipe.load(HALF)
    with pytest.raises(RecipeError, match="is a cascade of several recipes"):
        Recipe.parse(str(PLAIN))


def test_weights_are_named_from_the_file(tmp_path: Path) -> None:
    weights = tmp_path / "proposal.safetensors"
    weights.write_bytes(b"weights")
    first = PaPr(keep=0.5, proposal="squeezenet1_1", proposal_weights=str(weights))
    cascade = CascadeRecipe((first, ""), (0.3,))
    assert cascade.paths() == [str(weights)]
    file = cascade.save(tmp_path / "best.json")
    entry = json.loads(file.read_text())["recipes"][0]["methods"][0]
    assert entry["proposal_weights"] == "proposal.safetensors"
    assert len(entry["proposal_sha256"]) == 64
    assert CascadeRecipe.load(file).paths() == [str(weights)]
    assert recipes_with(weights) == [file]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('cascade(recipes=("",), thresholds=())', "two recipes or more"),
        ('cascade(recipes=("", ""), thresholds=(0.3, 0.4))', "1 numbers from 0 to 1"),
        ('cascade(recipes=("", ""), thresholds=(1.5,))', "1 numbers from 0 to 1"),
        ('cascade(recipes=("", ""), thresholds=(float("nan"),))', "and the rest numbers"),
        ('cascade(recipes=("", ""), thresholds=(0.3,), score="sure")', "margin, probability, entropy"),
        ('cascade(recipes=("", ""), thresholds=(0.3,), agree=98)', "agree is a share"),
        ('cascade(recipes=("", ""), thresholds=(0.3,), images=0)', "images is the number of images"),
        ('cascade(recipes=("", ""), threshold=(0.3,))', "no setting 'threshold'; the nearest are thresholds, shares"),
        ('cascade(recipes=("", ""))', "needs thresholds="),
        ('cascade(("", ""), thresholds=(0.3,))', "every argument must be named"),
        ('cascade(recipes=(tome(r=2), ""), thresholds=(0.3,))', "recipes must be in quotes"),
        ("cascade(recipes=", "cannot be read"),
        ('cascade(recipes=("tome(q=2)", ""), thresholds=(0.3,))', "tome has no setting 'q'"),
    ],
)
def test_what_cannot_be_read_says_why(text: str, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        sieve(classifier(), text)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"tokensieve_cascade": 2}, "has version 2"),
        ({"recipes": 3}, "is an object like"),
        ({"more": 3}, "no setting 'more'"),
    ],
)
def test_files_that_are_none(changed: dict, why: str) -> None:
    data = json.loads(PLAIN.to_json()) | changed
    with pytest.raises(RecipeError, match=why):
        CascadeRecipe.from_json(json.dumps(data))


def test_a_function_cannot_be_written_down(tmp_path: Path) -> None:
    cascade = CascadeRecipe((HALF, ""), (0.3,), lambda output: output)
    with pytest.raises(RecipeError, match="score is a function"):
        cascade.save(tmp_path / "best.json")
    with pytest.raises(RecipeError, match="cannot be stored"):
        ModelSpec("nano_vit", cascade)


@torch.no_grad()
def test_sieve_opens_text_and_files(tmp_path: Path) -> None:
    model, images = classifier(), pictures(6)
    expected = sieve(model, PLAIN)(images)
    for source in (str(PLAIN), PLAIN.save(tmp_path / "best.json"), str(tmp_path / "best.json")):
        fast = sieve(model, source)
        assert isinstance(fast, Cascade)
        assert fast.recipe == PLAIN
        assert torch.equal(fast(images), expected)


@torch.no_grad()
def test_a_model_spec_keeps_and_opens_a_cascade(tmp_path: Path) -> None:
    cascade = CascadeRecipe(("papr(keep=0.5, significance=centre)", ""), (0.4,), images=500, shares=(1, 0.25))
    spec = ModelSpec("nano_vit", cascade)
    for again in (spec, ModelSpec.from_json(spec.to_json()), pickle.loads(pickle.dumps(spec))):
        assert again == spec
        assert again.parsed_recipe() == cascade
    opened = spec.open()
    assert isinstance(opened.fast, Cascade)
    assert opened.fast.recipe == cascade
    assert opened.fast.members[0].model is opened.dense
    asking = ModelSpec("nano_vit", CascadeRecipe(("papr(keep=0.5)", ""), (0.4,)), proposal_weights="p.safetensors")
    assert asking.files() == ["p.safetensors"]
    with pytest.raises(RecipeError, match="cannot be used"):
        ModelSpec("nano_vit", PLAIN, proposal_weights="p.safetensors")

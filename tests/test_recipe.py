"""Recipes: text and JSON, equal both ways, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensieve import PaPr, Recipe, RecipeError, ToMe
from tokensieve.methods.schedule import spread

names = st.sampled_from(["mobileone_s0", "resnet18", "squeezenet1_1", "mobileone_s0.apple_in1k"])
papr = st.builds(
    PaPr,
    keep=st.floats(0.01, 1.0),
    proposal=names,
    significance=st.sampled_from(["mean", "cam", "grad-cam", "grad-cam++", "random", "centre"]),
    layer=st.sampled_from([None, -1, 2, "blocks.4"]),
    order=st.sampled_from(["raster", "significance"]),
    align_corners=st.booleans(),
    proposal_norm=st.sampled_from(["native", "shared"]),
    proposal_size=st.sampled_from([None, 160, (160, 192)]),
    proposal_args=st.sampled_from([None, {"pad_type": "same"}]),
    proposal_dtype=st.sampled_from([None, "bfloat16"]),
    seed=st.integers(0, 9),
)
slices = st.one_of(st.none(), st.builds(slice, st.none() | st.integers(-12, 12), st.none() | st.integers(-12, 12)))
ratios = st.one_of(
    st.integers(0, 60),
    st.lists(st.integers(0, 60), max_size=13),
    st.tuples(st.integers(0, 30), st.floats(-1, 1)),
)
tome = st.builds(ToMe, r=ratios, layers=slices, proportional=st.booleans())
recipes = st.lists(papr | tome, max_size=4).map(lambda methods: Recipe(tuple(methods)))


@settings(max_examples=200, deadline=None)
@given(recipe=recipes)
def test_text_and_json_are_equal_both_ways(recipe: Recipe) -> None:
    assert Recipe.parse(str(recipe)) == recipe
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert Recipe.parse(json.loads(recipe.to_json())["text"]) == recipe


def test_text_as_people_write_it() -> None:
    assert Recipe.parse("papr(keep=0.8) + tome(r=8)") == PaPr(keep=0.8) + ToMe(r=8)
    assert Recipe.parse(" papr( keep = .5 , significance = grad-cam )") == Recipe.of(
        PaPr(keep=0.5, significance="grad-cam")
    )
    assert Recipe.parse("tome(r=8, layers=6:12)").methods[0].layers == slice(6, 12)
    assert Recipe.parse("tome(r=8,layers=-3:)").methods[0].layers == slice(-3, None)
    assert Recipe.parse("tome(r=8,layers=::2)").methods[0].layers == slice(None, None, 2)
    assert spread(Recipe.parse("tome(r=[8, 4])").methods[0].r, 4) == [8, 4, 0, 0]
    assert Recipe.parse("random(keep=0.5, seed=3)") == Recipe.of(PaPr(keep=0.5, significance="random", seed=3))
    assert Recipe.parse("") == Recipe()
    assert str(Recipe()) == ""
    assert str(PaPr(keep=0.5) + "tome(r=4)") == "papr(keep=0.5) + tome(r=4)"
    assert "tome(r=4)" + Recipe.of(ToMe(r=2)) == ToMe(r=4) + ToMe(r=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pap(keep=0.5)", "no method 'pap'; the nearest (is|are) papr"),
        ("papr(kep=0.5)", "no setting 'kep'; the nearest (is|are) keep"),
        ("papr()", "needs keep="),
        ("papr", r"write papr\(...\)"),
        ("papr(0.5)", "name every argument"),
        ("papr(keep=0.5", "cannot be read"),
        ("papr(keep=0.5) - tome(r=8)", "calls joined by +"),
        ("papr(keep=1+1)", "quote it"),
        ("papr(keep=0)", r"\(0, 1\]"),
        ("papr(keep=1.2)", r"\(0, 1\]"),
        ("papr(keep=True)", r"\(0, 1\]"),
        ("papr(keep=nan)", r"\(0, 1\]"),
        ("papr(keep=0.5, order=rastr)", "the nearest (is|are) raster"),
        ("papr(keep=0.5, significance=gradcam)", "the nearest (is|are) grad-cam"),
        ("papr(keep=0.5, proposal_norm=own)", "native, shared"),
        ("tome(r=-1)", "whole numbers"),
        ("tome(r=2.5)", "whole numbers"),
        ("tome(r=(8, 8))", "for a number for each block write a list"),
        ("tome(r=8, layers=3)", "slice of blocks"),
    ],
)
def test_what_is_wrong_is_said_with_the_nearest_valid_word(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.parse(text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "not JSON"),
        ("[]", "is an object like"),
        ('{"tokensieve": 99, "methods": []}', "version 99"),
        ('{"tokensieve": 1, "methods": [], "metods": []}', "the nearest (is|are) methods"),
        ('{"tokensieve": 1, "methods": [{"keep": 1}]}', 'with a "name"'),
        ('{"tokensieve": 1, "methods": [{"name": "papr", "keap": 1}]}', "the nearest (is|are) keep"),
    ],
)
def test_broken_files_are_refused(data: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_json(data)


def test_a_recipe_of_something_else_is_refused() -> None:
    with pytest.raises(RecipeError, match="not int"):
        Recipe.of(3)  # type: ignore[arg-type]


def test_modules_and_tensors_show_but_do_not_go_into_a_file() -> None:
    recipe = Recipe.of(PaPr(keep=0.5, proposal=torch.nn.Conv2d(3, 8, 3)))
    assert str(recipe) == "papr(keep=0.5, proposal=<Conv2d>)"
    with pytest.raises(RecipeError, match="proposal is a Conv2d"):
        recipe.to_json()


def test_load_reads_text_and_files(tmp_path: Path) -> None:
    recipe = PaPr(keep=0.8) + ToMe(r=8, layers=slice(6, 12))
    file = tmp_path / "recipe.json"
    file.write_text(recipe.to_json())
    assert Recipe.load(file) == recipe
    assert Recipe.load(str(file)) == recipe
    assert Recipe.load(str(recipe)) == recipe
    file.write_text(str(recipe))
    assert Recipe.load(file) == recipe
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load(str(tmp_path / "missing.json"))


def test_a_file_keeps_the_hash_of_a_proposals_weights(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"abc")
    recipe = Recipe.of(PaPr(keep=0.5, proposal_weights=weights))
    read = Recipe.from_json(recipe.to_json())
    assert read == recipe
    assert read.methods[0].proposal_sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

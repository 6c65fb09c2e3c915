"""Recipes: text and JSON, equal both ways, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensieve import Corrected, DynamicViT, InputError, PaPr, Recipe, RecipeError, ToMe
from tokensieve.methods import METHODS
from tokensieve.methods.schedule import spread
from tokensieve.recipe import recipes_with

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
        ("tome(r=-1)", "integers from 0 up"),
        ("tome(r=2.5)", "integers from 0 up"),
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
        ('{"tokensieve": 2, "methods": [{"name": "corrected", "weights": 3}]}', "must be the path of a file, not 3"),
        ('{"tokensieve": 2, "methods": [{"name": "corrected", "sha256": 3}]}', "must be a SHA-256"),
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
    for missing in ("missing.json", "missing (2).json", "miss\0ing.json", ""):
        with pytest.raises(RecipeError, match="cannot be read"):
            Recipe.load(str(tmp_path / missing) if missing else tmp_path)


def test_a_file_stands_wherever_a_recipe_does(there: Path) -> None:
    recipe = PaPr(keep=0.8) + ToMe(r=8)
    for name in ("best.json", "best (2).json", "best"):
        assert recipe.save(name) == Path(name)
        assert Recipe.of(name) == Recipe.of(Path(name)) == recipe
    assert ToMe(r=2) + "best.json" == ToMe(r=2) + recipe
    assert "best.json" + Recipe.of(ToMe(r=2)) == recipe + ToMe(r=2)
    Path("best.json").write_text(recipe.to_json(), encoding="utf-8-sig")  # as editors on Windows do
    assert Recipe.of("best.json") == recipe


ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""SHA-256 of these three letters."""


def with_weights(file: str | os.PathLike[str]) -> Recipe:
    """Every method that reads weights from a file, all from the same one."""
    asking = [cls for cls in METHODS.values() if cls.files]
    assert {"corrected", "dynamicvit", "dynamiccnn", "dynamicswin", "papr"} <= {cls.name for cls in asking}
    keep = {cls: {"keep": 0.5} if "keep" in {field.name for field in fields(cls)} else {} for cls in asking}
    return Recipe(tuple(cls(**keep[cls], **dict.fromkeys(cls.files, file)) for cls in asking))


def test_every_setting_that_may_be_a_file_has_a_hash_that_texts_and_comparisons_leave_out() -> None:
    for cls in METHODS.values():
        by_name = {field.name: field for field in fields(cls)}
        assert {name for name, field in by_name.items() if "PathLike" in str(field.type)} == set(cls.files)
        assert not any(by_name[digest].compare for digest in cls.files.values())


def test_a_file_keeps_the_hash_of_all_weights(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"abc")
    recipe = with_weights(weights)
    read = Recipe.from_json(recipe.to_json())
    assert read == recipe == Recipe.parse(str(recipe))
    for method in read:
        assert [getattr(method, digest) for digest in method.files.values()] == [ABC]
    weights.write_bytes(b"abcd")
    again = Recipe.from_json(read.to_json())  # what is known of the weights stays
    assert [method.settings() for method in again] == [method.settings() for method in read]
    weights.unlink()
    with pytest.raises(InputError, match="There is no weights file"):
        recipe.to_json()


def test_a_folder_with_recipe_and_weights_can_be_moved(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (there / "tuned").mkdir()
    (there / "tuned" / "w [1,  2].safetensors").write_bytes(b"abc")
    recipe = with_weights("tuned/w [1,  2].safetensors")
    recipe.save("tuned/best.json")
    data = json.loads((there / "tuned" / "best.json").read_text())
    assert {entry.get("weights", entry.get("proposal_weights")) for entry in data["methods"]} == {
        "w [1,  2].safetensors"
    }
    assert str(there) not in json.dumps(data)
    assert Recipe.load("tuned/best.json") == Recipe.of("tuned/best.json") == Recipe.parse(str(recipe)) == recipe
    shutil.move("tuned", "moved")
    (there / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    for place in ("../moved", there / "moved"):
        found = Recipe.load(Path(place) / "best.json")
        assert {Path(path).read_bytes() for path in found.paths()} == {b"abc"}
        assert found == with_weights(Path(place) / "w [1,  2].safetensors")


def test_weights_in_another_folder_are_named_from_there(there: Path) -> None:
    for name in ("weights", "recipes"):
        (there / name).mkdir()
    (there / "weights" / "w.pt").write_bytes(b"abc")
    for file in ("weights/w.pt", there / "weights" / "w.pt"):
        Recipe.of(Corrected(weights=file)).save("recipes/r.json")
        assert json.loads(Path("recipes/r.json").read_text())["methods"][0]["weights"] == "../weights/w.pt"
        assert Recipe.load("recipes/r.json") == Recipe.of(Corrected(weights="weights/w.pt"))


def test_files_say_slashes_on_every_system(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (there / "tuned\\w.pt").write_bytes(b"abc")
    monkeypatch.setattr(os, "sep", "\\")
    recipe = Recipe.of(Corrected(weights="tuned\\w.pt"))
    assert json.loads(recipe.to_json())["methods"][0]["weights"] == "tuned/w.pt"
    assert Recipe.parse(json.loads(recipe.to_json())["text"]) == Recipe.of(Corrected(weights="tuned/w.pt"))


def test_a_file_of_text_names_weights_from_its_folder_too(there: Path) -> None:
    (there / "mine").mkdir()
    (there / "mine" / "a.recipe").write_text("tome(r=8) + corrected(weights='w.pt')")
    assert Recipe.load("mine/a.recipe") == Recipe.parse("tome(r=8) + corrected(weights='mine/w.pt')")


def test_the_recipes_beside_the_results_load() -> None:
    files = sorted((Path(__file__).resolve().parents[1] / "results").glob("*.json"))
    assert len(files) >= 2
    for file in files:
        recipe = Recipe.load(file)
        assert recipe == Recipe.parse(json.loads(file.read_text())["text"])


def version_1(folder: Path, weights: str) -> Path:
    """A recipe file as the release before wrote it."""
    entry = {"name": "corrected", "weights": weights}
    text = f"corrected(weights={weights!r})"
    (folder / "old.json").write_text(json.dumps({"tokensieve": 1, "text": text, "methods": [entry]}))
    return folder / "old.json"


@pytest.mark.parametrize(
    ("weights", "lies", "found"),
    [
        ("tuned/c.st", "tuned/c.st", "tuned/c.st"),  # as it was written: relative to the working directory
        ("tuned\\c.st", "tuned/c.st", "tuned/c.st"),  # on Windows
        ("before/c.st", "tuned/c.st", "tuned/c.st"),  # from elsewhere, or after a move: beside the recipe
        ("/before/c.st", "tuned/c.st", "tuned/c.st"),
        ("c.st", "tuned/c.st", "tuned/c.st"),
        ("other/c.st", "other/c.st", "other/c.st"),
        ("before/c.st", "other/c.st", "tuned/before/c.st"),  # nowhere: what the file says
    ],
)
def test_files_of_version_1_are_read(there: Path, weights: str, lies: str, found: str) -> None:
    for name in ("tuned", "other"):
        (there / name).mkdir()
    (there / lies).write_bytes(b"abc")
    assert Recipe.load(version_1(Path("tuned"), weights)).paths() == [found]
    assert Recipe.from_json((there / "tuned" / "old.json").read_text()).paths() == [weights]


def test_a_file_of_version_1_that_may_mean_two_files_is_refused(there: Path) -> None:
    """The same command in two projects wrote the same names."""
    for project in ("one", "two"):
        (there / project / "tuned").mkdir(parents=True)
        (there / project / "tuned" / "c.st").write_text(project)
    file = version_1(there / "one" / "tuned", "tuned/c.st")
    os.chdir("two")
    with pytest.raises(
        RecipeError, match=r"which may be tuned/c\.st or .*one/tuned/c\.st: write the path into it in full"
    ):
        Recipe.load(file)


def test_a_file_is_written_whole_or_not_at_all(there: Path) -> None:
    (there / "best.json").write_text("before")
    with pytest.raises(InputError, match="no weights file"):
        Recipe.of(Corrected(weights="absent.st")).save("best.json")
    with pytest.raises(RecipeError, match="recipe file cannot hold"):
        Recipe.of(PaPr(keep=0.5, proposal=torch.nn.Conv2d(3, 8, 3))).save("best.json")
    with pytest.raises(InputError, match="there is no folder absent"):
        Recipe.of(ToMe(r=2)).save("absent/best.json")
    assert [(path.name, path.read_text()) for path in there.iterdir()] == [("best.json", "before")]


def test_which_recipes_name_a_file(there: Path) -> None:
    for name in ("w.st", "other.st"):
        (there / name).write_bytes(b"abc")
    Recipe.of(Corrected(weights="w.st")).save("one.json")
    (Recipe.of(ToMe(r=2)) + DynamicViT(keep=0.5, weights="w.st")).save("Two.JSON")
    Recipe.of(Corrected(weights="other.st")).save("other.json")
    for name, text in {"list.json": "[1]", "broken.json": "{", "front.json": '{"weights": "w.st"}'}.items():
        (there / name).write_text(text)
    (there / "noise.json").write_bytes(b"\xff\x00")
    (there / "folder.json").mkdir()
    assert {path.name for path in recipes_with(there / "w.st")} == {"one.json", "Two.JSON"}

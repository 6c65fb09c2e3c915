"""`tokensieve correct`: a recipe and its weights, or a sentence."""

import json
import shutil

import pytest

from tokensieve import Corrected, Recipe

pytestmark = pytest.mark.slow

RECIPE = "random(keep=0.5)"


def test_it_writes_a_recipe_that_other_commands_take(run, tmp_path):
    out = tmp_path / "corrected.json"
    words = ["--model", "nano_vit", "--data", "scenes", "--limit", 60]
    result = run("correct", *words, "--recipe", RECIPE, "--views", 2, "--out", out, "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert told["images"] == 60
    assert told["corrected_divergence"] < told["divergence"]
    assert told["correction"] == str(tmp_path / "corrected.safetensors")
    recipe = Recipe.load(out)
    assert [method.name for method in recipe] == ["papr", "corrected"]
    figures = [json.loads(run("eval", *words, "--recipe", recipe, "--json").out)["kl"] for recipe in (RECIPE, out)]
    assert figures[1] < figures[0]
    said = run("correct", *words, "--recipe", out, "--views", 2, "--out", out)
    assert said.code == 0
    assert "corrected" in said.out
    assert "Fitted on 60 pictures, each in 2 views" in said.out


WORDS = ["--model", "nano_vit", "--data", "scenes", "--limit", 60, "--views", 2]


def test_what_it_writes_can_be_moved(run, there, monkeypatch):
    (there / "tuned").mkdir()
    result = run("correct", *WORDS, "--recipe", RECIPE, "--out", "tuned/best.json", "--json")
    assert json.loads(result.out)["correction"] == "tuned/best.safetensors"
    (_, entry) = json.loads((there / "tuned" / "best.json").read_text())["methods"]
    assert entry["weights"] == "best.safetensors"
    shutil.move("tuned", "moved")
    (there / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    result = run("eval", *WORDS[:-2], "--recipe", "../moved/best.json", "--json")
    assert result.code == 0, result.err
    (_, entry) = json.loads(result.out)["recipe_json"]["methods"]
    assert entry["weights"] == "../moved/best.safetensors"


def test_weights_of_something_else_are_never_replaced(refused, there):
    """Of the model, of a proposal, of another recipe: `--out x.json` means x.safetensors too."""
    weights = there / "vit.safetensors"
    weights.write_bytes(b"abc")
    again = [*WORDS, "--recipe", RECIPE, "--out", "vit.json"]
    assert "vit.safetensors exists and does not belong to vit.json: give another --out" in refused("correct", *again)
    (there / "vit.json").write_text(Recipe.parse(RECIPE).to_json())
    assert "does not belong to vit.json" in refused("correct", *again)
    for name in ("vit", "copy"):
        Recipe.of(Corrected(weights="vit.safetensors")).save(f"{name}.json")
    assert "vit.safetensors exists and belongs to copy.json" in refused("correct", *again)
    assert weights.read_bytes() == b"abc"


def test_its_own_weights_are_replaced_and_go_where_no_correction_helps(run, there):
    weights = there / "vit.safetensors"
    weights.write_bytes(b"abc")
    Recipe.of(Corrected(weights="vit.safetensors")).save("vit.json")
    assert run("correct", *WORDS, "--recipe", RECIPE, "--out", "vit.json").code == 0
    assert weights.stat().st_size > 3
    assert Recipe.load("vit.json").paths() == ["vit.safetensors"]
    assert run("correct", *WORDS, "--recipe", "readout()", "--out", "vit.json").code == 0
    assert [path.name for path in there.iterdir()] == ["vit.json"]


def test_a_recipe_that_loses_nothing_is_left_as_it_is(run, tmp_path):
    words = ["--model", "nano_vit", "--data", "scenes", "--limit", 10, "--views", 1]
    result = run("correct", *words, "--recipe", "readout()", "--out", tmp_path / "same.json")
    assert result.code == 0
    assert "No correction helps" in result.out
    assert [path.name for path in tmp_path.iterdir()] == ["same.json"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--out", "corrected.safetensors"], "must end in .json"),
        (["--out", "nowhere/corrected.json"], "there is no folder"),
        (["--out", "c.json", "--limit", "3"], "Invalid value for '--limit'"),
        (["--out", "c.json", "--model", "nano_convnet"], "cannot be sieved"),
        (["--out", "c.json", "--model", "convnext_atto", "--no-pretrained"], "cannot take corrected"),
    ],
)
def test_what_cannot_be_corrected_is_refused(refused, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    given = [] if "--model" in words else ["--model", "nano_vit"]
    assert sentence in refused("correct", "--data", "scenes", "--recipe", "", *given, *words)
    assert not list(tmp_path.iterdir())

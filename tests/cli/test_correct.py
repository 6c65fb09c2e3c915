"""`tokensieve correct`: a recipe and its weights, or a sentence."""

import json

import pytest

from tokensieve import Recipe

RECIPE = "random(keep=0.5)"


def test_it_writes_a_recipe_that_other_commands_take(run, tmp_path):
    out = tmp_path / "corrected.json"
    words = ["--model", "nano_vit", "--data", "scenes", "--limit", 60]
    result = run("correct", *words, "--recipe", RECIPE, "--views", 2, "--out", out, "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert told["images"] == 60
    assert told["corrected_loss"] < told["loss"]
    assert told["correction"] == str(tmp_path / "corrected.safetensors")
    recipe = Recipe.from_json(out.read_text())
    assert [method.name for method in recipe] == ["papr", "corrected"]
    figures = [json.loads(run("eval", *words, "--recipe", recipe, "--json").out)["kl"] for recipe in (RECIPE, out)]
    assert figures[1] < figures[0]
    said = run("correct", *words, "--recipe", out, "--views", 2, "--out", out)
    assert said.code == 0
    assert "corrected" in said.out
    assert "Fitted on 60 pictures, each in 2 views" in said.out


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

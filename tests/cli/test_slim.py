"""`tokensieve slim`: the recipe that it writes, what it prints and draws, and what it refuses."""

import json

import numpy as np
import pytest
from PIL import Image

import tokensieve
from tokensieve import PatchSlimming, Recipe
from tokensieve.data import Preprocessing, image_set, load_batches

pytestmark = pytest.mark.versions

MODEL = ["--model", "nano_vit", "--threads", 1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Four pictures, and a file that is none."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(generator.integers(0, 255, (120, 130, 3), dtype=np.uint8)).save(root / f"{i}.png")
    (root / "broken.jpg").write_text("not a picture")
    return root


def test_it_writes_a_recipe_that_other_commands_take(run, pictures, tmp_path):
    recipe, chart = tmp_path / "recipe.json", tmp_path / "chart.png"
    options = ["--tolerance", 0.2, "--granularity", 40, "--out", recipe, "--plot", chart]
    result = run("slim", *MODEL, "--data", pictures, *options)
    assert result.code == 0, result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chart.png", "recipe.json"]
    assert "1 picture was left out" in " ".join(result.err.split())
    for word in ("patch_slimming, form A, 196 patches", "of the MACs saved", "tolerance 0.2", "4 images"):
        assert word in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    with Image.open(chart) as drawn:
        assert drawn.width > 1000
    (method,) = Recipe.load(recipe)
    assert isinstance(method, PatchSlimming)
    assert (method.grid, method.form, method.patches[-1]) == ((14, 14), "A", ())
    judged = run("eval", *MODEL, "--data", pictures, "--recipe", recipe, "--json")
    assert judged.code == 0, judged.err
    assert json.loads(judged.out)["tokens"]["per_block"] == [1 + len(kept) for kept in method.patches]


def test_json_tells_the_counts_and_errors(run, pictures, tmp_path):
    recipe = tmp_path / "recipe.json"
    options = ["--saving", 0.4, "--granularity", 40, "--form", "B", "--limit", 3, "--out", recipe]
    result = run("slim", *MODEL, "--data", pictures, *options, "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert record["saving"] >= 0.4
    assert record["macs"]["sieved"] == pytest.approx((1 - record["saving"]) * record["macs"]["dense"])
    assert max(record["errors"]) <= record["tolerance"]
    assert record["tokens"]["per_block"] == [1 + count for count in record["patches"]]
    assert record["recipe_json"] == json.loads(recipe.read_text())


def test_the_function_finds_what_the_command_writes(run, pictures, tmp_path):
    recipe = tmp_path / "recipe.json"
    result = run("slim", *MODEL, "--data", pictures, "--tolerance", 0.2, "--granularity", 40, "--out", recipe, "--json")
    assert result.code == 0, result.err
    model, mean, std = tokensieve.zoo.create("nano_vit")
    images = image_set(pictures, Preprocessing.of(model, mean, std))
    found = tokensieve.slim(model, load_batches(images, 8), tolerance=0.2, granularity=40)
    assert found.recipe == Recipe.load(recipe)
    assert json.loads(result.out)["errors"] == list(found.errors)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tolerance", 0.1, "--saving", 0.2], "--saving chooses the tolerance itself"),
        (["--saving", 25], "must be a share of the MACs in (0, 1)"),
        (["--form", "C"], "--form must be A or B, not 'C'"),
        (["--plot", "chart.jpeg"], "--plot must name a .png file"),
        (["--plot", "nowhere/chart.png"], "nowhere/chart.png cannot be written: there is no folder nowhere"),
        (["--granularity", 0], "Invalid value for '--granularity'"),
        (["--model", "test_vit2", "--no-pretrained"], "cannot be slimmed"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(
    refused, pictures, tmp_path, monkeypatch, options, sentence
):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused("slim", *MODEL, "--data", pictures, "--out", "recipe.json", *options)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_told_at_once(refused, pictures, tmp_path):
    assert "cannot be written" in refused("slim", *MODEL, "--data", pictures, "--out", tmp_path / "no" / "recipe.json")

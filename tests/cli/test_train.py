"""`tokensieve train`: what it writes, and what it refuses."""

import json

import pytest


def test_it_trains_one_of_the_pair_and_tells_how_far_it_is(run, tmp_path):
    folder = tmp_path / "nano"
    result = run("train", "nano", "--only", "nano_convnet", "--scenes", 64, "--workers", 0, "--out", folder, "--json")
    assert result.code == 0
    (trained,) = json.loads(result.out)["trained"]
    assert trained["model"] == "nano_convnet"
    assert trained["plan"]["images"] == 64
    assert trained["log"][-1]["images"] == 64
    assert "nano_convnet step 1 of 1" in result.err
    assert {path.name for path in folder.iterdir()} == {
        "nano_convnet.safetensors",
        "nano_convnet.csv",
        "nano_convnet.checkpoint.pt",
    }
    again = run("train", "nano", "--only", "nano_convnet", "--scenes", 64, "--workers", 0, "--out", folder)
    assert again.code == 0, "a finished training has nothing left to do"
    assert "nano_convnet.safetensors" in again.out.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nanno"], "There is nothing called 'nanno' to train; the nearest is nano"),
        (["nano", "--only", "vit"], "--only must be one of nano_convnet, nano_vit, nano_convnext, not 'vit'"),
        (["nano", "--scenes", "0"], "Invalid value for '--scenes'"),
    ],
)
def test_what_cannot_be_trained_is_refused(refused, arguments, sentence):
    assert sentence in refused("train", *arguments)


def test_another_plan_in_the_same_folder_is_refused_and_nothing_is_lost(run, refused, tmp_path):
    options = ["--only", "nano_convnet", "--workers", 0, "--out", tmp_path]
    assert run("train", "nano", "--scenes", 64, *options).code == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert "another plan" in refused("train", "nano", "--scenes", 128, *options)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}

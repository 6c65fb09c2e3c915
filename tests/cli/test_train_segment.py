"""`tokensieve train segment` and `train dtop`: what they write, and what they refuse."""

from __future__ import annotations

import json

import pytest

from tests import segmentation_sets as made

MODEL = [
    "--model", "test_vit", "--no-pretrained", "--head-args", '{"exits": [1, 3, 5], "width": 16, "heads": 2}',
    "--crop", "32x48",
]  # fmt: skip
SHORT = ["--steps", 2, "--batch", 2, "--warmup", 1, "--validate-every", 1, "--workers", 0, "--precision", "fp32"]
EXITS = ["--recipe", "dtop(threshold=0.34, keep_per_class=1)"]


@pytest.fixture
def data(tmp_path):
    root = made.plain(tmp_path / "set")
    return ["--images", root, "--validation", root, "--classes", 3]


@pytest.mark.slow
def test_a_base_and_exits_from_it(run, data, tmp_path):
    out = tmp_path / "base"
    result = run("train", "segment", *data, *MODEL, *SHORT, "--out", out, "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    (trained,) = record["trained"]
    assert trained["model"] == "segvit"
    assert trained["plan"]["images"] == 4
    assert trained["log"][-1]["validation_miou"] >= 0
    assert record["data"]["images"]["files"]["read"] == 3
    assert "segvit step 1 of 2" in result.err
    assert "validation mIoU" in result.err
    expected = {f"segvit{ending}" for ending in (".safetensors", ".json", ".csv", ".checkpoint.pt")}
    assert {path.name for path in out.iterdir()} == expected
    base = out / "segvit.safetensors"
    result = run(
        "train", "dtop", *data, *SHORT, *EXITS, "--base", base, "--trainable", "heads", "--out", tmp_path / "x"
    )
    assert result.code == 0, result.err
    assert "segvit_dtop" in result.out
    assert "validation mIoU" in result.out
    told = ["--segmenter", base, "--images", tmp_path / "set", "--layout", "folders", "--recipe", EXITS[1]]
    result = run("segment", *told, "--out", tmp_path / "masks", "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert record["scores"].keys() == {"miou", "pixel_accuracy", "iou"}
    assert record["macs"]["sieved"] != record["macs"]["dense"]
    assert 0 <= record["agreement"] <= 100
    assert record["files"] == {"of": "pictures", "total": 3, "read": 3, "failed": 0, "skipped": {}}
    assert len(list((tmp_path / "masks").iterdir())) == 3
    result = run("segment", "--segmenter", base, "--images", tmp_path / "set" / "images", "--limit", 2)
    assert result.code == 0, result.err
    assert "2 of 3 pictures read" in result.out
    anew = run("train", "dtop", *data, *MODEL, *SHORT, *EXITS, "--out", tmp_path / "y", "--json")
    assert anew.code == 0, anew.err
    assert json.loads(anew.out)["trained"][0]["model"] == "segvit_dtop"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["segment"], "Missing option '--images'"),
        (["segment", "--images", "nowhere"], "nowhere does not exist"),
        (["segment", "--images", ".", "--layout", "ade"], "There is no layout 'ade'"),
        (["segment", "--base", "x"], "No such option"),
        (
            ["dtop", "--images", ".", "--base", "x", "--model", "test_vit"],
            "--model cannot be given with --base",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(refused, there, arguments, sentence):
    assert sentence in refused("train", *arguments)


def test_bad_options_are_refused(refused, data):
    words = ["train", "segment", *data]
    assert "--crop must be" in refused(*words, "--crop", "32x")
    assert "--head-args must be a JSON object" in refused(*words, "--head-args", "[1]")
    assert "There is no head 'segvi'" in refused(*words, "--head", "segvi")
    assert "trainable must be all or heads" in refused(*words, "--trainable", "none")


def test_help_of_each(run):
    for kind, option in (("segment", "--head-args"), ("dtop", "--base")):
        result = run("train", kind, "--help")
        assert result.code == 0
        assert f"tokensieve train {kind}" in result.out
        assert option in result.out
    assert "tokensieve train segment" in run("train", "--help").out.replace("\n", " ")

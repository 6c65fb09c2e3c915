"""`tokensieve demo`: the bundled pair and any other model, what is printed and what is written."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.odd_clips import numbered, write
from tokensieve.cli.demo import task_of
from tokensieve.zoo import BUNDLED

pytestmark = pytest.mark.slow

QUICK = ["--seconds", 0, "--batch", 2, "--threads", 1]
OTHER = ["--model", "test_vit", "--no-pretrained", *QUICK]

untrained = pytest.mark.skipif("nano_video" not in BUNDLED, reason="the weights of nano_video are not in the package")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(generator.integers(0, 255, (120, 160, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_text("not a picture")
    return folder


def test_the_bundled_pair_reads_fresh_scenes(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("demo", "--scenes", 60, *QUICK, "--json")
    assert result.code == 0
    record = json.loads(result.out)
    ours, random, merging = record["rows"]
    assert (ours["label"], random["label"], merging["label"]) == (
        "papr(keep=0.4, proposal=nano_convnet)",
        "random patches",
        "merging alone",
    )
    assert record["pictures"] == 60
    assert ours["dense_right"] > 90
    assert ours["right"] >= ours["dense_right"] - 5
    assert random["right"] < ours["right"] - 15, "the contrast is the demonstration"
    assert merging["macs"] == pytest.approx(ours["macs"], rel=0.03)
    assert ours["macs_ratio"] == record["macs"]["ratio"] > 2
    assert record["out"] == ["tokensieve-demo.png", "tokensieve-demo.html"]
    assert Image.open(tmp_path / "tokensieve-demo.png").width > 1000
    page = (tmp_path / "tokensieve-demo.html").read_text()
    assert f"{ours['right']:.1f}" in page
    assert page.count("<img") > 20


def test_every_seed_draws_other_scenes(run, tmp_path):
    rows = []
    for seed in (1, 1, 5):
        options = ["--scenes", 8, "--seed", seed, "--out", tmp_path / "d.html", *QUICK, "--json"]
        (row,) = json.loads(run("demo", "--recipe", "tome(r=24)", *options).out)["rows"]
        rows.append((row["right"], row["cosine"]))
    assert rows[0] == rows[1] != rows[2]


def test_another_model_reads_the_users_photographs(run, photographs, tmp_path):
    out = tmp_path / "mine.html"
    result = run("demo", photographs, *OTHER, "--recipe", "papr(keep=0.5, proposal=test_resnet)", "--out", out)
    assert result.code == 0
    assert "papr(keep=0.5," in result.out
    assert "random patches" in result.out
    assert "right" not in result.out, "nobody said what is right"
    assert "broken.jpg" in result.err
    assert out.read_text().count("<figure") >= 3 * 4


def test_another_model_reads_the_photographs_that_are_at_hand(run, tmp_path):
    result = run("demo", *OTHER, "--recipe", "tome(r=8)", "--out", tmp_path / "d.html", "--json")
    record = json.loads(result.out)
    assert record["pictures"] >= 8
    assert [row["label"] for row in record["rows"]] == ["tome(r=8)"]


def test_the_bundled_segmenter_is_left_early(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert task_of("nano_segmenter") == task_of("base/segvit.safetensors") == "segment"
    assert task_of(None) == task_of("nano_vit") == task_of("deit_tiny_patch16_224") == "classify"
    result = run("demo", "--task", "segment", "--scenes", 8, *QUICK, "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    rows = {row["label"]: row for row in record["rows"]}
    ours = record["rows"][0]
    assert ours["label"] == "dtop, threshold 0.95"
    assert record["figure"] == "miou"
    assert ours["dense_right"] > 60
    assert ours["right"] > ours["dense_right"] - 3
    assert ours["agreement"] > 97
    assert ours["macs_ratio"] > 1.3
    assert record["macs"]["ratio"] == pytest.approx(ours["macs_ratio"], rel=1e-6)
    thresholds = sorted(row["macs"] for label, row in rows.items() if label.startswith("dtop"))
    assert len(thresholds) == 4
    assert thresholds[0] < thresholds[-1]
    for rival in ("merging alone", "random patches"):
        assert rows[rival]["macs"] <= ours["macs"] * 1.001
        assert rows[rival]["macs"] > 0.9 * ours["macs"]
    assert rows["random patches"]["right"] < ours["right"] - 5, "the contrast is the demonstration"
    page = (tmp_path / "tokensieve-demo.html").read_text()
    assert page.count("stays to the last, block 5") > 10
    assert "mean IoU" in page
    assert Image.open(tmp_path / "tokensieve-demo.png").width > 1000


@untrained
def test_videos_are_shown_over_time(run, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    result = run("demo", "--task", "video", "--scenes", 8, *QUICK, "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert [row["label"] for row in record["rows"]] == [
        "papr(keep=0.4, proposal=nano_video_proposal, significance='mean*motion')",
        "motion alone",
        "random patches",
        "merging alone",
    ]
    assert (record["task"], record["model"], record["pictures"]) == ("video", "nano_video", 8)
    ours, motion, random, merging = record["rows"]
    assert motion["macs"] == random["macs"] < ours["macs"]  # by what the proposal costs
    assert merging["macs"] == pytest.approx(ours["macs"], rel=0.03)
    assert None not in (ours["right"], ours["dense_right"])
    page = (tmp_path / "tokensieve-demo.html").read_text()
    assert page.count("<figure>") == 2 * 4 * 6  # clips, moments, columns
    assert "8 videos" in page


def test_ones_own_videos(run, refused, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "v" / "clip.mp4", numbered(40))
    (tmp_path / "v" / "broken.mp4").write_text("no video")
    recipe = ["--recipe", "papr(keep=0.5, significance=motion)"]
    result = run("demo", "v", "--model", "nano_video", "--no-pretrained", *recipe, *QUICK, "--out", "d.html", "--json")
    record = json.loads(result.out)
    assert (record["pictures"], [row["right"] for row in record["rows"]]) == (1, [None])
    assert "1 video was left out" in result.err
    assert "v/clip.mp4" in (tmp_path / "d.html").read_text()
    assert "and VisionTransformer does not" in refused("demo", "v", "--task", "video", *OTHER)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--task", "segment", *OTHER], "predict a class for every pixel, and VisionTransformer does not"),
        (["--task", "segmnt"], "--task 'segmnt' is unknown; the nearest is segment: choose one of classify, segment"),
        (["absent.jpg"], "absent.jpg does not exist"),
        (["--model", "vit_nano"], "knows a model 'vit_nano'"),
        (["--recipe", "papr(keep=0)"], "keep must be a number in (0, 1]"),
        (["--out", "demo.pdf"], "must end in .png"),
        (["--scenes", "2"], "Invalid value for '--scenes'"),
    ],
)
def test_what_cannot_be_shown_is_refused_and_nothing_is_written(refused, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused("demo", *arguments)
    assert not list(tmp_path.iterdir())

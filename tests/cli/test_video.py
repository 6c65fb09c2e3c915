"""Commands on models that read videos: bench, eval, show, tune, export."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("av")
pytest.importorskip("transformers")

from tests.odd_clips import numbered, write
from tokensieve import ModelSpec, sieve
from tokensieve.data import VideoPreprocessing, read_clips
from tokensieve.zoo import create

RECIPE = "papr(keep=0.5, significance=motion)"
TINY: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32,
    "num_frames": 4, "patch_size": 8, "id2label": {0: "jump", 1: "run"}, "label2id": {"jump": 0, "run": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options for a small VideoMAE with two classes, in a folder as transformers writes it."""
    folder = tmp_path_factory.mktemp("model") / "mae"
    torch.manual_seed(2)
    settings = {name: value for name, value in TINY.items() if name not in ("id2label", "label2id")}
    made = create("videomae_base", pretrained=False, args={**settings, "num_labels": 2}).model
    made.config.id2label, made.config.label2id = TINY["id2label"], TINY["label2id"]
    made.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    return ["--model", f"transformers/{folder}", "--threads", "1"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of two classes, one of them broken, and a text beside them."""
    folder = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(("jump/0.mp4", "jump/1.mp4", "run/0.mp4")):
        write(folder / name, numbered(24 + 6 * number))
    (folder / "run" / "text.mp4").write_text("no video")
    (folder / "notes.txt").write_text("notes")
    return folder


def record(result: Any) -> dict[str, Any]:
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def said(result: Any) -> str:
    """What a command printed, in one line: a model in a deep folder has a long name."""
    assert result.code == 0, result.err
    return " ".join(result.out.split())


def test_bench_measures_clips(run: Any, model: list[str], videos: Path) -> None:
    quick = ["--seconds", "0", "--batch", "1", "--recipe", RECIPE, "--frames", "4", "--stride", "1"]
    result = run("bench", *model, *quick, "--data", videos, "--pretrained")
    for word in ("4 frames of 32 x 32", "3 videos decoded", "videos a second", "ms a clip", "G a clip", "on 3 videos"):
        assert word in said(result)
    assert "1 video was left out" in result.err


def test_eval_averages_views_and_writes_each_answer(run: Any, model: list[str], videos: Path, there: Path) -> None:
    options = ["--data", videos, "--recipe", RECIPE, "--views", "2x3", "--stride", "2", "--batch", "6"]
    found = record(run("eval", *model, *options, "--predictions", "answers.csv", "--json"))
    assert found["images"] == 3
    assert found["preprocessing"]["views"] == "2x3"
    assert set(found["dense"]) == {"top1"}
    with (there / "answers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(Path(row["path"]).name, row["label"], row["label_name"]) for row in rows] == [
        ("0.mp4", "0", "jump"), ("1.mp4", "0", "jump"), ("0.mp4", "1", "run"),
    ]  # fmt: skip
    assert rows[0]["clips"] == "0.00-0.20 0.57-0.77"
    dense = ModelSpec(model[1], "").open().dense
    own = VideoPreprocessing((32, 32), (0.5,) * 3, (0.25,) * 3, frames=4, stride=2, views="2x3")
    for row in rows:
        with torch.no_grad():
            probabilities = dense(read_clips(row["path"], own).clips).logits.softmax(-1).mean(0)
        assert int(row["dense"]) == int(probabilities.argmax())
        assert row["dense_name"] == ("jump", "run")[int(row["dense"])]
        assert float(row["dense_probability"]) == pytest.approx(float(probabilities.max()), abs=1e-5)
    result = run("eval", *model, *options)
    for word in ("every 2nd frame, 2x3 views", "3 videos read, 1 failed, 1 skipped", "GMAC a clip", "top-1"):
        assert word in said(result)
    assert "1 video was left out" in result.err


def test_eval_reads_lists_with_their_root(run: Any, model: list[str], videos: Path, there: Path) -> None:
    (there / "test.csv").write_text("jump/0.mp4,jump\nrun/0.mp4,run\nrun/9.mp4,run\n")
    options = ["--data", "test.csv", "--root", videos, "--recipe", RECIPE, "--sampling", "uniform"]
    found = record(run("eval", *model, *options, "--json"))
    assert (found["images"], found["preprocessing"]["sampling"]) == (2, "uniform")
    assert found["failures"][0]["reason"] == "does not exist"
    assert found["dense"] is not None


def test_show_writes_a_film_and_a_page(run: Any, model: list[str], videos: Path, there: Path) -> None:
    result = run("show", videos, *model, "--recipe", RECIPE, "--stride", "2")
    assert sorted(path.name for path in there.iterdir()) == ["tokensieve-show.html", "tokensieve-show.mp4"]
    for word in ("jump/0.mp4", "4 frames of 32 x 32", "from", "tokensieve-show.mp4"):
        assert word in said(result)
    assert "1 video was left out" in result.err
    page = (there / "tokensieve-show.html").read_text()
    assert page.count("<figure>") == 3 * 3 * 2  # videos, layers, moments
    assert "3 of 4 videos" in page
    import av

    with av.open("tokensieve-show.mp4") as film:
        frames = sum(1 for _ in film.decode(video=0))
    assert frames == 3 * 4 + 1


@pytest.mark.versions
def test_show_goes_over_the_whole_of_a_video(run: Any, model: list[str], videos: Path, there: Path) -> None:
    options = ["--recipe", f"{RECIPE} + tome(r=2)", "--stride", "2", "--whole", "--out", "a.gif", "--out", "a.png"]
    found = record(run("show", videos / "run" / "0.mp4", *model, *options, "--json"))
    spans = [(round(30 * clip["start"]), round(30 * clip["end"])) for clip in found["clips"]]
    assert spans == [(0, 6), (8, 14), (16, 22), (24, 30), (28, 34)]
    assert all(clip["kept"] == sum(clip["kept_per_moment"]) == 16 for clip in found["clips"])
    assert {clip["dense"]["name"] for clip in found["clips"]} <= {"jump", "run"}
    with Image.open("a.gif") as gif:
        assert gif.n_frames == 5 * 4
    assert (there / "a.png").exists()


def test_show_takes_several_clips_of_a_video(run: Any, model: list[str], videos: Path, there: Path) -> None:
    options = ["--recipe", RECIPE, "--stride", "1", "--views", "3x1", "--out", "a.html"]
    found = record(run("show", videos / "jump" / "0.mp4", *model, *options, "--json"))
    assert [round(30 * clip["start"]) for clip in found["clips"]] == [0, 10, 20]


def test_what_makes_no_sense_is_refused(refused: Any, run: Any, model: list[str], videos: Path, there: Path) -> None:
    recipe = ["--recipe", RECIPE]
    image = ["--model", "test_vit", "--no-pretrained", "--recipe", ""]
    Image.new("RGB", (30, 30)).save("picture.png")
    assert "views" in refused("show", videos, *model, *recipe, "--views", "5x3")
    assert refused("show", videos, *model, *recipe, "--keep", "0.5,0.3").startswith("--keep, --proposals and --compare")
    assert "read videos" in refused("show", "picture.png", *image, "--out", "a.mp4")
    assert refused("eval", "--data", "picture.png", *image, "--stride", "2").startswith(
        "--stride is for models that read videos, and test_vit reads pictures"
    )
    assert "holds no videos" in refused("eval", "--data", there, *model, *recipe)
    assert "holds no pictures" in refused("eval", "--data", videos, *image)
    assert "such as 5x3" in refused("eval", "--data", videos, *model, *recipe, "--views", "2x2")
    assert "tokensieve eval" in refused("tune", "--data", videos, *model, "--macs", "1.5", "--views", "5x3")
    assert "reads images, and this model reads video" in refused("bench", *model, "--recipe", "papr(keep=0.5)")
    why = refused("bench", *model, "--recipe", "papr(keep=0.5, proposal=x3d_s)", "--pretrained")
    assert "proposal_weights=FILE" in why


@pytest.mark.slow
def test_tune_finds_recipes_for_videos(
    run: Any, model: list[str], videos: Path, there: Path, brief_timing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    brief_timing(monkeypatch)
    options = ["--macs", "1.4", "--trials", "4", "--holdout", "0", "--limit", "4", "--stride", "1", "--out", "found"]
    found = record(run("tune", "--data", videos, *model, *options, "--json"))
    assert found["images"] == 3
    titles = {point["title"] for point in found["front"]["points"]}
    assert any("motion" in title for title in titles)
    best = sieve(ModelSpec(model[1], "").open().dense, there / "found" / "best.json")
    assert best(torch.zeros(1, 4, 3, 32, 32)).logits.shape == (1, 2)


@pytest.mark.slow
def test_export_writes_clips(run: Any, model: list[str], there: Path) -> None:
    pytest.importorskip("onnxruntime")
    found = record(run("export", *model, "--recipe", RECIPE, "--out", "fast.onnx", "--json"))
    assert found["inputs"]["images"] == ["batch", 4, 3, 32, 32]
    assert max(found["differences"].values()) <= 1e-4
    import onnx

    own = json.loads({each.key: each.value for each in onnx.load("fast.onnx").metadata_props}["preprocessing"])
    assert VideoPreprocessing(**own) == VideoPreprocessing((32, 32), (0.5,) * 3, (0.25,) * 3, frames=4)

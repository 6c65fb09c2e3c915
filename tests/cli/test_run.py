"""`tokensieve run`: what it prints, writes and refuses."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("pyarrow")

from tests.jobs.conftest import table
from tests.pictures import two_classes

MODEL = ["--model", "nano_vit", "--recipe", "papr(keep=0.4, proposal=nano_convnet)", "--threads", 1, "--workers", 0]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    return two_classes(tmp_path / "set")


def test_rows_are_written_and_counted(run, folder, tmp_path):
    told = run("run", folder, "--out", tmp_path / "out", *MODEL, "--json")
    record = json.loads(told.out)
    assert told.code == 0
    assert (record["items"], record["rows"], record["errors"]) == (7, 6, 1)
    assert [row["id"] for row in table(tmp_path / "out")][:2] == ["cat/0.png", "cat/1.png"]
    again = run("run", folder, "--out", tmp_path / "out", *MODEL)
    assert "6 of 7 items, 7 of them before" in again.out
    assert "Decoding is the limit" not in again.err, "nothing was read"


def test_classes_of_a_file_are_the_labels(run, folder, tmp_path):
    (tmp_path / "digits.txt").write_text("\n".join(f"digit {i}" for i in range(10)))
    run("run", folder, "--out", tmp_path / "out", *MODEL, "--classes", tmp_path / "digits.txt", "--k", 1)
    (row, *_) = table(tmp_path / "out")
    assert set(row) == {"id", "top1_class", "top1_label", "top1_probability"}
    assert row["top1_label"] == f"digit {row['top1_class']}"


def test_a_dry_run_tells_the_time_and_writes_nothing(run, folder, tmp_path):
    told = run("run", folder, *MODEL, "--dry-run", "--batch", 2, "--json")
    record = json.loads(told.out)
    assert (record["items"], record["left"]) == (7, 7)
    assert record["seconds"] > 0
    assert sorted(each.name for each in tmp_path.iterdir()) == ["set"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "Give --out FOLDER to write the rows to"),
        (["--out", "out", "--devices", "cpu,,cpu"], "--devices must be names of devices"),
        (["--out", "out", "--engine", "ray", "--actors", "few"], "--actors must be a number"),
        (["--out", "out", "--actors", "2"], "actors is a setting of the ray engine"),
        (["--out", "nowhere/out"], "there is no folder"),
        (["--out", "out", "--output", "embeddings", "--pooling", "mean"], "--pooling 'mean' is not supported by"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(refused, folder, there, options, told):
    assert told in refused("run", folder, *MODEL, *options)


def test_a_model_that_is_not_there_is_a_sentence(refused, folder, there):
    assert "There is no weights file gone.pt" in refused(
        "run", folder, "--out", "out", "--model", "nano_vit", "--weights", "gone.pt"
    )
    assert "knows a model 'nano_wit'" in refused("run", folder, "--out", "out", "--model", "nano_wit")


@pytest.mark.slow
def test_videos(run, tmp_path):
    pytest.importorskip("av")
    pytest.importorskip("transformers")
    from tests.odd_clips import numbered, write

    folder = tmp_path / "videos"
    for number in range(2):
        write(folder / f"{number}.mp4", numbered(40))
    (folder / "text.mp4").write_text("no video")
    model = ["--model", "nano_video", "--no-pretrained", "--recipe", "tome(r=4)", "--threads", 1, "--workers", 0]
    told = run("run", folder, "--out", tmp_path / "out", *model, "--views", "2x1", "--k", 2, "--json")
    assert told.code == 0, told.err
    rows = table(tmp_path / "out")
    assert [row["id"] for row in rows] == ["0.mp4", "1.mp4"]
    assert all(0 <= row["start"] < row["end"] <= 40 / 30 for row in rows)
    assert json.loads(told.out)["errors"] == 1

"""`tokensieve tune`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading

import pytest
import timm
from safetensors.torch import save_file

import tokensieve.search.evaluator as evaluator_module
from tests.pictures import two_classes
from tokensieve import Corrected, InputError, Recipe
from tokensieve.segmentation.plan import SegmenterPlan

pytestmark = pytest.mark.slow

MODEL = ["--model", "test_vit", "--no-pretrained", "--threads", 1, "--batch", 8]
QUICK = ["--proposal", "none", "--family", "tome", "--family", "scheduled-guarded", "--trials", 4]


@pytest.fixture(autouse=True)
def _quick(brief_timing, monkeypatch):
    brief_timing(monkeypatch)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return two_classes(tmp_path_factory.mktemp("pictures"), each=6)


def test_a_front_is_printed_and_written(run, pictures, there):
    result = run("tune", "--data", pictures, *MODEL, *QUICK, "--macs", 1.3)
    assert result.code == 0, result.err
    assert "1 picture was left out" in result.err
    for word in ("test_vit, 160 x 160, random weights", "tome alone", "scheduled-guarded", "fewer MACs", "best.json"):
        assert word in " ".join(result.out.split())
    assert max(map(len, result.out.splitlines())) <= 80
    folder = there / "tokensieve-tune"
    assert Recipe.load(folder / "best.json").methods
    assert {"front.csv", "front.json", "front.png"} <= {path.name for path in folder.iterdir()}


def test_json_is_one_object_and_storage_goes_on(run, pictures, there):
    save_file(timm.create_model("test_vit").state_dict(), "vit.safetensors")
    model = ["--model", "test_vit", "--weights", "vit.safetensors", "--batch", 8]
    command = ["tune", "--data", pictures, *model, *QUICK, "--macs", 1.3, "--storage", "trials.db", "--json"]
    first = json.loads(run(*command).out)
    again = json.loads(run(*command).out)
    assert first["front"]["best"]["recipe"] == again["front"]["best"]["recipe"] == again["recipe"]
    assert first["front"]["trials"] == again["front"]["trials"]
    assert first["front"]["best"]["ratio"] >= 1.3
    assert first["macs"]["ratio"] == first["front"]["best"]["ratio"]
    assert first["images"] == 12
    assert len(first["failures"]) == 1
    assert first["front"]["dense"]["accuracy"] == {"search": None, "heldout": None}


def test_labels_tell_accuracy(run, pictures, there):
    (there / "classes.json").write_text(json.dumps({"cat": 3, "dog": 5}))
    arguments = ["--macs", 1.3, "--classes", "classes.json", "--trials", 0, "--family", "tome", "--proposal", "none"]
    result = run("tune", "--data", pictures, *MODEL, *arguments)
    assert result.code == 0, result.err
    assert "top-1" in result.out


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """The file of a segmenter with random weights."""
    head_args = {"exits": [1, 2, 4], "width": 8, "heads": 2, "layers": 1}
    small = {"patch_size": 4, "dynamic_img_size": True}
    plan = SegmenterPlan("test_vit", ("a", "b", "c"), "segvit", head_args, small, crop=(32, 48), stride=(8, 2))
    model, plan = plan.build()
    file = tmp_path_factory.mktemp("segmenter") / "segvit.safetensors"
    save_file(model.state_dict(), file)
    plan.save(file.with_suffix(".json"))
    return file


def test_exits_of_a_segmenter(run, pictures, there, segmenter):
    quick = ["--proposal", "none", "--family", "scheduled-dtop", "--family", "tome", "--trials", 2, "--batch", 4]
    command = ["tune", "--segmenter", segmenter, "--data", pictures, *quick, "--macs", 1.1, "--threads", 1]
    result = run(*command)
    assert result.code == 0, result.err
    for word in ("segvit.safetensors, 32 x 48, weights from file", "scheduled-dtop", "tome alone", "KL per pixel"):
        assert word in " ".join(result.out.split())
    record = json.loads((there / "tokensieve-tune" / "front.json").read_text())
    assert {point["family"] for point in record["points"]} == {"scheduled-dtop", "tome"}
    only = [*command[:7], "--family", "scheduled-dtop", "--trials", 0, "--batch", 4, "--macs", 1.1, "--json"]
    told = json.loads(run(*only).out)
    point = told["front"]["best"]
    assert told["macs"]["sieved"] == point["macs"] < told["macs"]["dense"]
    assert told["tokens"]["per_block"][-1] < told["tokens"]["dense"] == 96
    assert point["heldout_macs"] > 0


def test_what_a_segmenter_does_not_go_with(refused, pictures, there, segmenter, tmp_path):
    command = ["tune", "--data", pictures, "--macs", 1.1]
    assert "--segmenter has its own weights" in refused(*command, "--segmenter", segmenter, "--size", 64)
    assert "cannot be read as the plan of a segmenter" in refused(*command, "--segmenter", "other.safetensors")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "exactly one budget"),
        (["--macs", 1.3, "--time", 1.2], "given macs and time"),
        (["--macs", 0.5], "must be larger than 1"),
        (["--macs", 1.3, "--labels"], "the 2 class folders are not the 1000 classes"),
        (["--macs", 1.3, "--proposal-weights", "a.pt", "--proposal-weights", "b.pt"], "2 --proposal-weights for 1"),
        (["--macs", 1.3, "--proposal", "resnet18", "--proposal-weights", "a.pt"], "no weights file a.pt"),
        (["--macs", 1.3, "--family", "tomme"], "the nearest"),
        (["--macs", 1.3, "--out", "nowhere/found"], "nowhere"),
        (["--macs", 1.3, "--out", "file"], "file is a file: give the name of a folder"),
        (["--macs", 1.3, "--no-correct", "--out", "file"], "file is a file: give the name of a folder"),
        (["--macs", 1.3, "--storage", "nowhere/trials.db", *QUICK], "there is no folder nowhere"),
    ],
)
def test_one_sentence_for_what_cannot_be_done_and_nothing_is_written(refused, pictures, there, arguments, sentence):
    (there / "file").write_text("mine")
    assert sentence in refused("tune", "--data", pictures, *MODEL, *arguments)
    assert [path.read_text() for path in there.iterdir()] == ["mine"]


def test_a_search_that_finds_nothing_writes_nothing(run, pictures, there):
    result = run("tune", "--data", pictures, *MODEL, *QUICK, "--macs", 500)
    assert (result.code, result.out) == (2, "")
    assert "No recipe could be evaluated" in result.err.splitlines()[-1]
    assert not list(there.iterdir())


def test_a_file_gets_a_line_a_round_and_what_is_left_out_at_once(run, pictures, there, monkeypatch):
    def unreachable(*arguments, **settings):
        raise InputError("The pretrained weights of resnet18 could not be loaded.")

    monkeypatch.setattr(evaluator_module.Evaluator, "map_of", unreachable)
    families = ["--family", "tome", "--family", "scheduled-guarded", "--trials", 8]
    result = run("tune", "--data", pictures, *MODEL, *families, "--proposal", "resnet18", "--macs", 1.3)
    assert result.code == 0, result.err
    lines = result.err.splitlines()
    left_out = lines.index("tokensieve: resnet18 was left out: The pretrained weights of resnet18 could not be loaded.")
    rounds = [line for line in lines if "recipes tried" in line]
    assert left_out < lines.index(rounds[0])
    assert rounds[0].startswith("tokensieve: 1.30x, 2 families started, best divergence ")
    assert len({line.split(",")[0] for line in rounds}) == 5, "every budget has its lines"
    assert lines.index(rounds[-1]) < lines.index("tokensieve: Measuring speed.")
    assert max(map(len, lines)) < 200


def test_what_was_measured_is_said_at_the_end(run, pictures, there):
    out = " ".join(run("tune", "--data", pictures, *MODEL, *QUICK, "--macs", 1.3).out.split())
    assert re.search(
        r"Measured here at batch \d+: \d\.\d\dx the dense speed \[.*\], where it has 1\.3\dx fewer MACs", out
    )
    assert "The machine was " in out
    assert "--time X" in out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_search_and_keeps_what_was_found(pictures, there, number):
    arguments = ["--data", pictures, *MODEL, "--proposal", "none", "--family", "scheduled-guarded", "--macs", 1.3]
    command = [sys.executable, "-m", "tokensieve", "tune", *map(str, arguments), "--trials", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        alarm = threading.Timer(120, process.kill)
        alarm.start()
        for line in process.stderr:
            if "families started" in line:
                break
        process.send_signal(number)
        out, err = process.communicate()
        alarm.cancel()
    assert process.returncode == 0, err
    assert "ended early (interrupted)" in " ".join(out.split())
    assert Recipe.load(there / "tokensieve-tune" / "best.json").methods


def test_the_correction_of_an_earlier_run_goes_where_there_is_none(run, refused, pictures, there):
    folder = there / "tokensieve-tune"
    folder.mkdir()
    weights = folder / "correction.safetensors"
    weights.write_bytes(b"abc")
    for name in ("best", "good"):
        Recipe.of(Corrected(weights=weights)).save(folder / f"{name}.json")
    command = ["tune", "--data", pictures, *MODEL, *QUICK, "--macs", 1.3]
    assert "correction.safetensors belongs to good.json: give another --out" in refused(*command)
    assert run(*command, "--no-correct").code == 0  # it writes none, and leaves what another recipe needs
    assert weights.read_bytes() == b"abc"
    (folder / "good.json").unlink()
    result = run(*command)  # too few pictures to correct on
    assert result.code == 0, result.err
    assert not weights.exists()
    assert Recipe.load(folder / "best.json").paths() == []


def test_the_trials_may_be_kept_in_the_folder_that_is_made(run, pictures, there):
    storage = ["--out", "found", "--storage", "found/trials.db"]
    assert run("tune", "--data", pictures, *MODEL, *QUICK, "--macs", 1.3, *storage).code == 0
    assert {"trials.db", "best.json"} <= {path.name for path in (there / "found").iterdir()}

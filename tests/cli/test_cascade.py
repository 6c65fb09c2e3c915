"""Cascades on the command line: eval, bench, export and tune take them, other commands say that they do not."""

from __future__ import annotations

import json
import sys

import pytest

from tokensieve import CascadeRecipe

pytestmark = pytest.mark.slow

FIRST = "papr(keep=0.3, significance=centre)"
CASCADE = f'cascade(recipes=("{FIRST}", ""), thresholds=(0.6,), score="margin")'
SCENES = ["--model", "nano_vit", "--data", "scenes", "--threads", 1]


def test_eval_tells_the_agreement_and_what_was_read(run):
    result = run("eval", *SCENES, "--limit", 30, "--recipe", CASCADE, "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    first = json.loads(run("eval", *SCENES, "--limit", 30, "--recipe", FIRST, "--json").out)
    members = told["cascade"]["members"]
    assert [member["recipe"] for member in members] == [FIRST, ""]
    share = members[1]["share"]
    assert 0 < share < 1
    assert members[0]["macs"] == pytest.approx(first["macs"]["sieved"])
    assert members[1]["macs"] < told["macs"]["dense"]
    assert told["macs"]["sieved"] == pytest.approx(members[0]["macs"] + share * members[1]["macs"])
    assert told["agreement"] > first["agreement"]
    assert told["agreement_low"] < told["agreement"] <= told["agreement_high"]
    assert told["recipe_json"] == json.loads(CascadeRecipe.parse(CASCADE).to_json())
    page = " ".join(run("eval", *SCENES, "--limit", 30, "--recipe", CASCADE).out.split())
    assert "a cascade" in page
    assert "go on if margin is below 0.6" in page


def test_bench_tells_average_and_worst(run, monkeypatch):
    module = sys.modules["tokensieve.cli.bench"]  # the package's attribute of that name is the command
    monkeypatch.setattr(module, "POOL", 16)
    monkeypatch.setattr(module, "COMPARED", 16)
    command = ["bench", *SCENES, "--pretrained", "--recipe", CASCADE, "--seconds", 0]
    result = run(*command, "--batch", "1,4", "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert [each["batch"] for each in told["runs"]] == [1, 4]
    for each in told["runs"]:
        for name in ("dense", "cascade"):
            assert 0 < each[name]["p50"] <= each[name]["p99"]
        assert 0 < each["shares"][1] < 1
    assert told["loss"]["images"] == 16
    page = run(*command, "--batch", "1,4")
    assert page.code == 0, page.err
    rows = [line.split()[0] for line in page.out.splitlines() if line.strip()[:2] in ("1 ", "4 ")]
    assert rows[:2] == ["1", "4"]
    assert "p99 a batch" in page.out


def test_what_a_cascade_cannot_be_asked(run, refused, tmp_path):
    assert "give --data FOLDER" in refused("bench", "--model", "nano_vit", "--recipe", CASCADE)
    words = ["--model", "nano_vit", "--pretrained", "--data", "scenes", "--recipe", CASCADE]
    assert "--waterfall cannot measure a cascade" in refused("bench", *words, "--waterfall")
    assert "--memory cannot measure a cascade" in refused("bench", *words, "--memory")
    assert "give one of the cascade's recipes" in refused("show", "scenes", "--model", "nano_vit", "--recipe", CASCADE)
    file = CascadeRecipe.parse(CASCADE).save(tmp_path / "best.json")
    assert "give one of the cascade's recipes" in refused("show", "scenes", "--model", "nano_vit", "--recipe", file)


def test_export_writes_members_and_rule(run, there):
    words = ["--model", "nano_vit", "--recipe", CASCADE, "--format", "program", "--batch", 2, "--out", "files"]
    result = run("export", *words)
    assert result.code == 0, result.err
    assert {path.name for path in (there / "files").iterdir()} == {"cascade.json", "member-0.pt2", "member-1.pt2"}
    assert "cascade.json" in result.out


def test_tune_finds_a_cascade(run, there, brief_timing, monkeypatch):
    brief_timing(monkeypatch)
    words = ["--family", "scheduled-guarded", "--proposal", "none", "--trials", 2, "--agree", 0.9, "--limit", 60]
    result = run("tune", *SCENES, *words)
    assert result.code == 0, result.err
    assert "of the held-out ones keep their class" in " ".join(result.out.split())
    found = json.loads((there / "tokensieve-tune" / "front.json").read_text())
    assert found["wanted"] == {"agree": 0.9}
    assert any(point["kind"] == "cascade" for point in found["points"])
    told = run("eval", *SCENES, "--limit", 20, "--recipe", "tokensieve-tune/best.json", "--json")
    assert told.code == 0, told.err

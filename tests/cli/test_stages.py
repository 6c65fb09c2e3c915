"""Every command on a model with stages: what it prints speaks of pixels, and what cannot be is a sentence."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import tokensieve.search.timing as timing
from tests.pictures import two_classes
from tokensieve import Recipe
from tokensieve.measure.speed import interleaved

pytestmark = pytest.mark.slow

HOST = ["--model", "convnext_atto", "--size", 64, "--no-pretrained", "--threads", 1]
PAPR = ["--recipe", "papr(keep=0.5, proposal=test_resnet)"]
QUICK = ["--seconds", 0, "--batch", 2]
STAGES = [
    {"pixels": 256, "per_block": [128] * 2},
    {"pixels": 64, "per_block": [32] * 2},
    {"pixels": 16, "per_block": [8] * 6},
    {"pixels": 4, "per_block": [2] * 2},
]
PIXELS = "256 → 128, 64 → 32, 16 → 8, 4 → 2 by stage"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return two_classes(tmp_path_factory.mktemp("pictures"))


def read(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


def words(result):
    assert result.code == 0, result.err
    assert "…" not in result.out  # in a pipe, cells are whole, however wide their table becomes
    return " ".join(result.out.split())


def test_bench(run):
    record = read(run("bench", *HOST, *PAPR, *QUICK, "--json"))
    assert record["tokens"] is None
    assert record["stages"] == STAGES
    assert record["macs"]["proposal"] > 0
    said = words(run("bench", *HOST, *PAPR, *QUICK))
    assert f"pixels {PIXELS}" in said
    assert "the host on as many pixels" in said
    assert "token" not in said.replace("tokensieve", "")
    said = words(run("bench", *HOST, "--recipe", "papr(keep=1)", *QUICK))
    assert "The recipe leaves nothing out" in said


def test_the_waterfall(run, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    record = read(run("bench", *HOST, *PAPR, *QUICK, "--waterfall", "--prepack", "--json"))
    rows = record["waterfall"]
    assert [row["step"] for row in rows] == ["dense", "recipe", "bf16", "prepack", "compile", "batch"]
    assert all(row["limit"] > 0 for row in rows[1:])
    assert not any(
        "token" in sentence for row in rows for sentence in row["verdict"] if "prepack(model)" not in sentence
    )


def test_eval(run, pictures):
    record = read(run("eval", "--data", pictures, *HOST, *PAPR, "--json"))
    assert record["stages"] == STAGES
    assert record["images"] == 6
    assert 0 <= record["agreement"] <= 100
    assert PIXELS in words(run("eval", "--data", pictures, *HOST, *PAPR))


def test_show(run, pictures, there):
    record = read(run("show", pictures / "cat", *HOST, *PAPR, "--json"))
    assert [picture["kept"] for picture in record["pictures"]] == [128] * 3
    page = (there / "tokensieve-show.html").read_text()
    assert page.count("<figure>") == 3 * 6  # the picture, its map, four stages
    for said in ("Kept, stage 3", "maps of 16 x 16 to 2 x 2", "2 of 4", "of the pixels, mean over the blocks"):
        assert said in page
    assert "one colour for each pixel of the first map" in page
    words_said = page.replace("tokensieve", "")
    assert "tokens" not in words_said
    assert "patches" not in words_said


def test_shares_and_proposals_beside_each_other(run, pictures, there):
    record = read(run("show", pictures / "cat", *HOST, *PAPR, "--keep", "0.75,0.25,1", "--json"))
    assert [cell["kept"] for cell in record["pictures"][0]["cells"]] == [192, 64, None]
    assert record["grid"][0]["ratio"] < record["grid"][1]["ratio"]
    recipe = ["--recipe", "papr(keep=(1, 0.5, 0.6, 1), proposal=test_resnet)"]
    proposals = ["--proposals", "test_resnet,test_efficientnet"]
    assert "1, 0.5, 0.6, 1" in words(run("show", pictures / "cat", *HOST, *recipe, *proposals))
    page = (there / "tokensieve-show.html").read_text()
    assert "keep 1, 0.5, 0.6, 1" in page
    assert "of the first stage that drops any" in page
    maps = read(run("show", pictures / "cat", *HOST, *PAPR, "--compare", "papr,centre", "--json"))
    assert [row["map"] for row in maps["compare"]] == ["dense", "papr", "centre"]
    assert [entry["kept"] for entry in maps["pictures"][0]["maps"]] == [128, 128]


def test_demo(run, pictures, there):
    record = read(run("demo", pictures, *HOST, *PAPR, *QUICK, "--json"))
    assert [row["label"] for row in record["rows"]] == ["papr(keep=0.5, proposal=test_resnet)", "random pixels"]
    assert {row["right"] for row in record["rows"]} == {None}  # folders of the user's are no classes of the model
    page = (there / "tokensieve-demo.html").read_text()
    assert "Random pixels (stage 0)" in page
    assert "tokens that" not in page
    said = words(run("demo", pictures, *HOST, *PAPR, *QUICK))
    assert "as many pixels" in said


def test_export(run, there):
    record = read(run("export", *HOST, *PAPR, "--out", "fast.onnx", "--json"))
    assert record["inputs"] == {"images": ["batch", 3, 64, 64]}
    assert max(record["differences"].values()) <= 1e-4
    assert PIXELS in words(run("export", *HOST, *PAPR, "--out", "fast.pt2"))


def test_tune(run, pictures, there, monkeypatch):
    monkeypatch.setattr(
        timing, "interleaved", lambda calls, **_: interleaved(calls, seconds=0, min_rounds=2, max_rounds=2)
    )
    options = ["--data", pictures, *HOST, "--macs", 1.3, "--proposal", "none", "--trials", 2]
    said = words(run("tune", *options))
    for part in ("scheduled-papr", "centre alone", "fewer MACs", "by stage", "best.json"):
        assert part in said
    (method,) = Recipe.load(there / "tokensieve-tune" / "best.json")
    assert len(method.keep) == 4
    record = read(run("eval", "--data", pictures, *HOST, "--recipe", "tokensieve-tune/best.json", "--json"))
    assert record["macs"]["ratio"] >= 1.3


def test_swin_in_another_size(run, there):
    Image.fromarray(np.zeros((80, 80, 3), dtype=np.uint8)).save("one.png")
    swin = ["--model", "swin_tiny_patch4_window7_224", "--size", "64x96", "--no-pretrained", "--threads", 1]
    record = read(run("show", "one.png", *swin, *PAPR, "--json"))
    assert [stage["pixels"] for stage in record["stages"]] == [16 * 24, 8 * 12, 4 * 6, 2 * 3]


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["bench", "--recipe", "tome(r=8)"], "ConvNeXt cannot take tome: its feature maps keep their full size"),
        (["bench", "--recipe", "papr(keep=0.5, stages=(4,))"], "stages=(4,) do not exist, the model has 4 stages"),
        (["bench", "--size", "30"], "--size 30 is too small for convnext_atto: give at least 32 pixels"),
        (["slim", "--data", "{pictures}", "--out", "s.json"], "ConvNeXt cannot be slimmed"),
        (["tune", "--data", "{pictures}", "--macs", "1.3", "--family", "tome"], "ConvNeXt cannot be tuned by tome"),
        (
            ["tune", "--data", "{pictures}", "--macs", "1.3", "--family", "papr", "--proposal", "none"],
            "nothing to search",
        ),
    ],
)
def test_what_cannot_be_is_a_sentence(refused, pictures, there, command, sentence):
    name, *options = (str(part).format(pictures=pictures) for part in command)
    assert sentence in refused(name, *HOST, *options)

"""`tokensieve bench`: the waterfall, pictures and their decoding, as a user meets them."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tokensieve import zoo
from tokensieve.measure import decoding

pytestmark = pytest.mark.slow

HOST = ["--model", "test_vit", "--recipe", "tome(r=8)"]
QUICK = ["--seconds", "0", "--batch", "2"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three pictures, and a file that is none."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(root / f"{i}.png")
    (root / "broken.jpg").write_text("not a picture")
    return root


@pytest.fixture
def uncompiled(monkeypatch):
    """Compiling gives the module back: building takes minutes, and tests/measure/ captures the graphs."""
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)


@pytest.fixture
def no_compiler(monkeypatch):
    def fail(*_arguments, **_settings):
        raise RuntimeError("No working C++ compiler found.\nSet TORCH_LOGS for more")

    monkeypatch.setattr(torch, "compile", fail)


@pytest.mark.parametrize("channels", [1, 13])
def test_other_channels_than_three(run, monkeypatch, channels):
    loaded = zoo.create("test_vit", pretrained=False, args={"in_chans": channels})
    monkeypatch.setattr(zoo, "create", lambda *_, **__: loaded)
    for more in ([], ["--size", "96"]):
        result = run("bench", *HOST, *QUICK, *more, "--json")
        assert result.code == 0, result.err
        record = json.loads(result.out)
        assert record["input_size"] == [channels, *([96, 96] if more else [160, 160])]
        assert record["macs"]["dense"] > record["macs"]["sieved"] > 0


def test_waterfall_json(run, uncompiled):
    result = run("bench", *HOST, *QUICK, "--waterfall", "--json")
    assert result.code == 0
    record = json.loads(result.out)
    assert record["runs"] == []
    assert record["dtype"] == "fp32"
    rows = record["waterfall"]
    assert [row["step"] for row in rows] == ["dense", "recipe", "bf16", "compile", "batch"]
    assert [row["batch"] for row in rows] == [2, 2, 2, 2, 8]
    for row in rows[1:]:
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["gain_low"] <= row["gain"] <= row["gain_high"]
        assert row["limit"] > 0
        assert row["memory_bytes"] > 0
        assert row["attention"] == ["flash"]
    assert rows[0]["verdict"] == []
    assert "dense model" in rows[1]["verdict"][0]


def test_waterfall_table_fits_eighty_columns(run, no_compiler):
    recipe = "papr(keep=0.5, proposal=test_resnet) + tome(r=2)"
    options = ["--model", "test_vit", "--recipe", recipe, "--seconds", 0, "--batch", "1,16"]
    result = run("bench", *options, "--waterfall", "--prepack", "--dtype", "fp16")
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= 80
    assert "…" not in result.out
    lines = [line for line in result.out.splitlines() if line.strip()]
    for name in ("dense", "+ recipe", "+ fp16", "+ prepack", "+ compile", "+ batch 16"):
        assert sum(line.startswith(name) for line in lines) >= 1, name
    words = " ".join(result.out.split())
    assert "Cannot run here: No working C++ compiler found. The next row adds to the last that can." in words
    assert "Cannot run here: prepack() is for fp32 or bf16 weights" in words
    assert "TORCH_LOGS" not in result.out
    assert "largest difference from the recipe in fp32: fp16" in words
    assert "weights packed once" not in words  # a row of its own here


def test_waterfall_of_pictures_with_weights_tells_agreement(run, uncompiled, pictures, tmp_path):
    weights = tmp_path / "host.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), weights)
    options = ["bench", *HOST, *QUICK, "--waterfall", "--data", pictures]
    record = json.loads(run(*options, "--weights", weights, "--json").out)
    assert record["waterfall"][0]["agreement"] == 100
    assert all(0 <= row["agreement"] <= 100 for row in record["waterfall"])
    assert record["decoding"]["pictures"] == 3
    said = " ".join(run(*options, "--weights", weights).out.split())
    assert "same as the dense model's on 3 pictures: dense 100.0%, recipe" in said
    assert "a second: decoding" in said
    random = run(*options, "--json")
    assert {row["agreement"] for row in json.loads(random.out)["waterfall"]} == {None}


def test_pictures_are_measured_and_their_decoding_beside_the_models(run, pictures, monkeypatch):
    seen = []
    real = decoding.decoding

    def slow(*arguments, **settings):
        found, images = real(*arguments, **settings)
        seen.append(images)
        return decoding.Decoding(0.5, found.pictures, 2, found.failures), images

    monkeypatch.setattr(decoding, "decoding", slow)
    options = ["bench", *HOST, "--seconds", 0, "--batch", "1,4", "--data", pictures, "--workers", 2]
    result = run(*options, "--json")
    assert result.code == 0
    record = json.loads(result.out)
    assert seen[0].shape == (4, 3, 160, 160)
    assert torch.equal(seen[0][0], seen[0][3])  # three pictures, repeated
    assert record["data"] == str(pictures)
    assert (record["decoding"]["per_second"], record["decoding"]["workers"]) == (0.5, 2)
    assert record["decoding"]["failures"][0]["path"].endswith("broken.jpg")
    assert "1 picture was left out" in result.err
    for measured in record["runs"]:
        assert measured["images_per_second"]["sieved"] == measured["batch"] / measured["seconds"]["sieved"]
        assert measured["verdict"][-1].startswith("Decoding is the limit: 2 workers prepare 0.5 pictures a second")
    table = run(*options).out
    assert max(map(len, table.splitlines())) <= 80
    assert "3 pictures decoded by 2 workers" in " ".join(table.split())
    assert "pictures a second" in table


def test_a_control_map_is_not_shown_as_a_proposal(run):
    result = run("bench", "--model", "test_vit", "--recipe", "random(keep=0.5)", *QUICK)
    head = next(line for line in result.out.splitlines() if line.startswith("batch "))
    assert " map " in head
    assert "proposal " not in head


def test_runs_name_the_attention_kernels(run):
    record = json.loads(run("bench", *HOST, *QUICK, "--json").out)
    assert record["runs"][0]["attention"] == {"dense": ["flash"], "sieved": ["flash"]}
    assert record["waterfall"] is record["decoding"] is record["data"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--waterfall", "--batch", "8,4"], "a small and a larger one, not '8,4'"),
        (["--waterfall", "--batch", "1,2,3"], "a small and a larger one"),
        (["--waterfall", "--dtype", "fp8"], "--dtype must be one of"),
        (["--workers", "2"], "--workers decode the pictures of --data"),
        (["--data", "absent"], "absent does not exist"),
        (["--data", "{broken}"], "None of 1 pictures could be read"),
    ],
)
def test_bench_refuses_in_a_sentence(refused, pictures, options, words):
    assert words in refused("bench", *HOST, *(option.format(broken=pictures / "broken.jpg") for option in options))

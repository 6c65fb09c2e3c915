"""`tokensieve export` as a user meets it."""

from __future__ import annotations

import json

import pytest
import torch

pytestmark = pytest.mark.slow

HOST = ["--model", "test_vit", "--no-pretrained"]


def test_onnx_in_json(run, tmp_path):
    path = tmp_path / "fast.onnx"
    result = run("export", *HOST, "--recipe", "tome(r=8, layers=0:1)", "--size", "96x128", "--out", path, "--json")
    assert result.code == 0
    assert result.err == ""
    record = json.loads(result.out)
    assert (record["path"], record["format"], record["opset"]) == (str(path), "onnx", 20)
    assert record["bytes"] == path.stat().st_size
    assert record["inputs"] == {"images": ["batch", 3, 96, 128]}
    assert record["outputs"] == {"logits": ["batch", 1000]}
    assert set(record["differences"]) == {"1", "5"}
    assert max(record["differences"].values()) <= record["tolerance"] == 1e-4
    assert record["preprocessing"]["input_size"] == [96, 128]
    assert record["recipe"] == "tome(r=8, layers=0:1)"
    assert [path.name for path in tmp_path.iterdir()] == ["fast.onnx"]


def test_another_output(run, tmp_path):
    path = tmp_path / "fast.onnx"
    words = ("--recipe", "tome(r=8, layers=0:1)", "--output", "last_hidden_state", "--out", path, "--json")
    record = json.loads(run("export", *HOST, *words).out)
    assert list(record["outputs"]) == ["last_hidden_state"]
    assert record["outputs"]["last_hidden_state"][::2] == ["batch", 64]
    model = ["--model", "test_convnext", "--no-pretrained", "--recipe", "papr(keep=0.5, significance=centre)"]
    result = run("export", *model, "--output", "feature_maps", "--out", path)
    assert result.code == 0
    assert all(f"feature_maps_{stage} (batch, " in result.out for stage in range(4))


def test_a_program_in_a_table(run, tmp_path):
    path = tmp_path / "fast.pt2"
    result = run("export", *HOST, "--recipe", "random(keep=0.5)", "--dtype", "bf16", "--batch", 2, "--out", path)
    assert result.code == 0
    assert result.err == ""
    assert max(map(len, result.out.splitlines())) <= 80
    words = " ".join(result.out.split())
    for part in (
        "test_vit, 160 x 160, random weights",
        "papr(keep=0.5, significance=random)",
        "exported program",
        "images (2, 3, 160, 160)",
        "logits (2, 1000)",
        "at batch 2 (allowed 0.0001)",
    ):
        assert part in words
    images = torch.randn(2, 3, 160, 160, dtype=torch.bfloat16)
    assert torch.export.load(path).module()(images).shape == (2, 1000)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--out"),
        (["--out", "fast.bin"], "fast.bin has no known ending: let --out end in .onnx or .pt2"),
        (["--out", "fast.onnx", "--format", "tflite"], "--format must be one of onnx, program, not 'tflite'"),
        (["--out", "fast.onnx", "--dtype", "bf16"], "ONNX is written in fp32 on the CPU, not in bf16 on cpu"),
        (["--out", "fast.onnx", "--device", "cuda"], "not in fp32 on cuda"),
        (["--out", "fast.pt2", "--opset", "20"], "--opset is for ONNX"),
        (["--out", "fast.onnx", "--opset", "9"], "opset must be from 18 to 22, not 9"),
        (["--out", "fast.onnx", "--format", "program"], "end in .pt2"),
        (["--out", "absent/fast.onnx"], "absent/fast.onnx cannot be written: there is no folder absent"),
        (["--out", "fast.onnx", "--batch", "0"], "--batch"),
        (["--out", "fast.onnx", "--output", "embedding"], "no output 'embedding'; it has logits, last_hidden_state."),
        (["--out", "fast.onnx", "--recipe", "random(keep=0.5)"], "The map random"),
        (["--out", "fast.onnx", "--recipe", "tomee(r=8)"], "the nearest are tome"),
    ],
)
def test_what_cannot_be_is_a_sentence(refused, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    recipe = [] if "--recipe" in options else ["--recipe", "tome(r=8)"]
    assert words in refused("export", *HOST, *recipe, *options)
    assert list(tmp_path.iterdir()) == []

"""`eval` and `tune` on models that return maps or embeddings."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from timm.models import register_model
from timm.models.convnext import _create_convnext
from timm.models.vision_transformer import _create_vision_transformer

pytestmark = pytest.mark.slow


@register_model
def outputs_segmenter(pretrained=False, **settings):
    """A ConvNeXt without pooling: class scores (B, 6, H / 32, W / 32)."""
    sizes = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48), "num_classes": 6, "global_pool": ""}
    return _create_convnext("test_convnext", pretrained=pretrained, **{**settings, **sizes})


@register_model
def outputs_embedder(pretrained=False, **settings):
    """A vision transformer without a classifier: embeddings (B, 64)."""
    sizes = {"patch_size": 16, "embed_dim": 64, "depth": 4, "num_heads": 2, "num_classes": 0, "img_size": 96}
    return _create_vision_transformer("test_vit", pretrained=pretrained, **{**settings, **sizes})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(10):
        Image.effect_noise((96, 96), 20 + 20 * number).convert("RGB").save(folder / f"{number}.png")
    return folder


def test_eval_of_maps(run, pictures):
    words = ["--model", "outputs_segmenter", "--no-pretrained", "--recipe", "papr(keep=0.4, significance=centre)"]
    record = json.loads(run("eval", "--data", pictures, *words, "--json").out)
    assert record["kind"] == "class-map"
    assert record["kl"] == record["divergence"] > 0
    assert record["agreement_low"] <= record["agreement"] <= record["agreement_high"]
    assert record["dense"] is None
    printed = " ".join(run("eval", "--data", pictures, *words).out.split())
    assert "% of the pixels [" in printed
    assert "KL 0." in printed


def test_eval_of_embeddings(run, pictures):
    words = ["--model", "outputs_embedder", "--no-pretrained", "--recipe", "tome(r=6)"]
    record = json.loads(run("eval", "--data", pictures, *words, "--json").out)
    assert (record["kind"], record["agreement"], record["kl"]) == ("embeddings", None, None)
    assert record["divergence"] == pytest.approx(1 - record["cosine"])
    assert record["neighbours_low"] <= record["neighbours"] <= record["neighbours_high"]
    assert "same nearest neighbour" in " ".join(run("eval", "--data", pictures, *words).out.split())


@pytest.mark.parametrize(
    ("model", "objective", "words"),
    [
        ("outputs_segmenter", "kl per pixel", ["KL per pixel", "pixels keep their class"]),
        ("outputs_embedder", "1 - cosine", ["at a 1 - cosine of"]),
    ],
)
def test_tune(run, pictures, tmp_path, monkeypatch, brief_timing, model, objective, words):
    brief_timing(monkeypatch)
    options = ["--model", model, "--no-pretrained", "--macs", 1.2, "--proposal", "none", "--trials", 0, "--no-correct"]
    result = run("tune", "--data", pictures, *options, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "out" / "front.json").read_text())["objective"] == objective
    printed = " ".join(result.out.split())
    for word in words:
        assert word in printed
    best = tmp_path / "out" / "best.json"
    assert run("eval", "--data", pictures, "--model", model, "--no-pretrained", "--recipe", best).code == 0

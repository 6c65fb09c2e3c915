"""Files of models that return more than one tensor: transformers' models, and backbones with several maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from timm.models._features import FeatureDictNet, FeatureGetterNet, FeatureListNet
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from tests.reference.hf_hosts import VIT, hf_forms, hf_images, open_clip_forms, open_clip_images, seeded
from tests.reference.hf_staged import hf_staged_forms
from tests.reference.hosts import host_forms, host_images
from tokensieve import InputError, Recipe, export_onnx, export_program, sieve
from tokensieve.export.outputs import Chosen, fields_of
from tokensieve.measure import SlicingLimit

pytestmark = pytest.mark.slow

HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
TOKENS = "papr(keep=0.6, significance=centre) + tome(r=2, layers=0:1)"


def answers(path: Path, images: Tensor) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(None, {"images": images.numpy()})), strict=True))


@torch.no_grad()
def assert_written(fast: nn.Module, path: Path, images: Tensor, wanted: dict[str, Any], **words: Any) -> None:
    """The file has these outputs under these names, at another batch size than it was traced and checked with."""
    exported = export_onnx(fast, path, tuple(images.shape[1:]), **HALF, **words)
    found = answers(path, images)
    assert list(found) == list(wanted) == list(exported.outputs)
    for name, value in wanted.items():
        assert exported.outputs[name] == ("batch", *value.shape[1:])
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def assert_chosen(fast: nn.Module, images: Tensor, wanted: dict[str, Any], **words: Any) -> None:
    """What a file would be written of has these outputs under these names: it costs no translation."""
    chosen = Chosen(fast, images, **words)
    found = chosen(images)
    found = found if isinstance(found, tuple) else (found,)
    assert list(chosen.names) == list(wanted)
    for one, value in zip(found, wanted.values(), strict=True):
        torch.testing.assert_close(one, value)


@pytest.mark.parametrize(
    ("form", "field", "written"),
    [
        ("vit", "logits", False),
        ("vit-model", "pooler_output", False),
        ("deit-teacher", "logits", True),
        ("dinov2-model", "pooler_output", False),
        ("dinov3-model", "pooler_output", False),
        ("clip-projection", "image_embeds", True),
        ("siglip-vision", "pooler_output", False),
        ("siglip-unpooled", "last_hidden_state", False),
    ],
)
def test_the_obvious_output_of_transformers_models(form: str, field: str, written: bool, tmp_path) -> None:
    model = hf_forms()[form]()
    images, fast = hf_images(model, 3), sieve(model, TOKENS)
    with torch.no_grad():
        wanted = {field: fast(images)[field]}
        assert_chosen(fast, images, wanted)
        if written:
            assert_written(fast, tmp_path / "a.onnx", images, wanted)


@pytest.mark.parametrize(
    ("form", "output"),
    [("deit-teacher", "distillation_logits"), ("mae", "mask")],
)
def test_another_output_by_its_name(form: str, output: str, tmp_path) -> None:
    model = hf_forms()[form]()
    images, fast = hf_images(model, 3), sieve(model, TOKENS)
    with torch.no_grad():
        assert_written(fast, tmp_path / "a.onnx", images, {output: fast(images)[output]}, output=output)


@pytest.mark.parametrize("form", ["timm", "vit"])
def test_tokens_of_a_classifier(form: str, tmp_path) -> None:
    """`last_hidden_state` where a call gives logits alone."""
    model = host_forms()["registers"]() if form == "timm" else hf_forms()[form]()
    images, fast = host_images(model, 3) if form == "timm" else hf_images(model, 3), sieve(model, TOKENS)
    with torch.no_grad():
        wanted = {"last_hidden_state": fast.forward_features(images)}
        assert_chosen(fast, images, wanted, output="last_hidden_state")
        if form == "timm":
            assert_written(fast, tmp_path / "a.onnx", images, wanted, output="last_hidden_state")


@pytest.mark.parametrize("form", ["ConvNextForImageClassification", "SwinForImageClassification", "SwinBackbone"])
def test_transformers_models_with_stages(form: str, tmp_path) -> None:
    model = hf_staged_forms()[form]()
    images, fast = torch.randn(3, 3, 64, 64), sieve(model, "papr(keep=0.6, significance=centre)")
    with torch.no_grad():
        whole = fast(images)
        wanted = {"logits": whole["logits"]} if "logits" in whole else fields_of(whole, "")["feature_maps"]
        assert_chosen(fast, images, wanted)
        if form == "SwinBackbone":
            assert_written(fast, tmp_path / "a.onnx", images, wanted)
    assert len(wanted) == (1 if "logits" in whole else 4)


def convnext() -> nn.Module:
    return seeded(lambda: ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)), 1)


def swin() -> nn.Module:
    return seeded(lambda: SwinTransformer(64, embed_dim=8, depths=(1, 1, 1), num_heads=(1, 2, 2), window_size=4), 2)


@pytest.mark.parametrize(("kind", "make"), [("list", convnext), ("dictionary", swin), ("getter", convnext)])
def test_backbones_have_several_outputs(kind: str, make: Any, tmp_path) -> None:
    model = {
        "list": lambda: FeatureListNet(make(), (0, 2), flatten_sequential=True),
        "dictionary": lambda: FeatureDictNet(make(), (0, 2), ["res0", "res2"], flatten_sequential=True),
        "getter": lambda: FeatureGetterNet(make(), (0, 2)),
    }[kind]().eval()
    images, fast = torch.randn(3, 3, 64, 64), sieve(model, "papr(keep=0.6, significance=centre)")
    with torch.no_grad():
        maps = fast(images)
        names = ["res0", "res2"] if kind == "dictionary" else ["feature_maps_0", "feature_maps_1"]
        maps = list(maps.values()) if kind == "dictionary" else maps
        assert_chosen(fast, images, dict(zip(names, maps, strict=True)))
        assert_chosen(fast, images, {names[1]: maps[1]}, output=names[1])
        if kind == "dictionary":
            assert_written(fast, tmp_path / "a.onnx", images, dict(zip(names, maps, strict=True)))
        if kind == "getter":
            assert_written(fast, tmp_path / "b.onnx", images, {names[1]: maps[1]}, output=names[1])


def test_all_maps_of_a_classifier_with_stages(tmp_path) -> None:
    images, fast = torch.randn(3, 3, 64, 64), sieve(convnext(), "papr(keep=0.6, significance=centre)")
    with torch.no_grad():
        maps = {f"feature_maps_{i}": x for i, x in enumerate(fast.forward_intermediates(images))}
        assert_written(fast, tmp_path / "a.onnx", images, maps, output="feature_maps")


def test_a_tower_of_open_clip_with_its_tokens(tmp_path) -> None:
    fast, images = sieve(open_clip_forms()["average"](), "tome(r=2)"), open_clip_images(3)
    with torch.no_grad():
        pooled, tokens = fast(images)
        assert_written(fast, tmp_path / "a.onnx", images, {"output_0": pooled, "output_1": tokens})


def test_programs_of_transformers_models_and_backbones(tmp_path) -> None:
    path, facts = tmp_path / "a.pt2", dict.fromkeys(("recipe", "recipe_json", "preprocessing", "outputs"), "")
    model = hf_forms()["dinov2-model"]().bfloat16()
    fast, images = sieve(model, TOKENS), hf_images(model, 3).bfloat16()
    assert set(export_program(fast, path, **HALF).outputs) == {"pooler_output"}
    with torch.no_grad():
        assert torch.equal(torch.export.load(path, extra_files=facts).module()(images), fast(images).pooler_output)
    assert json.loads(facts["outputs"]) == ["pooler_output"]
    assert Recipe.from_json(facts["recipe_json"]) == fast.recipe

    fast, images = sieve(FeatureListNet(swin(), (0, 2), flatten_sequential=True).eval()), torch.randn(3, 3, 64, 64)
    export_program(fast, path, (64, 64), **HALF)
    again = torch.export.load(path, extra_files=facts).module()
    with torch.no_grad():
        assert all(torch.equal(one, other) for one, other in zip(again(images), fast(images), strict=True))
    assert json.loads(facts["outputs"]) == ["feature_maps_0", "feature_maps_1"]


def test_the_free_dimension_is_called_batch_everywhere(tmp_path) -> None:
    model = hf_forms()["vit-model"]()
    export_onnx(sieve(model, TOKENS), tmp_path / "a.onnx", **HALF)
    graph = onnx.load(tmp_path / "a.onnx").graph
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    inner = [size.dim_param for value in graph.value_info for size in value.type.tensor_type.shape.dim]
    assert {"batch"} < set(filter(None, inner))  # and numbers of rows, such as 26*batch
    assert all("batch" in name for name in inner if name)


def test_the_dense_model_and_the_limit_are_written_alike(tmp_path) -> None:
    model = hf_forms()["vit-model"]()
    images, fast = hf_images(model, 3), sieve(model, "papr(keep=0.6, significance=centre)")
    for module in (model, SlicingLimit(fast)):
        with torch.no_grad():
            wanted = {"pooler_output": module(images).pooler_output}
        assert_written(module, tmp_path / "a.onnx", images, wanted)


def test_transformers_models_of_other_channels(tmp_path) -> None:
    import transformers as hf

    channels = 4
    config = hf.ViTConfig(**{**VIT, "num_channels": channels})
    fast = sieve(hf.ViTForImageClassification(config).eval(), "tome(r=2)")
    exported = export_onnx(fast, tmp_path / "a.onnx", (channels, 40, 40), mean=[0.5] * channels, std=[0.5] * channels)
    assert exported.inputs == {"images": ("batch", channels, 40, 40)}


def test_an_output_that_is_not_there_is_told_with_those_that_are(tmp_path) -> None:
    fast = sieve(hf_forms()["dinov2-model"]())
    with pytest.raises(InputError, match=r"no output 'logits'; it has last_hidden_state, pooler_output\."):
        export_onnx(fast, tmp_path / "a.onnx", output="logits", **HALF)
    fast = sieve(host_forms()["class-token"]())
    with pytest.raises(InputError, match=r"no output 'pooler_output'; it has logits, last_hidden_state\."):
        export_program(fast, tmp_path / "a.pt2", output="pooler_output", **HALF)
    assert list(tmp_path.iterdir()) == []


def test_choosing_leaves_the_model_in_its_modes() -> None:
    model = host_forms()["class-token"]()
    model.blocks[0].train()
    Chosen(sieve(model, "tome(r=2)"), host_images(model), "last_hidden_state")
    assert model.blocks[0].training
    assert not model.training

"""`tokensieve methods`, `models` and `doctor` as a user meets them."""

from __future__ import annotations

import json
import sys

import pytest
import timm

from tests.reference.hosts import needs_relpos
from tokensieve import zoo
from tokensieve.about import machine
from tokensieve.methods import METHODS


def words(text: str) -> str:
    return " ".join(text.split())


def narrow(text: str) -> bool:
    return max(map(len, text.splitlines())) <= 80 and "…" not in text


def test_methods_lists_all_and_says_where_they_act(run) -> None:
    result = run("methods")
    assert (result.code, result.err) == (0, "")
    assert narrow(result.out)
    said = words(result.out)
    assert "once, before block 0; by a significance map; drops tokens" in said
    assert "inside blocks, between attention and MLP; merges tokens" in said
    assert "settings keep, proposal=mobileone_s0, significance=mean" in said
    assert "Short for papr(keep=0.5, significance=random)" in said


def test_methods_json_is_one_object(run) -> None:
    record = json.loads(run("methods", "--json").out)
    assert [method["name"] for method in record["methods"]] == [*METHODS, "random"]


def test_one_method_is_told_whole(run) -> None:
    result = run("methods", "papr")
    assert result.code == 0
    assert narrow(result.out)
    said = words(result.out)
    assert "class tokensieve.PaPr" in said
    assert "share of tokens to keep, in (0, 1]." in said
    assert "seed=0 int seed of the `random` map." in said
    assert "At most half of the patch tokens" in words(run("methods", "tome").out)
    assert [method["name"] for method in json.loads(run("methods", "tome", "--json").out)["methods"]] == ["tome"]


def test_an_unknown_method_is_refused(refused) -> None:
    assert "the nearest are tome" in refused("methods", "tomee")


def test_models_by_family(run) -> None:
    result = run("models")
    assert result.code == 0
    assert narrow(result.out)
    said = words(result.out)
    assert all(name in said for name in zoo.BUNDLED)
    assert f"vision_transformer, {len(timm.list_models(module='vision_transformer'))} models" in said
    assert "vit_base_patch16_224" in said
    assert "resnet " in said.split("Families without hosts")[1]
    assert "vgg11" not in said


@pytest.mark.versions
def test_models_by_family_with_weights(run) -> None:
    families = {family["module"]: family for family in json.loads(run("models", "--json").out)["families"]}
    with_weights = {
        family["module"]: family for family in json.loads(run("models", "--pretrained", "--json").out)["families"]
    }
    name = "vit_base_patch16_18x2_224"
    assert name in families["vision_transformer"]["models"]
    assert name not in with_weights["vision_transformer"]["models"]
    assert "vit_base_patch16_224" in with_weights["vision_transformer"]["models"]


@needs_relpos
def test_models_by_pattern(run) -> None:
    result = run("models", "test_[rv]*t*")
    assert result.code == 0
    assert narrow(result.out)
    said = words(result.out)
    assert "Hosts, VisionTransformer" in said
    assert "test_vit 0.371 160 x 160 6 1 0.03764" in said
    assert "test_resnet 0.470 160 x 160 96 x 5 x 5 0.1025" in said
    assert "1 of the 6 models that match can be neither host nor proposal; --all shows why." in said
    assert "relative position" not in said


@needs_relpos
def test_models_refused_are_shown_with_reasons_when_asked_for(run) -> None:
    said = words(run("models", "test_vit_*", "--all").out)
    assert "Refused: test_vit_relpos" in said
    assert "its relative position bias is not gathered with the tokens" in said
    assert "not that of a ConvNet's feature map" in said
    record = json.loads(run("models", "test_vit_*", "--json").out)
    assert (record["models"], record["matches"], record["refused"]) == ([], 1, 1)
    (model,) = json.loads(run("models", "test_vit_*", "--all", "--json").out)["models"]
    assert model["opens_as"] is None
    assert "VisionTransformerRelPos" in model["reason"]


@pytest.mark.versions
def test_models_that_cannot_merge_say_so(run) -> None:
    said = words(run("models", "vit_small_patch16_18x2_224").out)
    assert "No merging: vit_small_patch16_18x2_224" in said
    assert "ParallelThingsBlock is not a block that can be stopped" in said


def test_models_with_weights_name_them(run) -> None:
    result = run("models", "vit_tiny_patch16_[23]*", "--pretrained")
    assert "Pretrained weights" in result.out
    assert "vit_tiny_patch16_384 augreg_in21k_ft_in1k" in words(result.out)
    (model,) = json.loads(run("models", "vit_tiny_patch16_384", "--pretrained", "--json").out)["models"]
    assert model["weights"] == ["augreg_in21k_ft_in1k"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--all"], "--all lists why models are refused, and needs a pattern"),
        (["vitt_*"], "No model's name matches 'vitt_*'"),
        (["vit_small_patch16_18x2_224", "--pretrained"], "leave out --pretrained"),
    ],
)
def test_models_refuses_in_a_sentence(refused, options, said) -> None:
    assert said in refused("models", *options)


def test_doctor(run) -> None:
    result = run("doctor")
    assert (result.code, result.err) == (0, "")
    assert narrow(result.out)
    said = words(result.out)
    for word in (
        "tokensieve 0.",
        "python 3.",
        "thread",
        "attention cpu float32: flash",
        "[export]",
        "self-test passed",
    ):
        assert word in said
    record = json.loads(run("doctor", "--json").out)
    assert record["failures"] == []
    assert {model["name"] for model in record["bundled"]} == {*zoo.BUNDLED, "nano_segmenter"}


def test_doctor_shows_what_to_mend(run, monkeypatch) -> None:
    facts = machine.machine_facts()
    facts["accelerators"] = [{"device": "cuda:0", "name": "Some GPU", "memory_bytes": 80 * 2**30, "capability": "9.0"}]
    facts["attention"] = [{"device": "cuda:0", "dtype": "bfloat16", "plain": "flash", "masked": "efficient"}]
    facts["extras"] = [
        {"name": "export", "needs": ["onnx"], "versions": {}, "missing": ["onnx>=1.18"], "install": "pip install it"},
        {"name": "hf", "needs": ["them"], "versions": {"them": "5.9"}, "missing": [], "install": None},
    ]
    facts["bundled"] = [{"name": "nano_vit", "loads": False, "reason": "It is gone."}]
    facts |= {"compiler": None, "warnings": ["Mend this."]}
    monkeypatch.setattr(machine, "machine_facts", lambda: facts)
    result = run("doctor")
    assert result.code == 0
    said = words(result.out)
    assert "cuda:0 Some GPU, 80 GiB" in said
    assert "cuda:0 bfloat16: flash, with the mask of merged tokens efficient" in said
    assert "[export] onnx>=1.18 missing: pip install it" in said
    assert "[hf] them 5.9" in said
    assert "compiler none found" in said
    assert "nano_vit does not load" in said
    assert "! Mend this." in said


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_doctor_exits_with_two_and_a_sentence_where_the_core_does_not_work(run, monkeypatch, options) -> None:
    monkeypatch.setattr(machine, "self_test", lambda: ["The one thing is wrong."])
    result = run("doctor", *options)
    assert result.code == 2
    assert result.err == "tokensieve: The one thing is wrong.\n"
    if options:
        assert json.loads(result.out)["failures"] == ["The one thing is wrong."]
    else:
        assert "self-test failed" in words(result.out)


def test_doctor_without_a_library_is_a_sentence(refused, monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "tokensieve.about.machine")
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    assert refused("doctor").startswith("tokensieve cannot start: import of packaging.requirements halted")

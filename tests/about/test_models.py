"""Which models open, found out by opening them."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import timm
import torch
from rich.console import Console
from torch import nn

from tests.reference.hosts import needs_relpos
from tokensieve import InputError, InputSpec, RecipeError, zoo
from tokensieve.about import models
from tokensieve.about.models import built, bundled_names, families, matching, model_facts, weights_of
from tokensieve.hosts import host_for
from tokensieve.hosts.registry import HOSTS
from tokensieve.measure import macs
from tokensieve.show.about_view import models_tables

ROOT = Path(__file__).resolve().parents[2]


def test_a_host_is_counted_without_memory() -> None:
    facts = model_facts("vit_tiny_patch16_224")
    dense = timm.create_model("vit_tiny_patch16_224")
    assert (facts["opens_as"], facts["class"], facts["library"]) == ("host", "VisionTransformer", "timm")
    assert facts["module"] == "vision_transformer"
    assert facts["parameters"] == sum(parameter.numel() for parameter in dense.parameters())
    assert facts["macs"] == macs(dense)
    assert (facts["blocks"], facts["prefix"], facts["input_size"]) == (12, 1, [3, 224, 224])
    assert (facts["merges"], facts["merges_reason"]) == (True, None)
    assert "augreg_in21k_ft_in1k" in facts["weights"]


def test_what_it_reads_is_laid_out_as_its_host_says(monkeypatch) -> None:
    facts = model_facts("test_vit", quick=True)
    assert (facts["input_size"], facts["layout"]) == ([3, 160, 160], "CHW")

    class Clips(host_for(type(timm.create_model("test_vit")))):
        input_spec = InputSpec((4, 3, 160, 96), "TCHW")

    monkeypatch.setitem(HOSTS, timm.models.VisionTransformer, Clips)
    facts = {**model_facts("test_vit", quick=True), "macs": None, "macs_reason": "It was not asked."}
    assert (facts["input_size"], facts["layout"]) == ([4, 3, 160, 96], "TCHW")
    console = Console(width=80, record=True)
    console.print(*models_tables([facts]))
    assert "160 x 96" in console.export_text()


def test_models_of_transformers_that_read_videos_are_known_by_their_short_names() -> None:
    pytest.importorskip("transformers")
    assert matching("vivit*") == ["vivit_base"]
    facts = model_facts("videomae_small", quick=True)
    assert (facts["opens_as"], facts["library"], facts["layout"]) == ("host", "transformers", "TCHW")
    assert facts["weights"] == ["MCG-NJU/videomae-small-finetuned-kinetics"]


def test_giants_are_built_on_the_meta_device() -> None:
    model, size = built("vit_giant_patch14_224")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e9
    assert list(size) == [3, 224, 224]


def test_attention_pooling_is_counted_too() -> None:
    assert model_facts("test_vit3")["macs"] > 0


def test_a_host_that_takes_nothing_inside_its_blocks() -> None:
    facts = model_facts("vit_small_patch16_18x2_224", quick=True)
    assert (facts["opens_as"], facts["merges"]) == ("host", False)
    assert "ParallelThingsBlock is not a block that can be stopped" in facts["merges_reason"]
    assert "macs" not in facts


def test_a_proposal_is_cut_as_a_recipe_would() -> None:
    facts = model_facts("test_resnet")
    assert (facts["opens_as"], facts["features"], facts["input_size"]) == ("proposal", [96, 5, 5], [3, 160, 160])
    assert 0 < facts["macs"] < macs(timm.create_model("test_resnet"), (3, 160, 160))


def test_torchvision_has_proposals_of_its_own() -> None:
    facts = model_facts("squeezenet1_1")
    assert (facts["library"], facts["opens_as"], facts["features"]) == ("torchvision", "proposal", [512, 13, 13])
    assert facts["input_size"] == [3, 224, 224]
    assert facts["weights"] == ["IMAGENET1K_V1"]


@pytest.mark.parametrize(
    ("name", "blocks", "prefix", "cost"),
    [
        ("vit_b_16", 12, 1, 17563828224),
        ("swin_t", 12, 0, 4490566656),
        ("torchvision/convnext_tiny", 18, 0, 4455531264),
    ],
)
def test_torchvision_has_hosts_of_its_own(name: str, blocks: int, prefix: int, cost: int) -> None:
    facts = model_facts(name)
    assert (facts["library"], facts["opens_as"], facts["merges"]) == ("torchvision", "host", prefix == 1)
    assert (facts["blocks"], facts["prefix"], facts["input_size"]) == (blocks, prefix, [3, 224, 224])
    assert facts["macs"] == cost
    assert "IMAGENET1K_V1" in facts["weights"]
    assert matching(name) == [name]
    console = Console(width=80, record=True)
    console.print(*models_tables([facts]))
    assert f"Hosts, {facts['class']}" in console.export_text()


def test_macs_that_cannot_be_counted_are_unknown_and_said_why(monkeypatch) -> None:
    def refuse(module, size):
        raise InputError("It runs something.")

    monkeypatch.setattr(models, "macs", refuse)
    facts = [model_facts("test_vit"), model_facts("test_resnet")]
    assert [(each["macs"], each["macs_reason"]) for each in facts] == [(None, "It runs something.")] * 2
    console = Console(width=80, record=True)
    console.print(*models_tables(facts))
    said = " ".join(console.export_text().split())
    assert "MACs unknown: test_vit, test_resnet It runs something." in said


@needs_relpos
def test_what_opens_neither_way_says_why_twice() -> None:
    facts = model_facts("test_vit_relpos")
    assert facts["opens_as"] is None
    assert "VisionTransformerRelPos cannot be sieved: its relative position bias" in facts["reason"]
    assert "has shape (1, 100, 96), not that of a ConvNet's feature map" in facts["reason_proposal"]
    assert "reason_proposal" not in model_facts("test_vit_relpos", quick=True)


def test_a_model_whose_pictures_cannot_be_prepared_is_counted_at_its_own_size() -> None:
    """volo_d5_448's weights want a crop larger than the picture."""
    assert model_facts("volo_d5_448", quick=True)["input_size"] == [3, 448, 448]


def test_heavy_models_are_not_tried_as_proposals(monkeypatch) -> None:
    monkeypatch.setattr(models, "HEAVY", 1000)
    facts = model_facts("test_resnet")
    assert facts["opens_as"] is None
    assert "too many for a proposal, so test_resnet was not tried" in facts["reason_proposal"]


def test_torchs_own_refusals_are_reasons_too(monkeypatch) -> None:
    def refuse(*_arguments, **_settings):
        raise RuntimeError("required rank 4 tensor to use channels_last format")

    monkeypatch.setattr(models, "named_proposal", refuse)
    assert "required rank 4" in model_facts("test_resnet")["reason_proposal"]


def test_a_constructor_that_computes_is_built_for_real(monkeypatch) -> None:
    class Computing(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.total = self.weight.sum().item()  # not on the meta device

    create = zoo.create

    def computing(name, **settings):
        if name != "computing":
            return create(name, **settings)
        try:
            return zoo.models.Loaded(Computing(), (0.5,) * 3, (0.5,) * 3)
        except RuntimeError as error:
            raise RecipeError(f"{name} cannot be created: {error}.") from error

    monkeypatch.setattr(zoo, "create", computing)
    model, size = built("computing")
    assert next(model.parameters()).device.type == "cpu"
    assert list(size) == [3, 224, 224]


def test_names_that_no_library_knows() -> None:
    with pytest.raises(RecipeError, match="vit_tiny_patch16_224"):
        model_facts("vit_tini_patch16_224")


def test_bundled_models_come_first_and_open(monkeypatch) -> None:
    assert bundled_names() == [*zoo.BUNDLED, "nano_segmenter"]
    opens = [model_facts(name)["opens_as"] for name in bundled_names()]
    kinds = {"nano_convnet": "proposal", "nano_video_proposal": "proposal"}
    assert opens == [kinds.get(name, "host") for name in bundled_names()]
    assert matching("*nano*")[: len(bundled_names())] == bundled_names()
    assert model_facts(bundled_names()[0])["library"] == "tokensieve"
    assert weights_of(bundled_names()[0]) == ["bundled"]


def test_matching() -> None:
    assert matching("test_vit") == ["test_vit"]
    assert matching("deit_t*_patch16_224") == ["deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224"]
    assert matching("squeezenet*") == ["squeezenet1_0", "squeezenet1_1"]
    assert matching("vit_base_patch16_224.m*") == ["vit_base_patch16_224.mae"]
    assert matching("resnet18").count("resnet18") == 1  # in both libraries
    assert matching("torchvision/resnet*8") == ["torchvision/resnet18"]
    with pytest.raises(
        InputError, match=r"No model's name matches 'vit_tiny_patch16'.*vit_tiny_patch16_224.*\* matches any"
    ):
        matching("vit_tiny_patch16")


def test_weights_of_one_tag_and_of_none() -> None:
    assert weights_of("vit_base_patch16_224.mae") == ["mae"]
    assert weights_of("test_vit2") == ["r160_in1k"]
    assert weights_of("vit_base_patch16_18x2_224") == []


def test_models_that_a_user_registered_are_a_family() -> None:
    @timm.models.register_model
    def a_users_vit(pretrained: bool = False, **settings: object) -> nn.Module:
        return timm.create_model("test_vit", pretrained=pretrained, **settings)

    (own,) = [told for told in families() if "a_users_vit" in told["models"]]
    assert own["module"] == __name__.rpartition(".")[2]
    assert own["pretrained"] == []


def test_families_hold_every_model_once_and_hosts_first() -> None:
    told = families()
    names = [name for family in told for name in family["models"]]
    assert sorted(names) == sorted(timm.list_models())
    holding = [family["hosts"] for family in told]
    assert holding == sorted(holding, reverse=True)
    by_module = {family["module"]: family for family in told}
    assert {"vision_transformer", "eva", "deit"} <= {family["module"] for family in told if family["hosts"]}
    assert not by_module["resnet"]["hosts"]
    assert "vit_base_patch16_224" in by_module["vision_transformer"]["pretrained"]
    assert "vit_base_patch16_18x2_224" not in by_module["vision_transformer"]["pretrained"]


def test_the_page_on_hosts_says_what_was_found() -> None:
    with (ROOT / "results" / "hosts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    opening = [row for row in rows if row["opens"] == "True"]
    every = sum(int(row["models"]) for row in rows)
    merging = sum(row["merges"] == "True" for row in opening)
    page = " ".join((ROOT / "docs" / "hosts.md").read_text().split())
    said = re.search(r"Of timm ([\d.]+)'s (\d+) architectures (\d+) open, and (\d+) of these take", page)
    assert said is not None
    assert said[1] in rows[0]["versions"]
    assert tuple(map(int, said.groups()[1:])) == (every, len(opening), merging)
    assert all(row["runs"] == "True" for row in opening)


def test_the_page_on_hosts_says_what_was_found_of_torchvision() -> None:
    with (ROOT / "results" / "hosts_torchvision.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    opening = [row for row in rows if row["opens"] == "True"]
    page = " ".join((ROOT / "docs" / "hosts.md").read_text().split())
    said = re.search(r"Of torchvision's (\d+) models, .* (\d+) open, and (\d+) of these take methods that merge", page)
    assert said is not None
    merging = sum(row["merges"] == "True" for row in opening)
    assert tuple(map(int, said.groups())) == (sum(int(row["models"]) for row in rows), len(opening), merging)
    assert {row["class"] for row in opening} == {"ConvNeXt", "SwinTransformer", "VisionTransformer"}
    assert all(row["runs"] == "True" for row in opening)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_no_gradients_are_left_behind(name: str) -> None:
    assert torch.is_grad_enabled()
    model_facts(name)
    assert torch.is_grad_enabled()

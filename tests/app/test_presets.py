"""Ready recipes: only what a model takes, each with a slider that does what it says."""

import pytest
import timm
import torch

from tokensieve import ModelSpec, Recipe, sieve
from tokensieve.app.models import ModelEntry, bundled_entries, given_entry
from tokensieve.app.presets import STARTING_RECIPE, presets_for
from tokensieve.measure import macs

pytestmark = pytest.mark.versions


@pytest.fixture(scope="module")
def vit():
    spec = ModelSpec("nano_vit", "")
    return spec.open()


def entry(name):
    return next(entry for entry in bundled_entries() if entry.name == name)


def test_the_first_is_the_bundled_proposals_and_keeps_what_the_slider_says(vit):
    presets = presets_for(vit, entry("nano_vit"))
    first = next(iter(presets.values()))
    assert str(first.recipe()) == "papr(keep=0.5, proposal=nano_convnet)"
    assert str(first.recipe(0.3)) == "papr(keep=0.3, proposal=nano_convnet)"
    assert [str(first.recipe(value)) for value in (-1, 7)] == [str(first.recipe(value)) for value in (0.1, 1.0)]


def test_every_preset_of_a_transformer_costs_less_the_further_left_its_slider_stands(vit):
    presets = presets_for(vit, entry("nano_vit"))
    words = ("papr, ranked by", "guarded", "tome", "evit", "middle", "random")
    assert [any(word in name for name in presets) for word in words] == [True] * len(words)
    for preset in presets.values():
        costs = [macs(sieve(vit.dense, preset.recipe(value)), proposal=False) for value in (0.2, 0.5, 0.9)]
        assert costs == sorted(costs), preset.name
        assert costs[0] < 0.75 * macs(vit.dense), preset.name


def test_guarded_meets_the_share_of_work_that_its_slider_says(vit):
    (guarded,) = (each for name, each in presets_for(vit, entry("nano_vit")).items() if "guarded" in name)
    for share in (0.5, 0.8):
        assert 0.95 * share < macs(sieve(vit.dense, guarded.recipe(share))) / macs(vit.dense) <= share


@pytest.mark.parametrize("keep", [0.5, 0.25])
def test_merging_and_class_attention_leave_the_share_that_the_slider_says(vit, keep):
    presets = presets_for(vit, entry("nano_vit"))
    for word in ("tome", "evit"):
        (each,) = (recipe for name, recipe in presets.items() if f"({word})" in name)
        trace = sieve(vit.dense, each.recipe(keep)).trace(torch.rand(1, 3, 112, 112))
        left = trace.tokens.x.shape[1] - trace.tokens.prefix
        assert left / 196 == pytest.approx(keep, abs=0.03), word  # evit adds three fused tokens


def test_models_with_stages_are_offered_no_merging():
    opened = ModelSpec("nano_convnext", "").open()
    names = " ".join(presets_for(opened, entry("nano_convnext")))
    assert "papr, ranked by nano_convnet" in names
    assert "random" in names
    assert not any(word in names for word in ("tome", "guarded", "evit", "dtop"))


def test_segmenters_with_exits_begin_with_early_exits():
    opened = ModelSpec("nano_segmenter", "").open()
    first = next(iter(presets_for(opened, entry("nano_segmenter")).values()))
    assert str(first.recipe(0.8)) == "dtop(threshold=0.8)"
    assert first.slider.label == "Confidence"


def test_models_of_video_are_offered_what_moves():
    pytest.importorskip("transformers", reason="nano_video is a model of transformers")
    opened = ModelSpec("nano_video", "").open()
    names = " ".join(presets_for(opened, entry("nano_video")))
    assert all(word in names for word in ("motion", "nano_video_proposal", "rlt", "tome", "random"))
    assert "guarded" not in names


@pytest.mark.parametrize(
    ("text", "slider", "moved"),
    [
        ("papr(keep=0.8, significance=centre) + tome(r=2)", 0.8, "papr(keep=0.4, significance=centre) + tome(r=2)"),
        ("tome(r=2)", None, "tome(r=2)"),
    ],
)
def test_the_recipe_that_the_page_was_started_with_is_first(text, slider, moved):
    own = given_entry(ModelSpec("test_vit", text, pretrained=False))
    presets = presets_for(own.opened, own)
    first = next(iter(presets.values()))
    assert first.name == STARTING_RECIPE
    assert str(first.recipe()) == text
    assert str(first.recipe(0.4)) == moved
    assert first.slider is None if slider is None else first.slider.value == slider


def test_a_given_model_that_is_bundled_keeps_its_names_and_its_network():
    own = given_entry(ModelSpec("nano_vit", "papr(keep=0.3, proposal=nano_convnet)"))
    assert own.classes == tuple("0123456789")
    assert own.proposal == "nano_convnet"
    assert own.recipe == Recipe.parse("papr(keep=0.3, proposal=nano_convnet)")


def test_no_preset_of_another_model_asks_for_a_network_that_is_not_here():
    spec = ModelSpec("test_vit", "", pretrained=False)
    presets = presets_for(spec.open(), ModelEntry("test_vit", "", spec))
    assert presets
    for preset in presets.values():
        assert not any(getattr(method, "needs_proposal", False) for method in preset.recipe())


def test_a_host_without_a_class_token_is_offered_no_class_attention():
    model = timm.create_model("test_vit", global_pool="avg", class_token=False).eval()
    spec = ModelSpec("test_vit", "", pretrained=False)
    opened = spec.sieve(model, spec.open().preprocessing, Recipe())
    names = " ".join(presets_for(opened, ModelEntry("test_vit", "", spec)))
    assert "tome" in names
    assert "evit" not in names

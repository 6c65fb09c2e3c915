"""The recipe that commands take by themselves."""

import json
from pathlib import Path

import pytest

from tests.reference.hosts import host_forms, host_images
from tokensieve import UnsupportedHost, sieve
from tokensieve.export.checked import Exported
from tokensieve.measure import macs
from tokensieve.search.default import EXITS, RANKED, SAVING, default_recipe
from tokensieve.segmentation import linear, setr
from tokensieve.zoo import create

pytestmark = pytest.mark.slow

FORMS = ["class-token", "registers", "gap", "siglip", "dinov3", "eva-gqa", "mae"]


@pytest.mark.parametrize("name", FORMS)
def test_it_saves_what_it_says_without_a_proposal(name):
    host = host_forms()[name]()
    size = tuple(host_images(host).shape[1:])
    recipe = default_recipe(host, size)
    fast = sieve(host, recipe)
    assert fast.significance is None
    assert macs(host, size) / macs(fast, size) >= SAVING * (1 - 1e-9)
    assert {method.name for method in recipe} <= {"guarded", "readout", "tome"}


def test_a_class_token_is_followed_and_hosts_with_stages_are_ranked():
    vit, mean = create("test_vit", pretrained=False), create("vit_base_patch16_siglip_gap_224", pretrained=False)
    assert [method.name for method in default_recipe(vit.model, (3, 160, 160))] == ["guarded", "readout"]
    assert [method.name for method in default_recipe(mean.model, (3, 224, 224))] == ["tome"]
    staged = create("test_convnext", pretrained=False)
    assert str(default_recipe(staged.model, (3, 160, 160))) == RANKED
    with pytest.raises(UnsupportedHost):
        default_recipe(create("resnet18", pretrained=False).model, (3, 224, 224))


def test_segmenters_with_exits_are_left_early():
    vit = create("test_vit", pretrained=False).model
    assert str(default_recipe(setr(vit, 3, "naive", (1, 3), channels=8), (3, 160, 160))) == EXITS
    assert "dtop" not in str(default_recipe(linear(vit, 3), (3, 160, 160))), "one head is no exit"


@pytest.mark.parametrize("command", ["bench", "export", "show", "demo"])
def test_commands_say_that_it_is_the_default(run, there, monkeypatch, command):
    images, logits = {"images": ("batch", 3, 160, 160)}, {"logits": ("batch", 1000)}
    written = Exported(Path("m.pt2"), images, logits, {1: 0.0}, nodes=9, bytes=9)
    monkeypatch.setattr("tokensieve.export.export_program", lambda *_, **__: written)  # what is said takes no file
    options = {
        "bench": ["--seconds", 0, "--batch", 1],
        "export": ["--out", "m.pt2", "--no-pretrained"],
        "show": ["scenes", "--limit", 2, "--no-pretrained"],
        "demo": ["--no-pretrained", "--seconds", 0, "--batch", 1],
    }[command]
    result = run(command, "--model", "test_vit", *options)
    assert result.code == 0, result.err
    out = " ".join(result.out.split())
    assert "recipe guarded(r=(" in out
    assert "the default: guarded merging at 1.5x fewer MACs" in out
    help_text = " ".join(run(command, "--help").out.replace("│", " ").split())
    assert "guarded merging at 1.5x fewer MACs" in help_text


def test_a_proposal_with_weights_has_a_recipe_that_asks_it(run, refused):
    assert "no weights file absent" in refused("bench", "--model", "test_vit", "--proposal-weights", "absent")


def test_what_varies_the_ranking_has_a_recipe_that_ranks(run, there):
    options = ["--no-pretrained", "--proposals", "test_resnet", "--keep", "0.6,0.3", "--json", "--out", "s.html"]
    record = json.loads(run("show", "scenes", "--limit", 1, "--model", "test_vit", *options).out)
    assert [row["keep"] for row in record["grid"]] == [0.6, 0.3]
    assert record["recipe_is_default"] is False

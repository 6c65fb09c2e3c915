"""Recipes on the hub: what is pushed is what is read; what is not a known recipe is refused, and no code runs."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hub.conftest import StandIn
from tests.methods.test_base import ASKING, host_and_recipe
from tests.test_recipe_folder import TRAINED, pictures
from tokensieve import CascadeRecipe, InputError, Recipe, RecipeError, sieve
from tokensieve.hub import HubRecipe

REPO = "you/recipe"


def pushed(hub: StandIn, tmp_path: Path, name: str = "corrected") -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A recipe with weights on the hub, and gone from here; the model, images and the sieved model's answer."""
    (tmp_path / "weights").mkdir()
    model, recipe, _ = host_and_recipe(name, tmp_path / "weights")
    images = pictures(model)
    wanted = sieve(model, recipe)(images)
    assert HubRecipe(recipe, model="some_vit").push_to_hub(REPO) == f"{REPO}: A recipe of tokensieve"
    shutil.rmtree(tmp_path / "weights")
    return model, images, wanted


@pytest.mark.parametrize("name", ASKING)
@torch.no_grad()
def test_what_is_pushed_answers_elsewhere_bit_by_bit_as_before(name: str, hub: StandIn, tmp_path: Path) -> None:
    model, images, wanted = pushed(hub, tmp_path, name)
    found = HubRecipe.from_pretrained(REPO)
    assert torch.equal(sieve(model, found.recipe)(images), wanted)
    assert found.model == "some_vit"
    assert found.evaluation is None
    assert [name for name in hub.asked if name.endswith(".json")] == ["config.json", "recipe.json"]
    assert len(hub.asked) == 3


@torch.no_grad()
def test_a_cascade_comes_down_with_the_weights_of_all_its_recipes(hub: StandIn, tmp_path: Path) -> None:
    model, recipe, _ = host_and_recipe("corrected", tmp_path)
    fast = sieve(model, CascadeRecipe((recipe, "tome(r=2)", ""), (0.004, 0.0), agree=0.98, confidence=0.95, images=500))
    fast.members[0].parts["0"].bias += 1
    images = torch.randn(12, 3, 32, 32)
    wanted = fast(images)
    HubRecipe(fast.recipe, parts=[member.parts for member in fast.members]).push_to_hub(REPO)
    found = HubRecipe.from_pretrained(REPO).recipe
    assert torch.equal(sieve(model, found)(images), wanted)
    assert len(hub.asked) == 3
    assert json.loads((hub.commit(REPO) / "config.json").read_text())["type"] == "cascade"
    card = (hub.commit(REPO) / "README.md").read_text()
    assert "It was calibrated on 500 images to agree with the dense model on 98 % of images like these" in card


@torch.no_grad()
def test_what_was_trained_is_what_is_pushed(hub: StandIn, tmp_path: Path) -> None:
    model, recipe, _ = host_and_recipe(TRAINED[0], tmp_path)
    images, fast = pictures(model), sieve(model, recipe)
    for weights in fast.parts.parameters():
        weights.add_(torch.randn_like(weights))
    wanted = fast(images)
    HubRecipe(recipe, parts=fast.parts).push_to_hub(REPO)
    assert torch.equal(sieve(model, HubRecipe.from_pretrained(REPO).recipe)(images), wanted)


def test_a_recipe_without_weights_and_one_that_is_pushed_on(hub: StandIn) -> None:
    first = HubRecipe("papr(keep=0.5) + tome(r=4)", model="some_vit", license="mit", notes="Made of nothing.")
    first.push_to_hub(REPO)
    HubRecipe.from_pretrained(REPO).push_to_hub("other/recipe", private=True)
    found = HubRecipe.from_pretrained("other/recipe")
    assert (found.recipe, found.model, found.license, found.notes) == (
        Recipe.parse("papr(keep=0.5) + tome(r=4)"),
        *("some_vit", "mit", "Made of nothing."),
    )


def test_branches_and_commits(hub: StandIn) -> None:
    HubRecipe("tome(r=4)").push_to_hub(REPO)
    first = hub.heads[REPO, "main"]
    HubRecipe("tome(r=8)").push_to_hub(REPO, branch="faster")
    HubRecipe("tome(r=2)").push_to_hub(REPO)
    recipes = [str(HubRecipe.from_pretrained(REPO, revision=each).recipe) for each in (None, "faster", first)]
    assert recipes == ["tome(r=2)", "tome(r=8)", "tome(r=4)"]


@torch.no_grad()
def test_only_named_files_come_down_and_all_of_one_commit(hub: StandIn, tmp_path: Path) -> None:
    model, images, wanted = pushed(hub, tmp_path)
    (hub.commit(REPO) / "pytorch_model.bin").write_bytes(b"not asked for")
    (hub.commit(REPO) / "corrected-0123456789abcdef.safetensors").write_bytes(b"not named")

    def another_commit(name: str) -> None:
        if name.endswith(".safetensors") and len(list(hub.commit(REPO).parent.iterdir())) == 1:
            HubRecipe("tome(r=8)").push_to_hub(REPO, delete_patterns="*.safetensors")

    hub.before = another_commit
    found = HubRecipe.from_pretrained(REPO, cache_dir=tmp_path / "mine")
    assert torch.equal(sieve(model, found.recipe)(images), wanted)
    assert len(hub.asked) == 3
    assert {Path(path).is_relative_to(tmp_path / "mine") for path in found.recipe.paths()} == {True}
    assert str(HubRecipe.from_pretrained(REPO).recipe) == "tome(r=8)"


def test_a_folder_alone(tmp_path: Path) -> None:
    assert HubRecipe("tome(r=8)", model="some_vit").save_pretrained(tmp_path / "folder") is None
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["README.md", "config.json", "recipe.json"]
    found = HubRecipe.from_pretrained(tmp_path / "folder")
    assert (str(found.recipe), found.model) == ("tome(r=8)", "some_vit")
    assert Recipe.from_pretrained(tmp_path / "folder") == found.recipe


CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another type": (
        lambda told: {**told, "type": "pickle"},
        "of type 'pickle'; this release reads recipe, cascade",
    ),
    "a type that is none": (lambda told: {**told, "type": ["recipe"]}, r"is of type \['recipe'\]"),
    "a later version": (lambda told: {**told, "version": 2}, "a recipe of version 2; this release reads 1: update"),
    "no version": (lambda told: {"library": "tokensieve", "type": "recipe"}, "a recipe of version None"),
    "true": (lambda told: {**told, "version": True}, "a recipe of version True"),
    "another library": (lambda told: {**told, "library": "timm"}, "holds no recipe of tokensieve"),
    "nothing": (lambda told: {}, "holds no recipe of tokensieve"),
    "a list": (lambda told: [told], "could not be loaded"),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_types_and_versions_that_are_not_known_are_refused_before_anything_comes_down(what: str, hub: StandIn) -> None:
    HubRecipe("tome(r=8)").push_to_hub(REPO)
    change, told = CONFIGS[what]
    config = hub.commit(REPO) / "config.json"
    config.write_text(json.dumps(change(json.loads(config.read_text()))))
    with pytest.raises((RecipeError, InputError), match=told):
        HubRecipe.from_pretrained(REPO)
    assert hub.asked == ["config.json"]


WORDS = {
    "weights above": (
        {"name": "corrected", "weights": "../../secret.safetensors", "sha256": "0" * 64},
        "save_pretrained",
    ),
    "weights of another kind": ({"name": "corrected", "weights": "w.bin", "sha256": "0" * 64}, "save_pretrained"),
    "a repository as proposal": ({"name": "papr", "keep": 0.5, "proposal": "transformers/you/evil"}, "'transformers/"),
    "a hub's model": ({"name": "papr", "keep": 0.5, "proposal": "hf-hub:you/evil"}, "names 'hf-hub:you/evil'"),
    "a place": ({"name": "papr", "keep": 0.5, "proposal_args": {"cache_dir": "x"}}, "names 'cache_dir'"),
    "a file": ({"name": "papr", "keep": 0.5, "proposal_args": {"pretrained_cfg": {"file": "/x.bin"}}}, "'/x.bin'"),
    "no method": ({"name": "os.system", "command": "true"}, "There is no method 'os.system'"),
    "no setting": ({"name": "tome", "r": 8, "__class__": "x"}, "tome has no setting '__class__'"),
}


@pytest.mark.parametrize("what", WORDS)
def test_a_recipe_that_names_what_it_must_not_is_refused_before_anything_comes_down(what: str, hub: StandIn) -> None:
    HubRecipe("tome(r=8)").push_to_hub(REPO)
    entry, told = WORDS[what]
    (hub.commit(REPO) / "recipe.json").write_text(json.dumps({"tokensieve": 2, "methods": [entry]}))
    with pytest.raises(RecipeError, match=told):
        HubRecipe.from_pretrained(REPO)
    assert hub.asked == ["config.json", "recipe.json"]


def test_names_of_models_that_are_no_places_may_stand_there(hub: StandIn) -> None:
    recipe = Recipe.parse("papr(keep=0.5, proposal='torchvision/resnet18', significance='cam')")
    HubRecipe(recipe).push_to_hub(REPO)
    assert HubRecipe.from_pretrained(REPO).recipe == recipe


def test_other_weights_than_the_recorded_ones_are_refused(hub: StandIn, tmp_path: Path) -> None:
    pushed(hub, tmp_path)
    (file,) = hub.commit(REPO).glob("*.safetensors")
    save_file({name: value + 1 for name, value in load_file(file).items()}, file)
    with pytest.raises(InputError, match="is not the file that was expected: its SHA-256"):
        HubRecipe.from_pretrained(REPO)


class _Runs:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (pytest.fail, ("a pickle was opened",))


def test_a_pickle_in_the_place_of_weights_is_not_opened(hub: StandIn, tmp_path: Path) -> None:
    pushed(hub, tmp_path)
    (file,) = hub.commit(REPO).glob("*.safetensors")
    recipe = hub.commit(REPO) / "recipe.json"
    told = json.loads(recipe.read_text())
    file.write_bytes(pickle.dumps(_Runs()))
    from hashlib import sha256

    digest = sha256(file.read_bytes()).hexdigest()
    named = file.rename(file.with_name(f"corrected-{digest[:16]}.safetensors"))
    (setting,) = Recipe.from_json(json.dumps(told)).methods[0].files.items()
    told["methods"][0] |= {setting[0]: named.name, setting[1]: digest}
    recipe.write_text(json.dumps(told))
    found = HubRecipe.from_pretrained(REPO)
    with pytest.raises(InputError, match="cannot be read as weights"):
        found.recipe.methods[0].read("weights")


def test_what_is_not_there_is_a_sentence(hub: StandIn, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The recipe you/nothing could not be loaded: 404 Client Error"):
        HubRecipe.from_pretrained("you/nothing")
    with pytest.raises(InputError, match="could not be loaded"):
        HubRecipe.from_pretrained(tmp_path / "nothing here")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RecipeError, match="holds no recipe of tokensieve"):
        HubRecipe.from_pretrained(tmp_path / "folder")
    with pytest.raises(InputError, match="There is no weights file"):
        HubRecipe("corrected(weights=nowhere.safetensors)").push_to_hub(REPO)


def test_a_hub_that_does_not_answer_is_a_sentence(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> str:
        raise ConnectionError("it is night\nmany more lines")

    monkeypatch.setattr(hub, "upload_folder", refuse)
    with pytest.raises(InputError, match=r"^you/recipe could not be pushed: it is night\.$"):
        HubRecipe("tome(r=8)").push_to_hub(REPO)

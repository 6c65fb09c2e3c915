"""Recipes in folders with their weights: moved anywhere they answer bit by bit as before; what else is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.methods.test_base import ASKING, host_and_recipe
from tokensieve import (
    CascadeRecipe,
    Corrected,
    DynamicViT,
    InputError,
    PaPr,
    PatchSlimming,
    Recipe,
    RecipeError,
    ToMe,
    _files,
    sieve,
)
from tokensieve._frozen import replace
from tokensieve.methods import METHODS, Evidence, Method
from tokensieve.methods.base import TokenSite
from tokensieve.methods.weights import load_part, renamed
from tokensieve.tokens import Tokens

TRAINED = [name for name in ASKING if name != "papr"]


def pictures(model: Any) -> Tensor:
    size = 32 if hasattr(model, "blocks") else 64
    return torch.randn(2, 3, size, size, dtype=next(model.parameters()).dtype)


def opened_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The recipe of a folder that was moved, with nothing else left of where it was."""
    (folder.parent / "away").mkdir()
    moved = shutil.move(folder, folder.parent / "away" / "moved here, too")
    monkeypatch.chdir(folder.parent / "away")
    return Recipe.from_pretrained(os.path.relpath(moved))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("name", ASKING)
@torch.no_grad()
def test_a_folder_alone_answers_as_before(
    name: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").mkdir()
    model, recipe, file = host_and_recipe(name, tmp_path / "weights")
    if suffix == ".pt":
        torch.save({"model": load_file(file), "epoch": torch.tensor(3)}, file.with_suffix(".pt"))
        recipe = Recipe.parse(str(recipe).replace(file.name, file.with_suffix(".pt").name))
    images = pictures(model)
    wanted = sieve(model, recipe)(images)
    assert recipe.save_pretrained(tmp_path / "folder") == tmp_path / "folder"
    shutil.rmtree(tmp_path / "weights")
    found = opened_elsewhere(tmp_path / "folder", monkeypatch)
    assert torch.equal(sieve(model, found)(images), wanted)
    names = sorted(path.name for path in Path("moved here, too").iterdir())
    assert len(names) == 2
    assert names[1] == "recipe.json"
    assert names[0].startswith(f"{name}-")
    assert torch.equal(sieve(model, "moved here, too/recipe.json")(images), wanted)  # a recipe file as any other
    assert str(tmp_path) not in Path("moved here, too/recipe.json").read_text()


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("name", TRAINED)
@torch.no_grad()
def test_what_was_trained_is_what_is_stored(
    name: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recipe, file = host_and_recipe(name, tmp_path)
    if not named:
        settings = {key: value for key, value in recipe.methods[0].settings().items() if "keep" in key}
        recipe = Recipe.of(METHODS[name](**settings))
    images, fast = pictures(model), sieve(model, recipe, pretrained=False)
    before = fast(images)
    for parameter in fast.parts.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    wanted = fast(images)
    assert not torch.equal(wanted, before)
    text = file.read_bytes()
    fast.recipe.save_pretrained(tmp_path / "folder", parts=fast.parts)
    assert file.read_bytes() == text
    file.unlink()
    again = sieve(model, opened_elsewhere(tmp_path / "folder", monkeypatch))
    for value, other in zip(again.parts.state_dict().values(), fast.parts.state_dict().values(), strict=True):
        assert torch.equal(value, other)
    assert torch.equal(again(images), wanted)


def test_files_have_the_names_of_published_checkpoints(tmp_path: Path) -> None:
    for name, some in {
        "dynamicvit": "score_predictor.2.out_conv.4.bias",
        "dynamiccnn": "stages.2.8.fast_path_gamma",
        "dynamicswin": "layers.2.blocks.5.fastmlp.fc1.1.weight",
        "corrected": "weight",
    }.items():
        (tmp_path / name).mkdir()
        model, recipe, file = host_and_recipe(name, tmp_path / name)
        fast = sieve(model, recipe)
        fast.recipe.save_pretrained(tmp_path / name / "folder", parts=fast.parts)
        (stored,) = (tmp_path / name / "folder").glob("*.safetensors")
        state, given = load_file(stored), load_file(file)
        assert some in state
        assert set(state) == {key for key in given if key != "head.weight"}
        for key, value in state.items():
            assert torch.equal(value.float().flatten(), given[key].float().flatten())


def test_templates_of_names() -> None:
    one = torch.ones(1)
    state = {"a.3.b.c.d": one, "a.3.4.b.c": one, "x.y": one, "other": one}
    assert set(renamed(state, {"a.{}.b.{}": "{}/{}", "x.{}": "{}"})) == {"3/c.d", "y"}
    assert set(renamed({"a+b.1": one, "aab.1": one}, {"a+b.{}": "{}"})) == {"1"}


def small() -> nn.Module:
    torch.manual_seed(0)
    return timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=4, num_heads=2, num_classes=5
    ).eval()


def several(folder: Path) -> Recipe:
    """Three methods with weights, the last two of one kind, and one that has none."""
    torch.manual_seed(1)
    proposal = timm.create_model("test_resnet").state_dict()
    save_file(proposal, folder / "net.safetensors")
    for name in ("one", "two"):
        save_file({"weight": torch.randn(16, 16) * 0.1, "bias": torch.randn(16)}, folder / f"{name}.safetensors")
    papr = PaPr(keep=0.7, proposal="test_resnet", proposal_weights=folder / "net.safetensors", proposal_norm="shared")
    corrections = [Corrected(weights=folder / f"{name}.safetensors") for name in ("one", "two")]
    return papr + ToMe(r=1) + corrections[0] + corrections[1]


def test_several_methods_keep_their_own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, model = several(tmp_path), small()
    fast, images = sieve(model, recipe), pictures(model)
    with torch.no_grad():
        fast.parts["3"].bias += 1
        wanted = fast(images)
        fast.recipe.save_pretrained(tmp_path / "folder", parts={"3": fast.parts["3"]})
        assert len(list((tmp_path / "folder").iterdir())) == 4
        for file in tmp_path.glob("*.safetensors"):
            file.unlink()
        again = sieve(model, opened_elsewhere(tmp_path / "folder", monkeypatch))
        assert torch.equal(again(images), wanted)


def test_a_folder_can_be_opened_trained_and_written_again(tmp_path: Path) -> None:
    model, folder = small(), tmp_path / "folder"
    several(tmp_path).save_pretrained(folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "corrected-mine.safetensors").write_text("mine")
    shutil.copy(tmp_path / "one.safetensors", folder / "one.safetensors")
    Recipe.of(Corrected(weights=folder / "one.safetensors")).save(folder / "other.json")
    before = {path.name for path in folder.iterdir()}
    fast, images = sieve(model, Recipe.from_pretrained(folder)), pictures(model)
    with torch.no_grad():
        fast.parts["2"].bias += 1
        fast.recipe.save_pretrained(folder, parts=fast.parts)
        after = {path.name for path in folder.iterdir()}
        assert len(before - after) == len(after - before) == 1  # the weights that were replaced
        assert torch.equal(sieve(model, Recipe.from_pretrained(folder))(images), fast(images))
        Recipe.from_pretrained(folder).save_pretrained(folder)
        assert {path.name for path in folder.iterdir()} == after
        Recipe.from_pretrained(folder).save(folder / "kept.json")
        Recipe.of(ToMe(r=2)).save_pretrained(folder)
        assert {path.name for path in folder.iterdir()} == after | {"kept.json"}  # which another recipe there names
        (folder / "kept.json").unlink()
        Recipe.of(ToMe(r=2)).save_pretrained(folder)
    left = {"corrected-mine.safetensors", "notes.txt", "one.safetensors", "other.json", "recipe.json"}
    assert {path.name for path in folder.iterdir()} == left
    assert Recipe.from_pretrained(folder) == Recipe.of(ToMe(r=2))


@torch.no_grad()
def test_a_cascade_is_one_folder_with_the_weights_of_all_its_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").mkdir()
    model, first, _ = host_and_recipe("corrected", tmp_path / "weights")
    images = torch.randn(12, 3, 32, 32)
    middle = float(sieve(model, CascadeRecipe((first, ""), (0.5,))).trace(images).scores.median())
    recipe = CascadeRecipe((first, Recipe.of(ToMe(r=2)) + first, ""), (middle, 0.0), images=500)
    trace = sieve(model, recipe).trace(images)
    assert set(trace.member.tolist()) == {0, 1}
    wanted = trace.output
    assert recipe.save_pretrained(tmp_path / "folder") == tmp_path / "folder"
    assert len(list((tmp_path / "folder").iterdir())) == 2  # recipe.json, and one file for the two that share it
    fast = sieve(model, CascadeRecipe.from_pretrained(tmp_path / "folder"))
    assert torch.equal(fast(images), wanted)
    with pytest.raises(RecipeError, match="This one is a cascade: read it by CascadeRecipe"):
        Recipe.from_pretrained(tmp_path / "folder")
    fast.members[1].parts["1"].bias += 1
    moved = fast(images)
    assert not torch.equal(moved, wanted)
    fast.recipe.save_pretrained(tmp_path / "folder", parts=[member.parts for member in fast.members])
    shutil.rmtree(tmp_path / "weights")
    monkeypatch.chdir(shutil.move(tmp_path / "folder", tmp_path / "moved"))
    found = CascadeRecipe.from_pretrained(".")
    assert torch.equal(sieve(model, found)(images), moved)
    assert (found.thresholds, found.images) == ((middle, 0.0), 500)
    with pytest.raises(RecipeError, match="layers for 1 recipes, and the cascade has 3"):
        recipe.save_pretrained(tmp_path / "other", parts=[fast.members[0].parts])
    found.recipes[0].save_pretrained(tmp_path / "single")
    with pytest.raises(RecipeError, match="has a single recipe, not a cascade"):
        CascadeRecipe.from_pretrained(tmp_path / "single")


def test_a_write_that_is_stopped_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = small(), tmp_path / "folder"
    several(tmp_path).save_pretrained(folder)
    fast, images = sieve(model, Recipe.from_pretrained(folder)), pictures(model)
    wanted = fast(images)
    with torch.no_grad():
        fast.parts["2"].bias += 1
    move = os.replace

    def stopped(source: Path, target: Path) -> None:
        if Path(target).name == "recipe.json":
            raise KeyboardInterrupt
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(_files.os, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            fast.recipe.save_pretrained(folder, parts=fast.parts)
    assert torch.equal(sieve(model, Recipe.from_pretrained(folder))(images), wanted)
    assert not [path for path in folder.iterdir() if path.is_dir()]
    fast.recipe.save_pretrained(folder, parts=fast.parts)
    assert len(list(folder.iterdir())) == 4
    assert torch.equal(sieve(model, Recipe.from_pretrained(folder))(images), fast(images))


def test_what_cannot_be_stored_is_refused_and_leaves_no_folder(there: Path) -> None:
    model = small()
    fast = sieve(model, "corrected()", pretrained=False)
    vit = sieve(model, DynamicViT(keep=0.5), pretrained=False)
    (there / "a file").write_text("")
    refused: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (PaPr(keep=0.5, proposal=nn.Conv2d(3, 8, 3)), {}, RecipeError, "proposal is a Conv2d"),
        (PaPr(keep=0.5, significance=torch.ones(16)), {}, RecipeError, "significance is a Tensor"),
        (Corrected(weights="absent.st"), {}, InputError, "no weights file absent.st"),
        (Corrected(weights="a file"), {}, InputError, "a file cannot be read as weights"),
        (Corrected(weights="a file", sha256="00"), {}, InputError, "is not the file that was expected"),
        (fast.recipe, {}, RecipeError, r"corrected names no weights: give those.*parts=fast\.parts"),
        (vit.recipe, {"parts": {}}, RecipeError, "dynamicvit names no weights"),
        (fast.recipe, {"parts": {"1": nn.Linear(2, 2)}}, RecipeError, "method '1', and the recipe has 1 methods"),
        (fast.recipe, {"parts": {"0": nn.Linear(2, 2, device="meta")}}, InputError, "corrected are on the meta device"),
        (ToMe(r=2), {"parts": fast.parts}, RecipeError, "tome has learned layers but no setting `weights`"),
    ]
    for recipe, words, error, sentence in refused:
        with pytest.raises(error, match=sentence):
            Recipe.of(recipe).save_pretrained("folder", **words)
    with pytest.raises(InputError, match="a file is a file"):
        Recipe.of(ToMe(r=2)).save_pretrained("a file")
    with pytest.raises(InputError, match="there is no folder absent"):
        Recipe.of(ToMe(r=2)).save_pretrained("absent/folder")
    assert [path.name for path in there.iterdir()] == ["a file"]


def test_parts_that_hold_no_weights_need_no_setting(tmp_path: Path) -> None:
    slimming = PatchSlimming(patches=((0, 3, 5), (0, 3), (3,), (3,)))
    fast = sieve(small(), slimming)
    assert len(fast.parts)
    fast.recipe.save_pretrained(tmp_path / "folder", parts=fast.parts)
    assert Recipe.from_pretrained(tmp_path / "folder") == Recipe.of(slimming)


@dataclass(frozen=True)
class Shifted(Method[Evidence]):
    """Adds what it learned; its file is optional."""

    weights: str | None = None
    sha256: str | None = None
    name: ClassVar[str] = "shifted"
    place: ClassVar[Literal["after"]] = "after"
    files: ClassVar[dict[str, str]] = {"weights": "sha256"}

    def left(self, site: TokenSite) -> int:
        return site.tokens

    def acts(self, site: TokenSite) -> bool:
        return site.block == 1

    def build(self, width: int, depth: int, pretrained: bool) -> nn.Module:
        part = nn.Linear(width, width)
        if self.weights is not None:
            load_part(self, part, "the shift")
        return part

    def reduce(self, tokens: Tokens, left: int, evidence: Evidence) -> Tokens:
        return replace(tokens, x=tokens.x + evidence.module(tokens.x))


def test_a_method_from_elsewhere_needs_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "shifted", Shifted)
    model, images = small(), torch.randn(2, 3, 32, 32)
    fast = sieve(model, Shifted())
    fast.recipe.save_pretrained(tmp_path / "folder", parts=fast.parts)
    again = sieve(model, opened_elsewhere(tmp_path / "folder", monkeypatch))
    assert torch.equal(again(images), fast(images))
    assert not torch.equal(fast(images), model(images))


def altered(folder: Path, **settings: Any) -> None:
    """Changes the first method in a folder's recipe."""
    data = json.loads((folder / "recipe.json").read_text())
    data["methods"][0] |= settings
    (folder / "recipe.json").write_text(json.dumps(data))


def test_folders_that_are_not_as_they_were_written_are_refused(there: Path) -> None:
    save_file({"weight": torch.zeros(16, 16), "bias": torch.zeros(16)}, "w.safetensors")
    torch.save({"weight": torch.zeros(16, 16), "bias": torch.zeros(16)}, "w.pt")
    recipe, folder = Recipe.of(Corrected(weights="w.safetensors")), Path("folder")

    def written() -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        recipe.save_pretrained(folder)
        return next(folder.glob("corrected-*"))

    digest = sha256(written().read_bytes()).hexdigest()
    assert Recipe.from_pretrained(folder).methods[0].sha256 == digest  # type: ignore[attr-defined]
    elsewhere = "which is no safetensors file in its own folder"
    for name in ("../w.safetensors", str(there / "w.safetensors"), "sub/w.safetensors", "..\\w.safetensors", "w.pt"):
        written()
        altered(folder, weights=name)
        with pytest.raises(RecipeError, match=rf"was not written by save_pretrained: it names weights=.*{elsewhere}"):
            Recipe.from_pretrained(folder)
    written()
    altered(folder, sha256=None)
    with pytest.raises(RecipeError, match="without its SHA-256"):
        Recipe.from_pretrained(folder)
    written().unlink()
    with pytest.raises(InputError, match="There is no weights file folder/corrected"):
        Recipe.from_pretrained(folder)
    file = written()
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match=rf"is not the file that was expected: .* expected {digest}"):
        Recipe.from_pretrained(folder)
    written()
    for old, new, sentence in [
        ('"tokensieve": 2', '"tokensieve": 99', "version 99"),
        ('"corrected"', '"corected"', "the nearest (is|are) corrected"),
        ('"tokensieve": 2', '"timm": 2', "A recipe file is an object"),
        ("{", "corrected(", "not JSON"),
    ]:
        text = (folder / "recipe.json").read_text()
        (folder / "recipe.json").write_text(text.replace(old, new, 1))
        with pytest.raises(RecipeError, match=sentence):
            Recipe.from_pretrained(folder)
        (folder / "recipe.json").write_text(text)
    for absent in ("absent", "w.pt", "."):
        with pytest.raises(RecipeError, match=r"recipe\.json' cannot be read"):
            Recipe.from_pretrained(absent)


class Harmful:
    """A pickle that writes a file when it is opened."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("harmed",)


def test_no_code_is_run(there: Path) -> None:
    save_file({"weight": torch.zeros(16, 16), "bias": torch.zeros(16)}, "w.safetensors")
    Recipe.of(Corrected(weights="w.safetensors")).save_pretrained("folder")
    file = next(Path("folder").glob("corrected-*"))
    file.write_bytes(pickle.dumps(Harmful()))
    altered(Path("folder"), sha256=sha256(file.read_bytes()).hexdigest())
    with pytest.raises(InputError, match="cannot be read as weights"):
        sieve(small(), Recipe.from_pretrained("folder"))
    torch.save(Harmful(), "folder/w.pt")
    for where in ({"checkpoint_path": "folder/w.pt"}, {"pretrained_cfg_overlay": {"file": "folder/w.pt"}}):
        Recipe.of(PaPr(keep=0.5, proposal="test_resnet", proposal_norm="shared")).save_pretrained("folder")
        altered(Path("folder"), proposal_args=where)
        with pytest.raises(RecipeError, match="which would load weights unchecked: give their file"):
            sieve(small(), Recipe.from_pretrained("folder"))
    assert not Path("harmed").exists()
    pickle.loads(pickle.dumps(Harmful()))
    assert Path("harmed").exists()  # what was tried would have shown

"""What all methods have in common: weights in files, known by their hash."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer

from tests.methods.test_dynamic_spatial import case
from tokensieve import InputError, Recipe, sieve
from tokensieve.methods import METHODS

ASKING = sorted(name for name, cls in METHODS.items() if cls.files)


def host_and_recipe(name: str, folder: Path) -> tuple[Any, Recipe, Path]:
    """A small host, the method on it, and the file of weights that it reads."""
    if name in ("dynamiccnn", "dynamicswin"):
        model, _, file = case(name.removeprefix("dynamic"), folder)
        return model, Recipe.parse(f"{name}(keep=0.75, weights={str(file)!r})"), file
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=4, num_heads=2, num_classes=5).eval()
    file = folder / "w.safetensors"
    if name == "papr":
        save_file(timm.create_model("test_resnet").state_dict(), file)
        norm = "proposal_norm=shared, proposal=test_resnet"
        return model, Recipe.parse(f"papr(keep=0.5, {norm}, proposal_weights={str(file)!r})"), file
    keep = "keep=0.5" if name == "dynamicvit" else ""
    part = sieve(model, f"{name}({keep})", pretrained=False).parts["0"]
    start = "score_predictor." if name == "dynamicvit" else ""
    save_file({start + key: value.contiguous() for key, value in part.state_dict().items()}, file)
    return model, Recipe.parse(f"{name}({keep}{', ' if keep else ''}weights={str(file)!r})"), file


@pytest.mark.parametrize("name", ASKING)
@torch.no_grad()
def test_a_moved_recipe_answers_the_same_and_one_with_other_weights_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    model, recipe, file = host_and_recipe(name, tmp_path / "here")
    like = next(model.parameters())
    images = torch.randn(2, 3, *((32, 32) if hasattr(model, "blocks") else (64, 64)), dtype=like.dtype)
    wanted = sieve(model, recipe)(images)
    recipe.save(tmp_path / "here" / "best.json")
    shutil.move(tmp_path / "here", tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(sieve(model, "there/best.json")(images), wanted)
    with pytest.raises(InputError, match="There is no weights file"):
        sieve(model, recipe)
    file = tmp_path / "there" / file.name
    save_file({key: value * 1.5 for key, value in load_file(file).items()}, file)
    with pytest.raises(InputError, match="is not the file that was expected: its SHA-256"):
        sieve(model, "there/best.json")

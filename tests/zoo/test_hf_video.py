"""transformers' models of video by name: what is built, from where, and how its clips are normalised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("transformers")

from tokensieve.data import VideoPreprocessing
from tokensieve.data.inputs import InputSpec
from tokensieve.errors import InputError, RecipeError
from tokensieve.hosts import open_host
from tokensieve.zoo import VIDEO_MODELS, create, without_memory

TINY: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 32,
    "num_frames": 4, "num_labels": 3,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small VideoMAE as `save_pretrained` writes it."""
    torch.manual_seed(3)
    create("videomae_base", pretrained=False, args=TINY).model.save_pretrained(tmp_path / "mae")
    return tmp_path / "mae"


def processor(folder: Path, **settings: Any) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


SPECS = {
    "videomae_base": (16, 3, 224, 224), "videomae_base_ssv2": (16, 3, 224, 224), "vivit_base": (32, 3, 224, 224),
    "vjepa2_large_ssv2": (16, 3, 256, 256),
}  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
def test_short_names_are_architectures_with_random_weights(name: str) -> None:
    with without_memory():
        small = {"num_hidden_layers": 1, "hidden_size": 24, "num_attention_heads": 2}
        model = create(name, pretrained=False, args=small).model
    assert type(model).__name__ == f"{VIDEO_MODELS[name].kind}ForVideoClassification"
    assert open_host(model).input_spec == InputSpec(SPECS[name], "TCHW")
    assert model.num_labels == (174 if "ssv2" in name else 400)
    own = VideoPreprocessing.of(model)
    assert own.sampling == ("uniform" if name == "videomae_base_ssv2" else "dense")
    assert own.stride == (2 if name == "vivit_base" else 4)


def test_a_folder_is_opened_with_its_weights_and_its_normalisation(folder: Path) -> None:
    processor(folder, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    first, second = (create(f"transformers/{folder}") for _ in range(2))
    assert (first.mean, first.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    clips = torch.randn(1, 4, 3, 32, 32)
    assert torch.equal(first.model(clips).logits, second.model(clips).logits)
    blank = create(f"transformers/{folder}", pretrained=False).model
    assert not torch.equal(first.model(clips).logits, blank(clips).logits)


def test_an_offset_is_part_of_the_normalisation(folder: Path) -> None:
    """ViViT's processor brings values to [-1, 1], and then normalises those."""
    processor(folder, image_mean=[0.5] * 3, image_std=[0.5] * 3, offset=True)
    found = create(f"transformers/{folder}", pretrained=False)
    value = 0.3
    for mean, std in zip(found.mean, found.std, strict=True):
        assert (value - mean) / std == pytest.approx((2 * value - 1 - 0.5) / 0.5)


def test_weights_of_a_file_are_loaded_strictly(folder: Path) -> None:
    processor(folder, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    whole = create(f"transformers/{folder}").model
    named = create("videomae_base", weights=folder / "model.safetensors", args=TINY).model
    clips = torch.randn(1, 4, 3, 32, 32)
    assert torch.equal(whole(clips).logits, named(clips).logits)
    own = {key: value.clone() for key, value in whole.state_dict().items()}  # as the model itself calls them
    save_file(own, folder / "own.safetensors")
    again = create("videomae_base", weights=folder / "own.safetensors", args=TINY).model
    assert torch.equal(whole(clips).logits, again(clips).logits)
    with pytest.raises(InputError, match=r"classifier\.bias.* has another shape"):
        create("videomae_base", weights=folder / "model.safetensors", args={**TINY, "num_labels": 4})
    with pytest.raises(InputError, match=r"the file has no videomae\.encoder\.layer\.1"):
        create("videomae_base", weights=folder / "model.safetensors", args={**TINY, "num_hidden_layers": 2})
    save_file({**own, "else": torch.zeros(1)}, folder / "own.safetensors")
    with pytest.raises(InputError, match="the model has no else"):
        create("videomae_base", weights=folder / "own.safetensors", args=TINY)


def test_what_cannot_be_opened_is_said(folder: Path) -> None:
    with pytest.raises(InputError, match=r"has no preprocessor_config\.json"):
        create(f"transformers/{folder}", pretrained=False)
    with pytest.raises(InputError, match="There is no folder"):
        create("transformers/./nowhere", pretrained=False)
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        create(f"transformers/{folder}", pretrained=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["ViTForImageClassification"]}))
    with pytest.raises(RecipeError, match="opens video models only"):
        create(f"transformers/{folder}", pretrained=False)
    with pytest.raises(RecipeError, match="nearest are videomae_base"):
        create("videomae_bas")

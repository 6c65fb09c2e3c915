"""What images a model reads: as it was built, whatever its weights were for."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.reference.hf_hosts import hf_forms, open_clip_forms
from tokensieve import InputError, prepack, sieve, zoo
from tokensieve.data.inputs import channels_of, check_images, own_input_size, reading, size_of
from tokensieve.measure import SlicingLimit


def built(name: str, **settings: Any) -> nn.Module:
    with zoo.without_memory():
        return timm.create_model(name, **settings)


GETTER = {"feature_cls": "getter"}


@pytest.mark.parametrize(
    ("name", "settings", "size"),
    [
        ("vit_base_patch16_224", {}, (3, 224, 224)),
        ("vit_base_patch16_384", {}, (3, 384, 384)),
        ("vit_small_patch14_dinov2", {}, (3, 518, 518)),
        ("vit_small_patch14_dinov2", {"img_size": 224}, (3, 224, 224)),
        ("vit_tiny_patch16_224", {"img_size": (192, 256), "in_chans": 13}, (13, 192, 256)),
        ("eva02_tiny_patch14_336", {"in_chans": 1}, (1, 336, 336)),
        ("beit_base_patch16_384", {}, (3, 384, 384)),
        ("swin_tiny_patch4_window7_224", {"img_size": 256, "in_chans": 4}, (4, 256, 256)),
        ("convnext_atto", {"in_chans": 4}, (4, 224, 224)),
        ("convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384", {}, (3, 384, 384)),
        ("convnext_atto", {"features_only": True, "in_chans": 13}, (13, 224, 224)),
        ("swin_tiny_patch4_window7_224", {"features_only": True, "img_size": 192}, (3, 192, 192)),
        ("swin_tiny_patch4_window7_224", {"features_only": True, "img_size": 192, **GETTER}, (3, 192, 192)),
        ("test_resnet", {"in_chans": 1}, (1, 160, 160)),
        ("tresnet_m", {"in_chans": 4}, (4, 224, 224)),  # 16 pixels become channels before its first convolution
        ("sequencer2d_s", {}, (3, 224, 224)),
    ],
)  # fmt: skip
def test_timm(name: str, settings: dict[str, Any], size: tuple[int, int, int]) -> None:
    assert own_input_size(built(name, **settings)) == size


@pytest.mark.parametrize("name", hf_forms())
def test_transformers(name: str) -> None:
    height, width = (32, 48) if name == "vit-rectangular" else (40, 40)
    assert own_input_size(hf_forms()[name]()) == (3, height, width)


def test_transformers_of_other_channels_and_sizes() -> None:
    hf = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "num_channels": 4}
    assert own_input_size(hf.Dinov2Model(hf.Dinov2Config(**small))) == (4, 28, 28)
    staged = {"num_channels": 13, "image_size": 64, "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
    assert own_input_size(hf.ConvNextModel(hf.ConvNextConfig(**staged))) == (13, 64, 64)
    swin = hf.SwinModel(hf.SwinConfig(num_channels=1, image_size=96, embed_dim=12, depths=[1], num_heads=[2]))
    assert own_input_size(swin) == (1, 96, 96)


def test_open_clip() -> None:
    pytest.importorskip("open_clip")
    for form in open_clip_forms().values():
        assert own_input_size(form()) == (3, 40, 40)


def vit(**settings: Any) -> nn.Module:
    return VisionTransformer(img_size=(32, 48), patch_size=8, embed_dim=16, depth=1, num_heads=2, **settings).eval()


@pytest.mark.parametrize(
    "wrap",
    [
        sieve,
        partial(sieve, recipe="papr(keep=0.5, proposal=test_resnet, proposal_norm=shared)", pretrained=False),
        torch.compile,
        nn.DataParallel,
        prepack,
        lambda model: SlicingLimit(sieve(model)),
        lambda model: nn.Sequential(nn.Identity(), model),
    ],
)
def test_what_is_around_a_model_does_not_hide_it(wrap) -> None:
    assert own_input_size(wrap(vit(in_chans=5))) == (5, 32, 48)


def test_a_size_may_be_given() -> None:
    model = vit(in_chans=4)
    assert own_input_size(model, 64) == (4, 64, 64)
    assert own_input_size(model, (64, 80)) == (4, 64, 80)
    assert own_input_size(model, [3, 64, 80]) == (3, 64, 80)
    for wrong in (0, -1, (64,), (3, 64, 64, 64), (3, 0, 64), 64.0, "64", (), True, (3.0, 64, 64)):
        with pytest.raises(InputError, match="input_size is a side in pixels"):
            own_input_size(model, wrong)  # type: ignore[arg-type]


def test_what_is_not_stated_is_asked_for() -> None:
    net = nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU())
    assert (size_of(net), channels_of(net)) == (None, 6)
    with pytest.raises(InputError, match=r"Sequential states no size of its images: give input_size=\(channels"):
        own_input_size(net)
    assert own_input_size(net, 20) == (6, 20, 20)
    assert channels_of(nn.Linear(3, 4)) is None
    with pytest.raises(InputError, match="Linear states no number of channels"):
        own_input_size(nn.Linear(3, 4), 20)
    assert own_input_size(nn.Linear(3, 4), (1, 20, 30)) == (1, 20, 30)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(3, 8, 8), r"not float32 of shape \(3, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"not uint8 of shape \(1, 3, 8, 8\)"),
        ([torch.zeros(1, 3, 8, 8)], "not list"),
    ],
)
def test_images_are_one_tensor_of_numbers(images, words) -> None:
    with pytest.raises(InputError, match=rf"one tensor \(batch, channels, height, width\).*{words}"):
        check_images(images)


def test_what_fails_while_a_model_reads_says_what_it_was_built_for() -> None:
    images = torch.zeros(1, 3, 40, 40)
    words = r"on images of shape \(1, 3, 40, 40\): Input height.*for \(3, 32, 48\)\."
    with pytest.raises(InputError, match=words), reading(vit(), images):
        vit()(images)
    with pytest.raises(InputError, match=r"^Sequential does not run on .*: boom\.$"), reading(nn.Sequential(), images):
        raise RuntimeError("boom.")

import dataclasses
import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from tokensieve import zoo
from tokensieve.data import Preprocessing
from tokensieve.errors import InputError, RecipeError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def normalised(image):
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@pytest.fixture(scope="module")
def deit():
    return timm.create_model("deit_tiny_patch16_224", depth=1)


@pytest.mark.parametrize(("width", "height"), [(90, 61), (61, 90), (48, 48), (30, 20)])
def test_papers_is_short_side_exactly_then_centre_pixel_by_pixel(width, height, deit):
    image = picture(width, height)
    ours = Preprocessing.papers(deit, mean=MEAN, std=STD, size=48).transform()(image)
    scale = 48 / min(width, height)
    resized = image.resize(
        (48 if width <= height else int(width * scale), 48 if height <= width else int(height * scale)),
        Image.Resampling.BICUBIC,
    )
    left, top = round((resized.width - 48) / 2), round((resized.height - 48) / 2)
    torch.testing.assert_close(ours, normalised(resized.crop((left, top, left + 48, top + 48))), rtol=0, atol=1e-6)


def test_papers_warps_from_384_on(deit):
    image = picture(50, 30)
    own = Preprocessing.papers(deit, mean=MEAN, std=STD, size=384)
    assert (own.crop_mode, own.crop_pct) == ("squash", 1.0)
    warped = image.resize((384, 384), Image.Resampling.BICUBIC)
    torch.testing.assert_close(own.transform()(image), normalised(warped), rtol=0, atol=1e-6)


def test_papers_keeps_the_margin_of_hierarchical_models():
    model = timm.create_model("convnext_atto", depths=(1, 1, 1, 1))
    assert Preprocessing.papers(model).crop_pct == 0.875
    assert Preprocessing.papers(model, size=384).crop_mode == "squash"


def test_timm_is_what_timm_says(deit):
    own = Preprocessing.of(deit)
    assert own == Preprocessing((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.9, "center")
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(deit), is_training=False)
    image = picture(300, 260)
    assert torch.equal(own.transform()(image), theirs(image))


def test_size_is_the_one_the_model_was_built_with():
    assert Preprocessing.of(timm.create_model("deit_tiny_patch16_224", depth=1, img_size=(96, 64))).input_size == (
        96,
        64,
    )


def test_sieved_model_answers_for_its_host(deit):
    fast = nn.Module()
    fast.model = deit
    assert Preprocessing.of(fast) == Preprocessing.of(deit)
    assert Preprocessing.papers(fast) == Preprocessing.papers(deit)


def test_transformers_model_states_its_size_and_is_asked_for_its_normalisation():
    model = nn.Module()
    model.config = SimpleNamespace(image_size=64)
    assert Preprocessing.of(model, mean=MEAN, std=STD).input_size == (64, 64)
    with pytest.raises(InputError, match="mean= and std="):
        Preprocessing.of(model, mean=MEAN)


def test_nothing_stated_is_never_guessed():
    with pytest.raises(InputError, match="size="):
        Preprocessing.of(nn.Identity(), mean=MEAN, std=STD)
    assert Preprocessing.of(nn.Identity(), mean=MEAN, std=STD, size=[32, 48]).input_size == (32, 48)


def test_names_of_the_command_line(deit):
    assert Preprocessing.named("timm", deit) == Preprocessing.of(deit)
    assert Preprocessing.named("papers", deit, size=32) == Preprocessing.papers(deit, size=32)
    with pytest.raises(RecipeError, match="timm or papers"):
        Preprocessing.named("other", deit)


def test_json_both_ways_and_pickle(deit):
    own = Preprocessing.of(deit)
    assert Preprocessing(**json.loads(json.dumps(dataclasses.asdict(own)))) == own
    assert hash(own) == hash(pickle.loads(pickle.dumps(own)))
    assert pickle.loads(pickle.dumps(own.transform()))(picture(30, 30)).shape == (3, 224, 224)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input_size", (224,)),
        ("input_size", (224, 0)),
        ("mean", (0.5,)),
        ("std", (1, 1, 0)),
        ("crop_pct", 0),
        ("crop_pct", 1.1),
        ("crop_mode", "middle"),
        ("interpolation", "cubist"),
    ],
)
def test_settings_that_make_no_sense(field, value):
    with pytest.raises(RecipeError, match=field):
        Preprocessing(**{"input_size": (32, 32), "mean": MEAN, "std": STD, field: value})


def test_a_strip_is_refused_before_it_fills_memory():
    transform = Preprocessing((224, 224), MEAN, STD).transform()
    with pytest.raises(InputError, match=r"too narrow .* 60000 x 1 pixels"):
        transform(Image.new("RGB", (60000, 1)))
    assert (
        Preprocessing((32, 32), MEAN, STD, crop_mode="squash").transform()(Image.new("RGB", (60000, 1))).shape[1] == 32
    )


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_other_channels_than_three_are_stated_and_no_pictures(channels):
    own = Preprocessing((32, 32), (0.5,) * channels, (0.2,) * channels)
    assert Preprocessing(**json.loads(json.dumps(dataclasses.asdict(own)))) == own
    with pytest.raises(InputError, match=f"Pictures have 3 channels, and this preprocessing is for {channels}"):
        own.transform()
    for mean in ((), (0.5,) * (channels + 1)):
        with pytest.raises(RecipeError, match="one number for each channel"):
            Preprocessing((32, 32), mean, own.std)


def test_backbones_keep_the_size_that_they_were_built_for():
    settings = {"features_only": True, "feature_cls": "getter", "img_size": 192, "window_size": 6}
    with zoo.without_memory():
        model = timm.create_model("swin_tiny_patch4_window7_224", **settings)
    assert Preprocessing.of(model).input_size == (192, 192)

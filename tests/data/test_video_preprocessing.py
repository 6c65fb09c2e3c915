"""From frames to clips."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from tokensieve.data import VideoPreprocessing, inputs
from tokensieve.errors import InputError, RecipeError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def settings(**changes):
    return VideoPreprocessing(**{"input_size": (8, 8), "mean": (0.0,) * 3, "std": (1.0,) * 3, "frames": 2, **changes})


def test_it_is_plain_json():
    prepared = settings(views="5x3", short_side=12, sampling="uniform", layout="CTHW", mean=MEAN)
    assert VideoPreprocessing(**json.loads(json.dumps(dataclasses.asdict(prepared)))) == prepared


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input_size": (8,)}, "a height and a width"),
        ({"mean": (0.5,)}, "three numbers each"),
        ({"std": (1.0, 0.0, 1.0)}, "std positive"),
        ({"frames": 0}, "integers from 1 up"),
        ({"stride": 1.5}, "integers from 1 up"),
        ({"sampling": "random"}, "dense, uniform, not 'random'"),
        ({"layout": "HWC"}, "TCHW, CTHW, not 'HWC'"),
        ({"views": "4x4"}, "1 or 3 crops"),
        ({"short_side": 7}, "at least 8"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, said):
    with pytest.raises(RecipeError, match=said):
        settings(**changes)


class TestResize:
    @pytest.mark.parametrize(("size", "expected"), [((16, 32), (8, 16)), ((32, 16), (16, 8)), ((4, 6), (8, 12))])
    def test_it_just_covers_the_crop(self, size, expected):
        assert settings().resize(np.zeros((*size, 3), np.uint8)).shape == (3, *expected)

    def test_a_short_side(self):
        assert settings(short_side=10).resize(np.zeros((20, 40, 3), np.uint8)).shape == (3, 10, 20)

    def test_an_oblong_crop_is_covered(self):
        assert settings(input_size=(8, 20)).resize(np.zeros((16, 16, 3), np.uint8)).shape == (3, 20, 20)

    def test_a_frame_of_that_size_stays_as_it_is(self):
        frame = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        assert np.array_equal(settings().resize(frame), frame.transpose(2, 0, 1))

    def test_a_strip_that_would_not_fit_in_memory(self):
        with pytest.raises(Exception, match="too narrow to be resized and cropped: 60000 x 1 pixels"):
            settings(input_size=(224, 224)).resize(np.zeros((1, 60000, 3), np.uint8))


class TestCrops:
    @pytest.fixture
    def wide(self):
        """Each pixel says its column."""
        return torch.arange(20, dtype=torch.uint8).expand(2, 3, 8, 20)

    def test_one_lies_in_the_middle(self, wide):
        clip = settings().crops(wide)
        assert clip.shape == (1, 2, 3, 8, 8)
        assert torch.allclose(clip[0, 0, 0, 0] * 255, torch.arange(6.0, 14))

    @pytest.mark.parametrize("tall", [False, True])
    def test_three_lie_side_by_side_along_the_longer_side(self, wide, tall):
        clip = settings(views="1x3").crops(wide.transpose(-1, -2) if tall else wide)
        line = clip[:, 0, 0, :, 0] if tall else clip[:, 0, 0, 0]
        assert torch.allclose(line * 255, torch.stack([torch.arange(s, s + 8.0) for s in (0, 6, 12)]))

    def test_normalisation_and_layouts(self, wide):
        frames = settings(mean=MEAN, std=STD).crops(wide)
        for channel in range(3):
            expected = (torch.arange(6.0, 14) / 255 - MEAN[channel]) / STD[channel]
            assert torch.allclose(frames[0, 1, channel, 3], expected)
        channels = settings(mean=MEAN, std=STD, layout="CTHW")
        assert channels.crops(wide).shape[1:] == channels.clip_shape == (3, 2, 8, 8)
        assert torch.equal(channels.crops(wide)[0], frames[0].transpose(0, 1))


def test_what_a_model_reads_as_its_host_states_it(monkeypatch):
    model = torch.nn.Linear(2, 2)
    spec = inputs.InputSpec((3, 8, 112, 96), "CTHW")
    monkeypatch.setattr(inputs, "SPEC_PROVIDERS", [lambda part: spec if part is model else None])
    with pytest.raises(InputError, match=r"Linear states no normalisation: give mean= and std="):
        VideoPreprocessing.of(model)
    expected = VideoPreprocessing((112, 96), MEAN, STD, frames=8, layout="CTHW", views="1x3")
    assert VideoPreprocessing.of(model, MEAN, STD, views="1x3") == expected
    model.mean, model.std = MEAN, STD
    assert VideoPreprocessing.of(model, views="1x3") == expected


def test_a_model_that_reads_images_is_refused():
    import timm

    with pytest.raises(InputError, match="reads images, not videos"):
        VideoPreprocessing.of(timm.create_model("test_vit"))

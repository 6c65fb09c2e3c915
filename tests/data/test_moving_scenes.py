"""Moving scenes: the same wherever they are made, and the digit goes where the label says."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tokensieve.data import (
    MovingScene,
    MovingScenes,
    VideoPreprocessing,
    load_batches,
    moving_scene_set,
    video_set,
)
from tokensieve.data.moving_scenes import DIRECTIONS, MOVING_CLASSES
from tokensieve.errors import RecipeError

STEPS = {"right": (1, 0), "up": (0, -1), "left": (-1, 0), "down": (0, 1)}
"""Of x and y in an image, whose y points down."""


@pytest.fixture(scope="module")
def scenes() -> MovingScenes:
    return MovingScenes("train", 1000)


@pytest.fixture(scope="module")
def some(scenes: MovingScenes) -> MovingScene:
    return scenes.batch(range(48))


def centres(masks: Tensor) -> Tensor:
    """(B, T, 2) x and y of the masks' centres, in pixels."""
    line = torch.arange(masks.shape[-1]) + 0.5
    area = masks.sum((2, 3))
    return torch.stack([(masks.sum(2) * line).sum(-1) / area, (masks.sum(3) * line).sum(-1) / area], dim=-1)


def test_a_moving_scene_has_a_clip_a_class_and_masks(some: MovingScene) -> None:
    assert some.clips.shape == (48, 8, 3, 64, 64)
    assert some.clips.dtype == torch.float32
    assert 0 <= some.clips.min() < 0.1
    assert 0.9 < some.clips.max() <= 1
    assert some.masks.shape == (48, 8, 64, 64)
    assert some.masks.dtype == torch.bool
    assert set((some.labels % 8).tolist()) == set(range(8))
    assert set((some.labels // 8).tolist()) == set(range(10))
    assert len(MOVING_CLASSES) == 80
    assert MOVING_CLASSES[8 * 7 + 3] == "7 up left"


def test_it_is_the_same_in_whatever_batch_it_is_made(scenes: MovingScenes, some: MovingScene) -> None:
    alone, mixed = pickle.loads(pickle.dumps(scenes))[37], scenes.batch([900, 37, 3])
    for part, other, whole in zip(alone, mixed, some, strict=True):
        assert torch.equal(part, whole[37])
        assert torch.equal(other[1], whole[37])
    few = scenes.batch([37], slice(4, 6))
    assert torch.equal(few.clips[0], some.clips[37, 4:6])
    assert torch.equal(few.masks[0], some.masks[37, 4:6])


def test_seed_and_split_change_every_one(some: MovingScene) -> None:
    for other in (MovingScenes("train", seed=1), MovingScenes("validation")):
        assert ((other.batch(range(8)).clips - some.clips[:8]).abs().amax((1, 2, 3, 4)) > 0.3).all()


def test_the_digit_goes_in_the_direction_of_the_label(some: MovingScene) -> None:
    places = centres(some.masks)
    way = places[:, -1] - places[:, 0]
    for clip, label in zip(way, some.labels.tolist(), strict=True):
        step = torch.tensor([STEPS[word] for word in DIRECTIONS[label % 8].split()], dtype=torch.float32).sum(0)
        assert torch.cosine_similarity(clip, step, dim=0) > 0.98
    length = way.norm(dim=1)
    assert length.min() > 0.25 * 64
    assert length.max() < 0.45 * 64
    steps = (places[:, 1:] - places[:, :-1]).norm(dim=2)
    assert (steps - length[:, None] / 7).abs().max() < 1  # evenly, up to the edges of pixels


def test_the_digit_stays_inside_and_keeps_its_shape(some: MovingScene) -> None:
    area = some.masks.sum((2, 3)).float()
    assert (area.amax(1) / area.amin(1)).max() < 1.2
    rim = torch.ones(64, 64, dtype=torch.bool)
    rim[1:-1, 1:-1] = False
    assert (some.masks & rim).sum((1, 2, 3)).max() < 16
    assert 0.01 < some.masks.float().mean() < 0.15


@pytest.mark.versions
def test_the_camera_stands_still_in_half_of_the_clips(scenes: MovingScenes) -> None:
    clips, _, masks = scenes.batch(range(200, 328))
    near = torch.nn.functional.max_pool2d(masks.float().amax(1), 17, 1, 8) > 0  # where the digit or its halo ever is
    change = (clips[:, -1] - clips[:, 0]).abs().amax(1).masked_fill(near, 0).amax((1, 2))
    still = (change < 1e-4).float().mean()
    assert 0.35 < still < 0.65
    assert (change > 0.1).float().mean() > 0.35


@pytest.mark.parametrize(("size", "frames"), [(48, 8), (64, 4)])
def test_other_sizes_and_frames_show_the_same(size: int, frames: int, some: MovingScene) -> None:
    other = MovingScenes("train", size=size, frames=frames).batch(range(16))
    assert other.clips.shape == (16, frames, 3, size, size)
    assert torch.equal(other.labels, some.labels[:16])
    ours, theirs = centres(other.masks) / size, centres(some.masks[:16]) / 64
    assert (ours[:, [0, -1]] - theirs[:, [0, -1]]).abs().max() < 0.03


def test_they_are_a_set_of_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)  # nothing is decoded
    prepared = VideoPreprocessing((64, 64), (0.5,) * 3, (0.5,) * 3, frames=8)
    videos = video_set("moving-scenes", prepared, limit=6)
    made = MovingScenes("validation", 6).batch(range(6))
    assert len(videos) == 6
    assert videos.classes["7 up left"] == 59
    for index, (clip, label) in enumerate(videos):
        assert label == made.labels[index]
        assert (clip - (made.clips[index] - 0.5) / 0.5).abs().max() < 0.005
    assert len(video_set("moving-scenes", prepared)) == 500
    (batch,) = load_batches(moving_scene_set(replace(prepared, layout="CTHW"), 3, seed=1), 4)
    assert batch.images.shape == (3, 3, 8, 64, 64)
    with pytest.raises(RecipeError, match="one view, not 5x3"):
        video_set("moving-scenes", replace(prepared, views="5x3"))


@pytest.mark.parametrize("settings", [{"split": "test"}, {"count": 0}, {"size": 16}, {"frames": 1}, {"seed": -1}])
def test_what_makes_no_sense_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="Moving scenes"):
        MovingScenes(**settings)
    with pytest.raises(IndexError):
        MovingScenes(count=3)[3]

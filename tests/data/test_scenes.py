"""Scenes: the same wherever they are made, exact, legible, and apart by split."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from tokensieve.data import Preprocessing, Scenes, image_set, photographs
from tokensieve.data.scene_drawing import SPLITS, glyphs_of
from tokensieve.data.scenes import MAP_CLASSES, ScenePictures
from tokensieve.errors import RecipeError

LUMINANCE = torch.tensor([0.299, 0.587, 0.114])


@pytest.fixture(scope="module")
def scenes():
    return Scenes("train", 1000)


@pytest.fixture(scope="module")
def some(scenes):
    return scenes.batch(range(64))


def test_a_scene_has_an_image_a_digit_and_its_mask(some):
    assert some.images.shape == (64, 3, 112, 112)
    assert some.images.dtype == torch.float32
    assert 0 <= some.images.min() < 0.1
    assert 0.9 < some.images.max() <= 1
    assert some.masks.shape == (64, 112, 112)
    assert some.masks.dtype == torch.bool
    assert set(some.labels.tolist()) == set(range(10))


def test_a_scene_is_the_same_in_whatever_batch_it_is_made(scenes, some):
    alone, mixed = scenes[37], scenes.batch([900, 37, 3])
    for part, other, whole in zip(alone, mixed, some, strict=True):
        assert torch.equal(part, whole[37])
        assert torch.equal(other[1], whole[37])


def test_seed_and_split_change_every_scene(some):
    for other in (Scenes("train", seed=1), Scenes("validation")):
        difference = (other.batch(range(8)).images - some.images[:8]).abs().amax((1, 2, 3))
        assert (difference > 0.3).all()


def test_no_handwritten_digit_is_in_both_splits():
    (train, _), (validation, _) = (glyphs_of(split) for split in SPLITS)
    assert len(train) + len(validation) == 1797
    assert not {glyph.numpy().tobytes() for glyph in train} & {glyph.numpy().tobytes() for glyph in validation}


def test_the_mask_is_the_digit_wholly_inside_and_clear_of_fragments(some):
    share = some.masks.float().mean((1, 2))
    assert share.min() > 0.015
    assert share.max() < 0.25
    rim = torch.ones(112, 112, dtype=torch.bool)
    rim[1:-1, 1:-1] = False
    assert (some.masks & rim).float().sum((1, 2)).max() < 8


@pytest.mark.versions
def test_digit_and_ground_are_guaranteed_to_differ(scenes):
    images, _, masks = scenes.batch(range(500))
    luminance = (images * LUMINANCE[:, None, None]).sum(1)
    inside = masks.float()
    core = 1 - F.max_pool2d(1 - inside[:, None], 3, 1, 1)[:, 0]  # a pixel within the outline
    ring = F.max_pool2d(inside[:, None], 7, 1, 3)[:, 0] - F.max_pool2d(inside[:, None], 3, 1, 1)[:, 0]
    contrast = (luminance * core).sum((1, 2)) / core.sum((1, 2)) - (luminance * ring).sum((1, 2)) / ring.sum((1, 2))
    assert contrast.abs().min() > 0.2
    assert contrast.abs().median() > 0.4


@pytest.mark.versions
def test_the_digit_stands_anywhere_and_in_many_sizes(scenes):
    masks = scenes.batch(range(300)).masks
    rows, columns = masks.any(2).float(), masks.any(1).float()
    line = torch.arange(112.0)
    for along in (rows, columns):
        centre = (along * line).sum(1) / along.sum(1)
        assert centre.std() > 10
        assert centre.mean().sub(56).abs() < 4
    assert rows.sum(1).min() < 45 < 60 < rows.sum(1).max()


@pytest.mark.parametrize("size", [64, 160])
def test_other_sizes_show_the_same_scene(size, some):
    other = Scenes("train", size=size).batch(range(16))
    assert other.images.shape[-2:] == (size, size)
    assert torch.equal(other.labels, some.labels[:16])
    again = F.interpolate(other.images, size=112, mode="bilinear", antialias=True)
    assert (again - some.images[:16]).abs().mean() < 0.06


def test_worker_processes_make_the_same_scenes(scenes, some):
    loader = DataLoader(pickle.loads(pickle.dumps(scenes)), batch_size=16, num_workers=2)
    images, labels, masks = next(iter(loader))
    assert torch.equal(images, some.images[:16])
    assert torch.equal(labels, some.labels[:16])
    assert torch.equal(masks, some.masks[:16])


def test_scenes_are_a_data_set_for_every_command():
    preprocessing = Preprocessing((112, 112), (0.5,) * 3, (0.5,) * 3)
    pictures = image_set("scenes", preprocessing, limit=6)
    made = Scenes("validation", 6).batch(range(6))
    assert len(pictures) == 6
    assert pictures.classes == {str(digit): digit for digit in range(10)}
    for index, (image, label) in enumerate(pictures):
        assert label == made.labels[index]
        assert (image - (made.images[index] - 0.5) / 0.5).abs().max() < 0.005
    assert len(image_set("scenes", preprocessing)) == 1000


def test_label_maps_name_the_class_of_every_pixel(scenes, some):
    made = scenes.label_maps(range(64))
    assert torch.equal(made.images, some.images)
    assert made.maps.dtype == torch.uint8
    digit = torch.tensor([MAP_CLASSES.index(f"digit {label}") for label in some.labels.tolist()])
    assert torch.equal(made.maps == digit[:, None, None], some.masks), (
        "the digit's pixels are its mask, its class alone"
    )
    rest = made.maps[~some.masks]
    assert set(rest.unique().tolist()) == {MAP_CLASSES.index("background"), MAP_CLASSES.index("fragment")}
    alone = scenes.label_maps([900, 37, 3])
    assert torch.equal(alone.maps[1], made.maps[37])


def test_fragments_are_where_the_paint_of_other_digits_is(scenes):
    """Strokes are painted in one light or dark colour each: where a map says fragment, the picture is as plain."""
    made = scenes.label_maps(range(64))
    fragments = made.maps == MAP_CLASSES.index("fragment")
    assert 0.005 < fragments.float().mean() < 0.1
    core = 1 - F.max_pool2d(1 - fragments[:, None].float(), 5, 1, 2)[:, 0]
    steps = (made.images[:, :, 1:] - made.images[:, :, :-1]).abs().amax(1)
    inside = core[:, 1:].bool() & core[:, :-1].bool()
    background = (made.maps == 0)[:, 1:]
    assert steps[inside].mean() < 0.3 * steps[background].mean()


def test_scene_pictures_are_rgb():
    picture, label = ScenePictures(Scenes("validation", 3))[2]
    assert (picture.mode, picture.size) == ("RGB", (112, 112))
    assert 0 <= label <= 9
    with pytest.raises(IndexError):
        Scenes(count=3)[3]


def test_photographs_are_there_in_colour():
    pictures = photographs()
    assert len(pictures) >= 8
    for picture in pictures.values():
        assert picture.mode == "RGB"
        assert np.asarray(picture).std() > 5


@pytest.mark.parametrize("settings", [{"split": "test"}, {"count": 0}, {"size": 16}, {"seed": -1}])
def test_what_makes_no_sense_is_refused(settings):
    with pytest.raises(RecipeError, match="Scenes"):
        Scenes(**settings)

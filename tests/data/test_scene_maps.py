"""Scenes as a segmentation set: pictures with their exact maps, for whatever reads such sets."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from tokensieve.data import AsTensor, SceneMaps, Scenes, load_batches, segmentation_set
from tokensieve.data.scenes import MAP_CLASSES
from tokensieve.errors import InputError, RecipeError
from tokensieve.train.crops import examine


@pytest.fixture(scope="module")
def some():
    return SceneMaps("val", 12)


def test_items_are_scenes_of_the_validation_split(some):
    made = Scenes("validation", 12).label_maps(range(12))
    assert (len(some), some.classes, some.total) == (12, MAP_CLASSES, 12)
    for index in (0, 7):
        image, labels = some[index]
        assert (image - made.images[index]).abs().max() < 0.003, "of 8 bits"
        assert torch.equal(labels, made.maps[index].long())
    pairs = some.pairs([7, 2])
    for (picture, labels), index in zip(pairs, (7, 2), strict=True):
        alone, told = some.pair(index)
        assert np.array_equal(np.asarray(picture), np.asarray(alone))
        assert torch.equal(labels, told)
    assert some.path(7) == "scenes/val/scene-07"
    assert some.parts(7) == ("scene-07",)


def test_splits_and_seeds_are_other_scenes(some):
    for other in (SceneMaps("train", 12), SceneMaps("val", 12, seed=1)):
        assert not torch.equal(other[0][0], some[0][0])
        assert examine(other) != examine(some), "and a training that goes on tells them apart"
    assert examine(pickle.loads(pickle.dumps(some))) == examine(SceneMaps("val", 12))


def test_they_go_through_a_loader(some):
    some = SceneMaps("val", 5, transform=AsTensor((0.5,) * 3, (0.5,) * 3), size=64)
    batch, last = load_batches(some, 3)
    assert (batch.images.shape, batch.labels.shape) == ((3, 3, 64, 64), (3, 64, 64))
    assert last.paths == ("scenes/val/scene-3", "scenes/val/scene-4")
    assert batch.images.min() < 0


def test_scenes_is_the_name_of_a_source():
    assert len(segmentation_set("scenes", split="val", limit=4)) == 4
    assert segmentation_set("scenes", limit=2).identity == "2 scenes of train, seed 0, 112 pixels"
    assert len(segmentation_set("scenes")) == 1000
    for settings in ({"layout": "camvid"}, {"classes": 3}):
        with pytest.raises(RecipeError, match="classes of their own: leave layout and classes out"):
            segmentation_set("scenes", **settings)
    with pytest.raises(InputError, match="Scenes have no split 'test': choose train or val"):
        segmentation_set("scenes", split="test")

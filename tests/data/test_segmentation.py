"""Segmentation sets: each layout's labels, folders and tars alike, and what is wrong with single pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests import segmentation_sets as made
from tests.oddities import packed
from tokensieve.data import LAYOUTS, AsTensor, load_batches, segmentation_set
from tokensieve.errors import InputError, RecipeError

V = 255

EXPECTED = {
    "ade20k": (made.ade20k, 150, "val", 2, [V, 0, 149], "name 150"),
    "pascal-context": (made.pascal_context, 59, "val", 1, [V, 0, 58], "wood"),
    "coco-stuff10k": (made.coco_stuff10k, 171, "test", 1, [V, 0, 170], "170"),
    "coco-stuff164k": (made.coco_stuff164k, 171, "val", 1, [0, 10, 11, 170, V], "170"),
    "cityscapes": (made.cityscapes, 19, "val", 1, [0, 18, V, 2, V], "bicycle"),
    "camvid": (made.camvid, 11, "test", 1, [0, 10, V], "bicyclist"),
}


def test_every_layout_is_here_and_says_where_it_is_had() -> None:
    assert set(EXPECTED) | {"folders"} == set(LAYOUTS)
    assert all(layout.get for layout in LAYOUTS.values())


@pytest.mark.parametrize("packing", ["folder", "tar"])
@pytest.mark.parametrize("name", EXPECTED)
def test_labels_become_the_classes_that_are_scored(name, packing, tmp_path) -> None:
    make, classes, split, count, values, last = EXPECTED[name]
    make(tmp_path / "set")
    source = tmp_path / "set" if packing == "folder" else packed(tmp_path / "set", tmp_path / "set.tar")
    found = segmentation_set(source, name, split)
    assert len(found) == found.total == count
    assert found.num_classes == classes
    assert found.classes[-1] == last
    image, labels = found[0]
    assert image.shape == (3, *made.SIZE)
    assert labels.dtype == torch.int64
    assert list(dict.fromkeys(labels[0].tolist())) == list(dict.fromkeys(values))
    assert len(segmentation_set(source, name)) > 0, "the split train"
    assert found.skipped == ()


def test_other_forms_of_layouts(tmp_path) -> None:
    made.segnet(tmp_path / "segnet")
    _, labels = segmentation_set(tmp_path / "segnet", "camvid", "val")[0]
    assert sorted(set(labels.flatten().tolist())) == [0, 10, V]
    for split in ("train2017", "val2017"):
        made.picture(tmp_path / "coco" / "images" / split / "9.jpg")
        made.labels(tmp_path / "coco" / "annotations" / split / "9_labelTrainIds.png", [0, 170, 255])
        made.labels(tmp_path / "coco" / "annotations" / split / "9.png", [1, 181, 255])
    _, labels = segmentation_set(tmp_path / "coco", "coco-stuff164k", "val")[0]
    assert sorted(set(labels.flatten().tolist())) == [0, 170, V]
    city = tmp_path / "city"
    made.picture(city / "leftImg8bit/train/ulm/ulm_0_leftImg8bit.png")
    made.labels(city / "gtFine/train/ulm/ulm_0_gtFine_labelTrainIds.png", [0, 18, 255])
    _, labels = segmentation_set(city, "cityscapes", "train")[0]
    assert sorted(set(labels.flatten().tolist())) == [0, 18, V]


def test_a_list_names_pictures_that_are_not_there(tmp_path) -> None:
    made.pascal_context(tmp_path)
    (note,) = segmentation_set(tmp_path, "pascal-context", "val").notes
    assert "1 pictures of the list are missing: 2008_7" in note
    assert segmentation_set(tmp_path, "pascal-context").notes == ()


class TestPlain:
    @pytest.mark.parametrize("places", ["images/train labels/train", "train/images train/labels"])
    def test_splits(self, places, tmp_path) -> None:
        pictures, labels = places.split()
        made.picture(tmp_path / pictures / "deep" / "x.jpg")
        made.labels(tmp_path / labels / "deep" / "x.png", [0, 1])
        found = segmentation_set(tmp_path, split="train", classes=2)
        assert found.parts(0) == ("deep", "x")
        with pytest.raises(InputError, match="is not laid out as a pair of folders: expected images/val/ and labels/v"):
            segmentation_set(tmp_path, split="val", classes=2)

    def test_classes_by_number_names_and_files(self, tmp_path) -> None:
        root = made.plain(tmp_path)
        assert segmentation_set(root, classes=3).classes == ("0", "1", "2")
        assert segmentation_set(root, classes="3").classes == ("0", "1", "2")
        assert segmentation_set(root, classes=["sky", "road", "car"]).classes == ("sky", "road", "car")
        with pytest.raises(InputError, match="is not known: pass the number, or a file"):
            segmentation_set(root)
        (root / "classes.txt").write_text("sky\nroad\ncar\n")
        assert segmentation_set(root).classes == ("sky", "road", "car")
        assert segmentation_set(packed(root, tmp_path / "x.tar")).classes == ("sky", "road", "car")
        (root / "names.json").write_text(json.dumps({"sky": 0, "car": 2, "road": 1}))
        assert segmentation_set(root, classes=root / "names.json").classes == ("sky", "road", "car")
        (root / "names.json").write_text(json.dumps({"sky": 0, "car": 2}))
        with pytest.raises(InputError, match="without a gap"):
            segmentation_set(root, classes=root / "names.json")

    def test_another_value_may_count_nowhere(self, tmp_path) -> None:
        made.picture(tmp_path / "images" / "a.jpg")
        made.labels(tmp_path / "labels" / "a.png", [0, 1, 9])
        found = segmentation_set(tmp_path, classes=2, ignore_index=9)
        assert sorted(set(found[0][1].flatten().tolist())) == [0, 1, V]

    def test_palette_and_one_bit_pictures_hold_indices(self, tmp_path) -> None:
        made.plain(tmp_path)
        values = np.zeros(made.SIZE, np.uint8)
        values[:, 5:] = 1
        paletted = Image.fromarray(values)
        paletted.putpalette([200, 10, 10, 10, 200, 10])
        paletted.save(tmp_path / "labels" / "a.png")
        Image.fromarray(values.astype(bool)).save(tmp_path / "labels" / "b.png")
        found = segmentation_set(tmp_path, classes=2)
        assert torch.equal(found[0][1], torch.from_numpy(values).long())
        assert torch.equal(found[1][1], torch.from_numpy(values).long())

    def test_a_limit_is_spread_evenly(self, tmp_path) -> None:
        for number in range(10):
            made.picture(tmp_path / "images" / f"{number}.jpg")
            made.labels(tmp_path / "labels" / f"{number}.png", [0])
        found = segmentation_set(tmp_path, classes=1, limit=3)
        assert [found.parts(i)[0] for i in range(3)] == ["0", "3", "6"]
        assert found.total == 10


def spoil(root):
    """Pictures a to j, each with another fault but a and j."""
    for name in "abcdefghij":
        made.picture(root / "images" / f"{name}.png", ord(name))
        made.labels(root / "labels" / f"{name}.png", [0, 1])
    made.labels(root / "labels" / "b.png", [0, 7, 9])
    made.labels(root / "labels" / "c.png", [0, 1], (10, 30))
    (root / "labels" / "d.png").unlink()
    Image.fromarray(np.zeros(made.SIZE, np.uint16)).save(root / "labels" / "e.png")
    made.picture(root / "labels" / "f.png")
    (root / "labels" / "g.png").write_bytes(b"nothing")
    (root / "images" / "h.png").write_bytes(b"nothing")
    (root / "labels" / "i.png").unlink()
    Image.fromarray(np.zeros(made.SIZE, np.uint8)).save(root / "labels" / "i.jpg")
    made.labels(root / "labels" / "orphan.png", [0])


SENTENCES = {
    "b": "labels/b.png holds the labels 7, 9, beyond the 2 classes",
    "c": "labels/c.png is 30 x 10 pixels, and its picture {root}/images/c.png is 30 x 20",
    "d": "images/d.png has no label picture labels/d.png",
    "e": "labels/e.png has 16 or more bits per pixel: save labels with 8 bits, a class index for each pixel",
    "f": "labels/f.png is a colour picture (RGB): labels must be 8-bit grey or palette pictures",
    "g": "labels/g.png is not a picture that Pillow can read",
    "h": "images/h.png is not a picture that Pillow can read",
    "i": "labels/i.jpg is a JPEG, which does not keep labels exactly",
}


def test_what_is_wrong_with_a_picture_is_said_and_the_others_are_read(tmp_path) -> None:
    spoil(tmp_path)
    found = segmentation_set(tmp_path, classes=2)
    batches = load_batches(found, 4)
    read = [path for batch in batches for path in batch.paths]
    assert [path[-5] for path in read] == ["a", "j"]
    told = {(str(failure).split(" ")[0])[-5]: str(failure) for failure in batches.failures}
    assert set(told) == set(SENTENCES)
    for name, sentence in SENTENCES.items():
        assert sentence.format(root=tmp_path) in told[name]
    assert [each.path for each in found.skipped] == [str(tmp_path / "labels" / "orphan.png")]
    assert found.unlabelled == 1
    with pytest.raises(InputError, match=r"b\.png holds the labels 7, 9"):
        found.pair(1)


def test_pictures_of_unlike_sizes_go_through_one_by_one(tmp_path) -> None:
    made.plain(tmp_path)
    made.picture(tmp_path / "images" / "a.jpg", size=(8, 9))
    made.labels(tmp_path / "labels" / "a.png", [0], (8, 9))
    found = segmentation_set(tmp_path, classes=3)
    assert [batch.labels.shape for batch in load_batches(found, 1)] == [(1, 8, 9), (1, *made.SIZE), (1, *made.SIZE)]
    with pytest.raises(InputError, match="different sizes cannot be in one batch: read them with batch_size=1"):
        list(load_batches(found, 3))


def test_the_transform_normalises_and_resizes_pictures_alone(tmp_path) -> None:
    made.plain(tmp_path)
    plain = segmentation_set(tmp_path, classes=3)[0][0]
    changed, labels = segmentation_set(tmp_path, classes=3, transform=AsTensor((0.5,) * 3, (0.25,) * 3))[0]
    torch.testing.assert_close(changed, (plain - 0.5) / 0.25)
    small, labels = segmentation_set(tmp_path, classes=3, transform=AsTensor(short_side=10))[0]
    assert small.shape == (3, 10, 15)
    assert labels.shape == made.SIZE


@pytest.mark.parametrize(
    ("words", "error", "sentence"),
    [
        ({"layout": "ade"}, RecipeError, "There is no layout 'ade'; the nearest is ade20k"),
        ({"layout": "ade20k"}, InputError, r"not laid out as ADE20K, SceneParse150: expected images/training/ and ann"),
        ({"layout": "camvid", "classes": 3}, RecipeError, "has its own classes"),
        ({"layout": "camvid", "split": "dev"}, InputError, "CamVid, 11 classes has no split 'dev': one of train, val"),
        ({"classes": 0}, RecipeError, "must have 1 to 254 classes, not 0"),
        ({"classes": 2, "limit": 0}, RecipeError, "must be at least 1"),
    ],
)
def test_what_cannot_be_opened_is_refused(words, error, sentence, tmp_path) -> None:
    made.plain(tmp_path)
    with pytest.raises(error, match=sentence):
        segmentation_set(tmp_path, **words)


def test_nothing_there(tmp_path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        segmentation_set(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is not laid out as a pair of folders"):
        segmentation_set(tmp_path, classes=2)
    made.plain(tmp_path)
    made.picture(tmp_path / "images" / "a.png")
    with pytest.raises(InputError, match="have the same name"):
        segmentation_set(tmp_path, classes=3)


@pytest.mark.shared
def test_camvid_as_it_is(shared) -> None:
    sizes = {split: len(segmentation_set(shared / "data/camvid.tar", "camvid", split)) for split in ("train", "val")}
    assert sizes == {"train": 367, "val": 101}
    test = segmentation_set(shared / "data/camvid.tar", "camvid", "test")
    assert len(test) == 233
    assert test.classes == tuple(json.loads((shared / "data/camvid_classes.json").read_text()))
    image, labels = test[0]
    assert image.shape == (3, 360, 480)
    assert 0 <= int(labels[labels != V].max()) <= 10

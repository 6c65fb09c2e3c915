"""A segmenter's answers for whole pictures, scored and written in their size."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import nn

from tests import segmentation_sets as made
from tests.data.test_segmentation import spoil
from tokensieve.data import AsTensor, Preprocessing, image_set, segmentation_set
from tokensieve.errors import InputError
from tokensieve.show.masks import segment_pictures


class Bright(nn.Module):
    """Class 1 where red is above a half, class 2 where it is above `high`."""

    def __init__(self, high: float = 2.0) -> None:
        super().__init__()
        self.high = nn.Parameter(torch.tensor(high))

    def forward(self, images):
        red = images[:, :1]
        return torch.cat([0.5 - red, red - 0.5, 10 * (red - self.high)], dim=1)


def test_labels_are_scored_and_written_in_their_size(tmp_path):
    pictures = segmentation_set(made.plain(tmp_path / "set"), classes=3)
    result = segment_pictures(Bright(), pictures, (16, 16), (8, 8), folder=tmp_path / "out", dense=Bright(0.9))
    assert result.count == 3
    assert [path.name for path in result.written] == ["a.png", "b.png", "c.png"]
    right = counted = 0
    for index, path in enumerate(result.written):
        image, labels = pictures[index]
        with Image.open(path) as picture:
            assert picture.mode == "P"
            assert picture.size == (30, 20)
            told = torch.tensor(list(picture.getdata())).view(20, 30)
        assert torch.equal(told, (image[0] > 0.5).long())
        where = labels != 255
        right, counted = right + int((told == labels)[where].sum()), counted + int(where.sum())
    assert result.score.figures["pixel_accuracy"] == pytest.approx(100 * right / counted)
    assert 0 < result.agreement < 100
    assert result.dense.figures != result.score.figures


def test_resized_pictures_are_answered_in_the_labels_size(tmp_path):
    pictures = segmentation_set(made.plain(tmp_path / "set"), classes=3, transform=AsTensor(short_side=10))
    result = segment_pictures(Bright(), pictures, (8, 8), (8, 8), folder=tmp_path / "out")
    with Image.open(result.written[0]) as picture:
        assert picture.size == (30, 20)


def test_what_cannot_be_read_is_recorded_and_the_rest_is_written(tmp_path):
    spoil(tmp_path / "set")
    pictures = segmentation_set(tmp_path / "set", classes=2)
    result = segment_pictures(Bright(), pictures, (16, 16), (16, 16), folder=tmp_path / "out")
    assert result.count == 2
    assert len(result.failures) == 8
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "j.png"]


def test_pictures_without_labels(tmp_path):
    made.picture(tmp_path / "in" / "x" / "1.jpg")
    made.picture(tmp_path / "in" / "y" / "1.jpg", size=(9, 40))
    pictures = image_set(tmp_path / "in", Preprocessing((1, 1), (0.5,) * 3, (0.5,) * 3))
    pictures.transform = AsTensor()
    result = segment_pictures(Bright(), pictures, (8, 8), (8, 8), folder=tmp_path / "out")
    assert result.score is None
    assert [path.relative_to(tmp_path / "out").as_posix() for path in result.written] == ["x/1.png", "y/1.png"]
    with Image.open(result.written[1]) as picture:
        assert picture.size == (40, 9)


def test_pictures_of_one_name_are_not_written_over_each_other(tmp_path):
    for name in ("1.jpg", "1.png"):
        made.picture(tmp_path / "in" / name)
    pictures = image_set(tmp_path / "in", Preprocessing((1, 1), (0.5,) * 3, (0.5,) * 3))
    pictures.transform = AsTensor()
    with pytest.raises(InputError, match=r"would both be written to 1\.png"):
        segment_pictures(Bright(), pictures, (8, 8), (8, 8), folder=tmp_path / "out")


def test_nothing_that_can_be_read(tmp_path):
    made.plain(tmp_path)
    for name in "abc":
        (tmp_path / "labels" / f"{name}.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"None of 3 pictures could be read; the first: .*a\.png is not a picture"):
        segment_pictures(Bright(), segmentation_set(tmp_path, classes=3), (8, 8), (8, 8))

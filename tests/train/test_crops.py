"""Crops of pictures and labels: the two stay together, chance depends on seed and number alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.segmentation_sets import plain
from tokensieve.data import segmentation_set
from tokensieve.errors import InputError, RecipeError
from tokensieve.train.crops import Augmentation, Crops, examine

FILL = (9, 99, 199)


def picture_of(labels: torch.Tensor) -> Image.Image:
    """Each class has a colour of its own."""
    return Image.fromarray(np.stack([labels.numpy() * 20] * 3, axis=-1))


def halves(height: int = 60, width: int = 80) -> torch.Tensor:
    labels = torch.zeros(height, width, dtype=torch.uint8)
    labels[:, width // 2 :] = 5
    labels[height // 2 :] += 1
    return labels


@pytest.mark.parametrize("seed", range(6))
def test_labels_go_with_their_pixels(seed: int) -> None:
    torch.manual_seed(seed)
    labels = halves()
    change = Augmentation(scale=(0.5, 2.0), colours=False)
    image, told = change(picture_of(labels), labels, (48, 64), FILL)
    assert image.shape == (3, 48, 64)
    assert told.shape == (48, 64)
    inside = told != 255
    # Borders between classes are blended in the picture and not in the labels.
    right = (image[0][inside].float() / 20 - told[inside].float()).abs() < 0.3
    assert float(right.float().mean()) > 0.85
    filled = image[:, ~inside]
    assert torch.equal(filled, torch.tensor(FILL, dtype=torch.uint8)[:, None].expand_as(filled))


def test_chance_does_what_it_is_told_to() -> None:
    labels, torch_seed = halves(), torch.manual_seed
    still = Augmentation(scale=(1, 1), one_class=1, flip=0, colours=False)
    image, told = still(picture_of(labels), labels, (60, 80), FILL)
    assert torch.equal(told, labels)
    assert torch.equal(image[0], labels * 20)
    mirrored = Augmentation(scale=(1, 1), one_class=1, flip=1, colours=False)
    assert torch.equal(mirrored(picture_of(labels), labels, (60, 80), FILL)[1], labels.flip(1))
    torch_seed(0)
    coloured = Augmentation(scale=(1, 1), one_class=1, flip=0, colours=True)
    found = [coloured(picture_of(labels), labels, (60, 80), FILL) for _ in range(6)]
    assert any(not torch.equal(each, image) for each, _ in found)
    assert all(torch.equal(told, labels) for _, told in found)


def test_crops_that_one_class_fills_are_avoided() -> None:
    labels = torch.zeros(100, 100, dtype=torch.uint8)
    labels[50:] = 1
    torch.manual_seed(0)
    shares = []
    for one_class in (0.75, 1.0):
        change = Augmentation(scale=(1, 1), one_class=one_class, flip=0, colours=False)
        told = [change(picture_of(labels), labels, (20, 20), FILL)[1] for _ in range(60)]
        shares.append(sum(float((each == each[0, 0]).float().mean()) > 0.75 for each in told))
    assert shares[0] < shares[1] / 2


@pytest.mark.parametrize("settings", [{"scale": (0, 1)}, {"scale": (2, 1)}, {"one_class": 0}, {"flip": 1.5}])
def test_what_makes_no_sense_is_refused(settings: dict) -> None:
    with pytest.raises(RecipeError):
        Augmentation(**settings)


def test_batches_depend_on_seed_and_number_alone(tmp_path) -> None:
    pictures = segmentation_set(plain(tmp_path), classes=3)
    crops = [Crops(pictures, (16, 24), FILL, Augmentation(), 2, 6, seed) for seed in (0, 0, 1)]
    first = crops[0][3]
    assert first[0].shape == (2, 3, 16, 24)
    assert first[1].shape == (2, 16, 24)
    assert first[0].dtype == first[1].dtype == torch.uint8
    torch.rand(7)
    for own, other in zip(first, crops[1][3], strict=True):
        assert torch.equal(own, other)
    assert not torch.equal(first[0], crops[2][3][0])
    assert not torch.equal(first[0], crops[0][4][0])


def test_all_pictures_are_read_before_a_training(tmp_path) -> None:
    root = plain(tmp_path)
    before = examine(segmentation_set(root, classes=3))
    assert before == examine(segmentation_set(root, classes=3))
    with pytest.raises(InputError, match=r"b\.png holds the label 2, beyond the 2 classes: repair or remove it"):
        examine(segmentation_set(root, classes=2))
    labels = root / "labels" / "a.png"
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(labels)
    assert before != examine(segmentation_set(root, classes=3))
    labels.unlink()
    (root / "labels" / "c.png").write_bytes(b"none")
    with pytest.raises(InputError, match=r"2 of 3 pictures cannot be used.*a\.jpg has no label picture.*c\.png is not"):
        examine(segmentation_set(root, classes=3))

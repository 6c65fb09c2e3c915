"""Windows: each pixel is the mean over those that cover it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tokensieve import InputError
from tokensieve.data import AsTensor
from tokensieve.segmentation import mirrored, segvit, slide
from tokensieve.segmentation.sliding import OneWindow, starts


class Marks:
    """Scores that tell windows apart: the mean of the window, and its pixels."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        mean = images.mean(dim=(1, 2, 3), keepdim=True).expand(-1, 1, *images.shape[2:])
        return torch.cat([mean, images[:, :1]], dim=1)


def one_by_one(images: Tensor, crop: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Pixel by pixel, from every window that covers it."""
    _, _, height, width = images.shape
    tall, wide = min(crop[0], height), min(crop[1], width)

    def begins(whole: int, window: int, step: int) -> list[int]:
        places = list(range(0, whole - window + 1, step))
        return places if places[-1] == whole - window else [*places, whole - window]

    windows = [(t, left) for t in begins(height, tall, stride[0]) for left in begins(width, wide, stride[1])]
    means = {(t, left): images[:, :, t : t + tall, left : left + wide].mean(dim=(1, 2, 3)) for t, left in windows}
    answer = torch.zeros(len(images), 2, height, width)
    for row in range(height):
        for column in range(width):
            own = [means[t, left] for t, left in windows if t <= row < t + tall and left <= column < left + wide]
            answer[:, 0, row, column] = torch.stack(own).mean(0)
            answer[:, 1, row, column] = images[:, 0, row, column]
    return answer


@pytest.mark.parametrize(
    ("crop", "stride", "size"),
    [(4, 2, (9, 12)), ((4, 6), (3, 5), (10, 11)), (4, 4, (8, 8)), (8, 3, (8, 8)), ((3, 20), (1, 7), (7, 9))],
)
@pytest.mark.parametrize("windows", [1, 3])
def test_the_mean_over_windows(crop: Any, stride: Any, size: tuple[int, int], windows: int) -> None:
    images, marks = torch.randn(2, 3, *size), Marks()
    pair = (lambda each: each if isinstance(each, tuple) else (each, each))(crop)
    steps = stride if isinstance(stride, tuple) else (stride, stride)
    torch.testing.assert_close(slide(marks, images, crop, stride, windows=windows), one_by_one(images, pair, steps))
    assert {shape[2:] for shape in marks.seen} == {tuple(min(a, b) for a, b in zip(pair, size, strict=True))}


def test_the_last_window_ends_at_the_border() -> None:
    assert starts(10, 4, 3) == [0, 3, 6]
    assert starts(11, 4, 3) == [0, 3, 6, 7]
    assert starts(683, 512, 341) == [0, 171]
    assert starts(4, 4, 2) == [0]


def test_mirrored_images_are_mirrored_back() -> None:
    def left(images: Tensor) -> Tensor:
        """Scores of the pixel to the left."""
        return images[:, :1].roll(1, 3)

    images = torch.randn(1, 3, 4, 8)
    expected = (images[:, :1].roll(1, 3) + images[:, :1].roll(-1, 3)) / 2
    torch.testing.assert_close(mirrored(left, images), expected)
    torch.testing.assert_close(slide(left, images, (4, 8), 2, flip=True), expected)


def test_a_segmenter_slides() -> None:
    from timm.models.vision_transformer import VisionTransformer

    backbone = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2)
    segmenter = segvit(backbone, 3, (0, 1), width=12, heads=3, layers=1).eval()
    images = torch.randn(1, 3, 16, 28)
    with torch.no_grad():
        scores = segmenter.slide(images, 16, (16, 12))
        assert torch.equal(scores, slide(segmenter, images, 16, 12))
        first, second = segmenter(images[..., :16]), segmenter(images[..., 12:])
    torch.testing.assert_close(scores[..., :12], first[..., :12])
    torch.testing.assert_close(scores[..., 12:16], (first[..., 12:] + second[..., :4]) / 2)
    torch.testing.assert_close(scores[..., 16:], second[..., 4:])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"crop": 4, "stride": 5}, "leave pixels between the windows"),
        ({"crop": (4, 8), "stride": 6}, "leave pixels between the windows"),
        ({"crop": 0, "stride": 1}, "crop must be a positive integer in pixels"),
        ({"crop": 4, "stride": (1, 2, 3)}, "stride must be a positive integer in pixels"),
        ({"crop": 4.0, "stride": 2}, "crop must be a positive integer in pixels"),
        ({"crop": 4, "stride": 2, "windows": 0}, "windows must be an integer of at least 1"),
    ],
)
def test_windows_that_make_no_sense(words: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        slide(Marks(), torch.randn(1, 3, 8, 8), **words)


def test_one_window_of_a_picture_at_its_own_scale() -> None:
    generator = np.random.default_rng(0)
    crop, stride = (6, 8), (4, 5)
    window = OneWindow(crop, stride, AsTensor((0.5,) * 3, (0.25,) * 3))
    places = set()
    for _ in range(20):
        pixels = generator.integers(0, 255, (13, 17, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels)
        found = window(picture)
        assert torch.equal(found, window(picture))
        scaled = (torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - 0.5) / 0.25
        cut = {(t, left): scaled[:, t : t + 6, left : left + 8] for t in (0, 4, 7) for left in (0, 5, 9)}
        (place,) = [place for place, each in cut.items() if torch.allclose(each, found, atol=1e-6)]
        places.add(place)
    assert len(places) > 4
    with pytest.raises(InputError, match=r"has 13 x 7 pixels, height x width, and .* windows of 6 x 8"):
        window(Image.fromarray(np.zeros((13, 7, 3), dtype=np.uint8)))

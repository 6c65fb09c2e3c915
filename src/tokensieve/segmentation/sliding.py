"""Scores of images of any size, from overlapping windows and mirrored images."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ..data.inputs import check_images
from ..errors import InputError


def slide(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    crop: int | Sequence[int],
    stride: int | Sequence[int],
    *,
    windows: int = 1,
    flip: bool = False,
) -> Tensor:
    """Scores from overlapping windows: each pixel gets the mean over the windows that contain it.

    Args:
        model: a segmenter, or any module that maps images (B, C, h, w) to scores (B, K, h, w).
        images: (B, C, H, W).
        crop: height and width of a window in pixels, or one number for both; limited to the image's size.
        stride: vertical and horizontal step between windows in pixels, or one number for both. The last window of a row
            or column ends at the image's border.
        windows: number of windows per batch.
        flip: average over the window and its mirror image.

    Returns:
        (B, K, H, W): the mean of the model's outputs, logits or probabilities.

    Raises:
        InputError: a crop or stride that is not a positive integer; a stride larger than the crop.
    """
    size = tuple(check_images(images).shape[2:])
    crop, stride = _pair("crop", crop), _pair("stride", stride)
    if any(step > side for step, side in zip(stride, crop, strict=True)):
        raise InputError(f"stride={stride} is larger than crop={crop}, and would leave pixels between the windows.")
    if type(windows) is not int or windows < 1:
        raise InputError(f"windows must be an integer of at least 1, not {windows!r}.")
    height, width = (min(side, length) for side, length in zip(crop, size, strict=True))
    tops, lefts = (starts(*axis) for axis in zip(size, (height, width), stride, strict=True))
    crops = [(slice(top, top + height), slice(left, left + width)) for top in tops for left in lefts]
    total: Tensor | None = None
    covered = torch.zeros(size, device=images.device)
    for first in range(0, len(crops), windows):
        batch = crops[first : first + windows]
        scores = _scores(model, torch.cat([images[:, :, rows, columns] for rows, columns in batch]), flip)
        if total is None:
            total = scores.new_zeros(len(images), scores.shape[1], *size)
            if scores.is_contiguous(memory_format=torch.channels_last):  # adding tensors with different strides is slow
                total = total.contiguous(memory_format=torch.channels_last)
        for (rows, columns), window_scores in zip(batch, scores.chunk(len(batch)), strict=True):
            total[:, :, rows, columns] += window_scores
            covered[rows, columns] += 1
    assert total is not None
    return total / covered.to(total.dtype)


def mirrored(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The mean of the scores (B, K, H, W) of images and of their mirror images, mirrored back."""
    return _scores(model, check_images(images), flip=True)


def _scores(model: Callable[[Tensor], Tensor], images: Tensor, flip: bool) -> Tensor:
    scores = model(images)
    return (scores + model(images.flip(3)).flip(3)) / 2 if flip else scores


def starts(size: int, window: int, step: int) -> list[int]:
    """Start positions of windows along one side, such that the last window ends at the border."""
    count = -(-(size - window) // step) + 1
    return [min(index * step, size - window) for index in range(count)]


@dataclass(frozen=True)
class OneWindow:
    """A transform from an RGB picture to one of the windows that `slide` reads, as a tensor (3, height, width).

    A checksum of the picture selects the window: always the same for one picture, and uniformly over many pictures.

    Attributes:
        crop, stride: size and step of the windows, as in `slide`, (height, width).
        as_tensor: function from a picture to a tensor (3, h, w).

    Raises:
        InputError: called with a picture that is smaller than a window.
    """

    crop: tuple[int, int]
    stride: tuple[int, int]
    as_tensor: Callable[[Image.Image], Tensor]

    def __call__(self, picture: Image.Image) -> Tensor:
        size = picture.height, picture.width
        if any(length < side for length, side in zip(size, self.crop, strict=True)):
            raise InputError(
                f"The picture has {size[0]} x {size[1]} pixels, height x width, and the segmenter reads windows of "
                f"{self.crop[0]} x {self.crop[1]}."
            )
        tops, lefts = (starts(*axis) for axis in zip(size, self.crop, self.stride, strict=True))
        index = zlib.crc32(picture.tobytes()) % (len(tops) * len(lefts))
        top, left = tops[index // len(lefts)], lefts[index % len(lefts)]
        height, width = self.crop
        return self.as_tensor(picture.crop((left, top, left + width, top + height)))


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Height and width."""
    sides = (value, value) if isinstance(value, int) else value
    if not isinstance(sides, Sequence) or len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise InputError(
            f"{name} must be a positive integer in pixels, or two of them, height and width, not {value!r}."
        )
    return sides[0], sides[1]

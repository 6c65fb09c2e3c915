"""Crops of a segmentation set for training: resized, cropped, mirrored and recoloured at random, labels alongside."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from ..data.segmentation import SegmentationSet
from ..data.segmentation_layouts import VOID
from ..errors import InputError, RecipeError
from .task import Order, batch_seed

NAMED = 10
"""Maximum number of unusable pictures that are named in one error."""
TRIES = 10
"""Maximum number of random crops tried until no class fills the crop."""
COLOURS = v2.Compose(
    [
        v2.RandomApply([v2.ColorJitter(**{name: most})], p=0.5)
        for name, most in {"brightness": 0.125, "contrast": 0.5, "saturation": 0.5, "hue": 0.1}.items()
    ]
)


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of a picture and its labels; the crop itself always happens.

    Attributes:
        scale: smallest and largest factor of both sides, before the crop. (1, 1) keeps the size.
        one_class: largest share of a crop that one class may have, unless ten tries fail; at 1 the first crop is used.
        flip: probability of mirroring.
        colours: change brightness, contrast, saturation and hue, each with probability 0.5.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    one_class: float = 0.75
    flip: float = 0.5
    colours: bool = True

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high:
            raise RecipeError(f"scale must be a lower and an upper factor above 0, not {self.scale}.")
        if not 0 < self.one_class <= 1 or not 0 <= self.flip <= 1:
            raise RecipeError(f"one_class must lie in (0, 1] and flip in [0, 1], not {self.one_class} and {self.flip}.")

    def __call__(
        self, picture: Image.Image, labels: Tensor, crop: tuple[int, int], fill: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """An RGB picture and its labels (H, W) uint8 -> (3, *crop) and (*crop) uint8.

        A picture smaller than the crop is padded with `fill` (red, green, blue), its labels with 255.
        """
        image, low = F.pil_to_tensor(picture), self.scale[0]
        factor = low + (self.scale[1] - low) * float(torch.rand(()))
        size = [max(1, round(side * factor)) for side in image.shape[1:]]
        image = F.resize(image, size, antialias=True)
        label_map = F.resize(labels[None], size, interpolation=InterpolationMode.NEAREST)
        pad_bottom, pad_right = (max(0, side - length) for side, length in zip(crop, size, strict=True))
        if pad_bottom or pad_right:
            image = F.pad(image, [0, 0, pad_right, pad_bottom], fill=list(map(float, fill)))
            label_map = F.pad(label_map, [0, 0, pad_right, pad_bottom], fill=[float(VOID)])
        top, left = self._crop_position(label_map[0], crop)
        area = ..., slice(top, top + crop[0]), slice(left, left + crop[1])
        image, label_map = image[area], label_map[area]
        if float(torch.rand(())) < self.flip:
            image, label_map = image.flip(-1), label_map.flip(-1)
        if self.colours:
            image = COLOURS(image)
        return image.contiguous(), label_map[0].contiguous()

    def _crop_position(self, labels: Tensor, crop: tuple[int, int]) -> tuple[int, int]:
        """A random top left corner of a crop, see `one_class`."""
        top = left = 0
        for _ in range(TRIES):
            top, left = (
                int(torch.randint(length - side + 1, ())) for length, side in zip(labels.shape, crop, strict=True)
            )
            counts = labels[top : top + crop[0], left : left + crop[1]].flatten().long().bincount(minlength=VOID + 1)
            class_counts = counts[:VOID]
            if int((class_counts > 0).sum()) > 1 and float(class_counts.max()) <= self.one_class * float(
                class_counts.sum()
            ):
                break
            if self.one_class == 1:
                break
        return top, left


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Batches by index: images (B, 3, *crop) and labels (B, *crop), both uint8.

    Args:
        pictures: the dataset.
        crop: height and width.
        fill: colour of the padding, red, green and blue from 0 to 255.
        augmentation: the random augmentation.
        size, count, seed: as in `Task.batches`.
    """

    def __init__(
        self,
        pictures: SegmentationSet,
        crop: tuple[int, int],
        fill: Sequence[int],
        augmentation: Augmentation,
        size: int,
        count: int,
        seed: int,
    ) -> None:
        self.pictures, self.crop, self.fill, self.augmentation = pictures, crop, fill, augmentation
        self.size, self.count, self.seed, self.order = size, count, seed, Order(len(pictures), seed)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        rows = [self.order[position] for position in range(number * self.size, (number + 1) * self.size)]
        pairs = self.pictures.pairs(rows)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(batch_seed(self.seed, number))
            images, labels = zip(
                *(self.augmentation(picture, label_map, self.crop, self.fill) for picture, label_map in pairs),
                strict=True,
            )
        return torch.stack(images), torch.stack(labels)


def examine(pictures: SegmentationSet, workers: int = 0) -> str:
    """Read every picture and its labels once, to find unusable ones before training; returns their SHA-256.

    For generated pictures it is the SHA-256 of the text that identifies them.

    Raises:
        InputError: pictures or labels that cannot be used; the message names them.
    """
    if pictures.identity is not None:
        return hashlib.sha256(pictures.identity.encode()).hexdigest()
    digest, failures = hashlib.sha256("\n".join(pictures.classes).encode()), []
    for problem in DataLoader(_Digests(pictures), batch_size=None, num_workers=workers):
        if isinstance(problem, InputError):
            failures.append(str(problem).rstrip("."))
        else:
            digest.update(problem)
    if len(failures) == 1:
        raise InputError(f"{failures[0]}: repair or remove it before training.")
    if failures:
        names = "; ".join(failures[:NAMED]) + ("; ..." if len(failures) > NAMED else "")
        raise InputError(
            f"{len(failures)} of {len(pictures)} pictures cannot be used: repair or remove them before training. "
            f"{names}."
        )
    return digest.hexdigest()


class _Digests(Dataset[Any]):
    """The SHA-256 of each picture and its labels, or the error if it cannot be used."""

    def __init__(self, pictures: SegmentationSet) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> bytes | InputError:
        try:
            picture, labels = self.pictures.pair(index)
        except InputError as error:
            return error
        name = "/".join(self.pictures.parts(index)).encode()
        return hashlib.sha256(name + picture.tobytes() + labels.numpy().tobytes()).digest()

"""Scenes: generated pictures of one handwritten digit on a photograph, with exact labels and masks.

They are the data of tests, documentation and demo, made from the digits and photographs included in scikit-learn and
scikit-image. The digit is placed, scaled, rotated and coloured at random on a crop of a photograph. Fragments of other
digits surround it, so that single strokes do not give the class away. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import RecipeError
from .scene_drawing import (
    GLYPH,
    GROUND,
    SPLITS,
    colours_of,
    crops,
    glyphs_of,
    grown,
    is_bright,
    paint,
    strokes,
)

SIZE = 112
"""Default side of a scene in pixels."""
FRAGMENTS = 6
"""Number of fragments of other digits around the digit."""
AT_ONCE = 32
"""Scenes drawn together; more would not fit in the processor's cache."""
MAP_CLASSES = ("background", "fragment", *(f"digit {digit}" for digit in range(10)))
"""Classes of the pixels, in the order of `Scenes.label_maps`."""


class Scene(NamedTuple):
    """Scenes in a batch, or one scene without the first axis.

    Attributes:
        images: (B, 3, H, W) float32 in [0, 1], RGB.
        labels: (B,) int64, the digit, 0 to 9.
        masks: (B, H, W) bool, the digit's pixels.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor


class LabelledScene(NamedTuple):
    """Scenes in a batch with the class of each pixel.

    Attributes:
        images: (B, 3, H, W) float32 in [0, 1], RGB.
        maps: (B, H, W) uint8, an index into `MAP_CLASSES`: the class that covers more than half of the pixel.
    """

    images: Tensor
    maps: Tensor


class Scenes(Dataset[Scene]):
    """A dataset of generated scenes. Scene i depends only on seed, split, i and size, not on its batch.

    Args:
        split: "train" or "validation"; the two share photographs, but no handwritten digit.
        count: number of scenes.
        size: side in pixels.
        seed: seed of the random numbers.

    Raises:
        RecipeError: an unknown split, a count below 1 or a size below 32.
    """

    def __init__(self, split: str = "train", count: int = 25_000, size: int = SIZE, seed: int = 0) -> None:
        if split not in SPLITS:
            raise RecipeError(f"Scenes come in the splits {' and '.join(SPLITS)}, not {split!r}.")
        if count < 1 or size < 32 or seed < 0:
            raise RecipeError(
                f"Scenes need a count from 1 up, a size from 32 pixels up and a seed from 0 up, not {count}, {size} "
                f"and {seed}."
            )
        self.split, self.count, self.size, self.seed = split, count, size, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return Scene(*(part[0] for part in self.batch([index])))

    def __getitems__(self, indices: Sequence[int]) -> list[Scene]:
        """Several scenes, for PyTorch's data loader: drawing them together is faster."""
        return [Scene(*parts) for parts in zip(*self.batch(indices), strict=True)]

    def batch(self, indices: Sequence[int]) -> Scene:
        """The scenes with these indices."""
        images, digits, masks, _ = self._render_all(indices)
        return Scene(images, digits, masks)

    def label_maps(self, indices: Sequence[int]) -> LabelledScene:
        """The scenes with these indices, with the exact class of each pixel, as in a segmentation set."""
        images, digits, masks, fragments = self._render_all(indices)
        classes = (MAP_CLASSES.index("digit 0") + digits).byte()
        return LabelledScene(images, torch.where(masks, classes[:, None, None], fragments.byte()))

    @torch.no_grad()
    def _render_all(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Images, digits (B,), and masks of the digit and of all fragments, both (B, H, W) bool."""
        parts = [self._render(indices[start : start + AT_ONCE]) for start in range(0, len(indices), AT_ONCE)]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _render(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        randoms = torch.from_numpy(np.stack([self._draw(index) for index in indices]))
        ground, pieces = randoms[:, : len(GROUND)], randoms[:, len(GROUND) :].unflatten(1, (1 + FRAGMENTS, len(GLYPH)))
        images = crops(dict(zip(GROUND, ground.unbind(1), strict=True)), self.size)
        drawn = dict(zip(GLYPH, pieces.unbind(2), strict=True))
        glyphs, digits = glyphs_of(self.split)
        samples = (drawn["sample"] * len(glyphs)).long()
        alpha = _placed(glyphs[samples], drawn, self.size)
        images = paint(images, alpha, colours_of(drawn), is_bright(images, alpha))
        return images, digits[samples[:, 0]], alpha[:, 0] > 0.5, alpha[:, 1:].sum(1) > 0.5

    def _draw(self, index: int) -> np.ndarray:
        count = len(GROUND) + (1 + FRAGMENTS) * len(GLYPH)
        stream = np.random.Philox(key=self.seed, counter=[0, 0, int(index), SPLITS.index(self.split)])
        return np.random.Generator(stream).random(count, dtype=np.float32)


class ScenePictures:
    """Scenes as (PIL image, label), the items of an `ImageSet`."""

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        scene = self.scenes[index]
        return to_picture(scene.images), int(scene.labels)


def to_picture(image: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] -> an RGB picture."""
    return Image.fromarray((image * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def _placed(glyphs: Tensor, drawn: dict[str, Tensor], size: int) -> Tensor:
    """Place glyphs (B, G, 60, 60) on the canvas: opacities (B, G, size, size). The first is the digit, and fragments do
    not touch it."""
    is_digit = torch.arange(glyphs.shape[1]) == 0
    # Fractions of the canvas's side. The strokes of a glyph fill eight tenths of its box.
    side = torch.where(is_digit, 0.47 + 0.27 * drawn["scale"], 0.38 + 0.26 * drawn["scale"])
    margin = torch.where(is_digit, 0.5 * side, 0.1)
    x, y = (margin + (1 - 2 * margin) * drawn[axis] for axis in ("x", "y"))
    turn = torch.where(is_digit, 0.28, torch.pi) * (2 * drawn["turn"] - 1)
    alpha = strokes(glyphs, drawn, x, y, side, turn, is_digit, size)
    clear = 1 - grown(alpha[:, :1], size // 12)
    return torch.cat([alpha[:, :1], alpha[:, 1:] * clear], dim=1)

"""Scenes: generated pictures of one handwritten digit on a photograph, with exact labels and masks.

The small data of tests, documentation and demo, made from what scikit-learn and scikit-image ship. The digit is placed,
sized, turned and coloured at random over a crop of a photograph; fragments of other digits lie around it, so that a
stroke alone tells nothing. Nothing is downloaded.
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
"""Side of a scene in pixels, unless asked for otherwise."""
FRAGMENTS = 6
"""Fragments of other digits around the digit."""
AT_ONCE = 32
"""Scenes drawn together: more leave the processor's cache."""
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
        maps: (B, H, W) uint8, an index into `MAP_CLASSES`: what covers more than half of the pixel.
    """

    images: Tensor
    maps: Tensor


class Scenes(Dataset[Scene]):
    """Generated scenes. Scene i depends on the seed, the split, i and the size alone, not on the batch it is made in.

    Args:
        split: "train" or "validation"; the two share photographs, but no handwritten digit.
        count: number of scenes.
        size: side in pixels.
        seed: of everything drawn.

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
        """For data loaders: many at once are cheaper than one by one."""
        return [Scene(*parts) for parts in zip(*self.batch(indices), strict=True)]

    def batch(self, indices: Sequence[int]) -> Scene:
        """The scenes with these numbers."""
        images, digits, masks, _ = self._drawn(indices)
        return Scene(images, digits, masks)

    def label_maps(self, indices: Sequence[int]) -> LabelledScene:
        """The scenes with these numbers, as sets for segmentation have them: the class of each pixel, exactly."""
        images, digits, masks, fragments = self._drawn(indices)
        classes = (MAP_CLASSES.index("digit 0") + digits).byte()
        return LabelledScene(images, torch.where(masks, classes[:, None, None], fragments.byte()))

    @torch.no_grad()
    def _drawn(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Images, digits (B,), and the pixels of the digit and of all fragments, both (B, H, W) bool."""
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
    """Scenes as (PIL image, label) pairs, for readers of pictures such as `ImageSet`."""

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
    """Glyphs (B, G, 60, 60) on the canvas: opacities (B, G, size, size), the digit first, fragments clear of it."""
    first = torch.arange(glyphs.shape[1]) == 0
    # Shares of the canvas's side. A glyph's strokes fill eight tenths of its box.
    side = torch.where(first, 0.47 + 0.27 * drawn["scale"], 0.38 + 0.26 * drawn["scale"])
    margin = torch.where(first, 0.5 * side, 0.1)
    x, y = (margin + (1 - 2 * margin) * drawn[axis] for axis in ("x", "y"))
    turn = torch.where(first, 0.28, torch.pi) * (2 * drawn["turn"] - 1)
    alpha = strokes(glyphs, drawn, x, y, side, turn, first, size)
    clear = 1 - grown(alpha[:, :1], size // 12)
    return torch.cat([alpha[:, :1], alpha[:, 1:] * clear], dim=1)

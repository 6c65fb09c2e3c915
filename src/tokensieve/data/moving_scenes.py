"""Moving scenes: generated clips of one handwritten digit that crosses a photograph, with exact labels and masks.

They are the video data of tests, documentation and demo, drawn like `scenes`. In half of the clips the camera is still;
in the others it pans over the photograph, so that not only the digit changes between frames. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import RecipeError
from .scene_drawing import GLYPH, GROUND, SPLITS, colours_of, crops, glyphs_of, halo_of, is_bright, paint, strokes

SIZE, FRAMES = 64, 8
"""Default side in pixels and number of frames of a clip."""
DIRECTIONS = ("right", "up right", "up", "up left", "left", "down left", "down", "down right")
MOVING_CLASSES = tuple(f"{digit} {direction}" for digit in range(10) for direction in DIRECTIONS)
"""Names of the classes: the digit, and the direction in which it moves in the frame."""
FRAGMENTS = 2
"""Number of fragments of other digits on the photograph."""
MARGIN = 8
"""On each edge, the photograph exceeds the frame by the frame's side divided by this; the camera pans over it."""
AT_ONCE = 16
"""Clips drawn together; more would not fit in the processor's cache."""

CAMERA, PATH = ("still", "pan", "towards"), ("way", "travel")
"""Names of the random numbers of a clip, in addition to those of `GROUND` and `GLYPH`."""


class MovingScene(NamedTuple):
    """Moving scenes in a batch, or one without the first axis.

    Attributes:
        clips: (B, T, 3, H, W) float32 in [0, 1], RGB.
        labels: (B,) int64, index of `MOVING_CLASSES`: 8 times the digit, plus the direction.
        masks: (B, T, H, W) bool, the digit's pixels in each frame.
    """

    clips: Tensor
    labels: Tensor
    masks: Tensor


class MovingScenes(Dataset[MovingScene]):
    """A dataset of generated clips. Clip i depends only on seed, split, i, size and frames, not on its batch.

    Args:
        split: "train" or "validation"; the two share photographs, but no handwritten digit.
        count: number of clips.
        size: side in pixels.
        frames: frames per clip; the path of the digit does not depend on it.
        seed: seed of the random numbers.

    Raises:
        RecipeError: an unknown split, a count below 1, a size below 32 or fewer than two frames.
    """

    def __init__(
        self, split: str = "train", count: int = 25_000, size: int = SIZE, frames: int = FRAMES, seed: int = 0
    ) -> None:
        if split not in SPLITS:
            raise RecipeError(f"Moving scenes come in the splits {' and '.join(SPLITS)}, not {split!r}.")
        if count < 1 or size < 32 or frames < 2 or seed < 0:
            raise RecipeError(
                "Moving scenes need a count from 1 up, a size from 32 pixels up, two frames or more and a seed from 0 "
                f"up, not {count}, {size}, {frames} and {seed}."
            )
        self.split, self.count, self.size, self.frames, self.seed = split, count, size, frames, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> MovingScene:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return MovingScene(*(part[0] for part in self.batch([index])))

    def __getitems__(self, indices: Sequence[int]) -> list[MovingScene]:
        """Several scenes, for PyTorch's data loader: drawing them together is faster."""
        return [MovingScene(*parts) for parts in zip(*self.batch(indices), strict=True)]

    @torch.no_grad()
    def batch(self, indices: Sequence[int], frames: slice = slice(None)) -> MovingScene:
        """The moving scenes with these indices; `frames` selects the frames to draw."""
        parts = [self._render(indices[start : start + AT_ONCE], frames) for start in range(0, len(indices), AT_ONCE)]
        return MovingScene(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _render(self, indices: Sequence[int], frames: slice) -> MovingScene:
        randoms = torch.from_numpy(np.stack([self._draw(index) for index in indices]))
        ground, camera, path, pieces = randoms.split(_COUNTS, dim=1)
        drawn = dict(zip(GLYPH, pieces.unflatten(1, (1 + FRAGMENTS, len(GLYPH))).unbind(2), strict=True))
        glyphs, digits = glyphs_of(self.split)
        samples = (drawn["sample"] * len(glyphs)).long()
        digit, fragments = ({name: values[:, part] for name, values in drawn.items()} for part in (_FIRST, _OTHERS))

        scenery_size = self.size + 2 * (self.size // MARGIN)
        scenery = _scenery(
            dict(zip(GROUND, ground.unbind(1), strict=True)), glyphs[samples[:, 1:]], fragments, scenery_size
        )
        moments = torch.linspace(-0.5, 0.5, self.frames)
        direction = (path[:, 0] * len(DIRECTIONS)).long()
        x, y = _path(digit, direction, path[:, 1], moments)
        alpha, halo = _digit(glyphs[samples[:, :1]], digit, x, y, self.size)
        dark = is_bright(_middle(scenery, self.size), alpha.mean(1, keepdim=True))
        alpha, halo = alpha[:, frames], halo[:, frames]
        clips = _filmed(scenery, dict(zip(CAMERA, camera.unbind(1), strict=True)), moments[frames], self.size)
        clips = _with_digit(clips, alpha, halo, colours_of(digit), dark)
        return MovingScene(clips, digits[samples[:, 0]] * len(DIRECTIONS) + direction, alpha > 0.5)

    def _draw(self, index: int) -> np.ndarray:
        # The second counter separates these random numbers from those of `Scenes`.
        stream = np.random.Philox(key=self.seed, counter=[0, 1, int(index), SPLITS.index(self.split)])
        return np.random.Generator(stream).random(sum(_COUNTS), dtype=np.float32)


_COUNTS = [len(GROUND), len(CAMERA), len(PATH), (1 + FRAGMENTS) * len(GLYPH)]
_FIRST, _OTHERS = slice(1), slice(1, None)


def _scenery(ground: dict[str, Tensor], glyphs: Tensor, drawn: dict[str, Tensor], size: int) -> Tensor:
    """The static background (B, 3, size, size): crops of photographs with fragments of digits on them."""
    images = crops(ground, size)
    x, y = (0.1 + 0.8 * drawn[axis] for axis in ("x", "y"))
    side, turn = 0.3 + 0.15 * drawn["scale"], torch.pi * (2 * drawn["turn"] - 1)
    alpha = strokes(glyphs, drawn, x, y, side, turn, torch.zeros(FRAGMENTS, dtype=torch.bool), size)
    return paint(images, alpha, colours_of(drawn), is_bright(images, alpha))


def _filmed(scenery: Tensor, drawn: dict[str, Tensor], moments: Tensor, size: int) -> Tensor:
    """Frames of the scenery (B, T, 3, size, size): the camera is still in half of the clips, and pans in the others."""
    reach = torch.where(drawn["still"] < 0.5, 0, drawn["pan"]) * (1 - size / scenery.shape[-1])
    angle = 2 * torch.pi * drawn["towards"]
    x, y = (reach[:, None] * component[:, None] * moments for component in (angle.cos(), angle.sin()))
    return _moved(scenery, x, y, size)


def _path(drawn: dict[str, Tensor], direction: Tensor, travel: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    """x and y of the digit's centre at each moment, (B, T) each, chosen so that the digit stays inside the frame."""
    half, distance = 0.5 * _side(drawn), (0.28 + 0.12 * travel)[:, None]
    angle = 2 * torch.pi / len(DIRECTIONS) * direction[:, None]
    centres = []
    for name, component in (("x", angle.cos()), ("y", -angle.sin())):  # y points down
        margin = half + 0.5 * distance * component.abs()
        centres.append(margin + (1 - 2 * margin) * drawn[name] + distance * component * moments)
    return centres[0], centres[1]


def _side(drawn: dict[str, Tensor]) -> Tensor:
    """Side of the digit's box, as a fraction of the frame's side."""
    return 0.4 + 0.15 * drawn["scale"]


def _digit(glyphs: Tensor, drawn: dict[str, Tensor], x: Tensor, y: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The moving digit and its halo: glyphs (B, 1, 60, 60) -> opacities (B, T, size, size) of both."""
    middle, turn = torch.full_like(drawn["x"], 0.5), 0.2 * (2 * drawn["turn"] - 1)
    alpha = strokes(glyphs, drawn, middle, middle, _side(drawn), turn, torch.tensor([True]), size)
    both = _moved(torch.cat([alpha, halo_of(alpha)], dim=1), 0.5 - x, 0.5 - y, size)
    return both[:, :, 0], both[:, :, 1]


def _moved(images: Tensor, x: Tensor, y: Tensor, size: int) -> Tensor:
    """Crop frames (B, T, C, size, size) from images (B, C, side, side); zeros outside the images.

    `x`, `y` (B, T) are the offsets of a frame's centre to the right and downwards from the image's centre, as fractions
    of `side`.
    """
    line = (2 * torch.arange(size) + 1 - size) / images.shape[-1]
    columns, rows = (line + 2 * offset[..., None] for offset in (x, y))
    grid = torch.stack([columns[:, :, None, :].expand(-1, -1, size, -1), rows[..., None].expand(-1, -1, -1, size)], -1)
    frames = F.grid_sample(images, grid.flatten(1, 2), align_corners=False)
    return frames.unflatten(2, (-1, size)).transpose(1, 2)


def _middle(scenery: Tensor, size: int) -> Tensor:
    """The central part of the scenery, as a still camera sees it."""
    margin = (scenery.shape[-1] - size) // 2
    return scenery[..., margin : margin + size, margin : margin + size]


def _with_digit(clips: Tensor, alpha: Tensor, halo: Tensor, colours: Tensor, dark: Tensor) -> Tensor:
    """Paint the digit on clips (B, T, 3, H, W), in the same colour in all frames of a clip.

    `colours` (B, 1, 2, 3) are a light and a dark colour, and `dark` (B, 1) selects one.
    """
    frames = clips.shape[1]
    halos = torch.stack([torch.where(mask[..., None], halo, 0) for mask in (dark[:, :, None], ~dark[:, :, None])], 2)
    dark, colours = (values.repeat_interleave(frames, 0) for values in (dark, colours))
    images, alpha, halos = (values.flatten(0, 1) for values in (clips, alpha, halos))
    return paint(images, alpha[:, None], colours, dark, halos).unflatten(0, (-1, frames))

"""What a recipe does to a picture, drawn over the picture: tensors and indices in, Pillow images out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

HEIGHT = 336
"""Pixels of a panel's height: a multiple of 14 and of 16, so that common grids fall on whole pixels."""

MAP_COLOURS = "viridis"  # readable without red and green, and in grey
_COLOUR = 0.68  # share of a map's colour; the rest is the photograph in grey
_TINT = 0.62  # likewise of a class or a stage
_LUMINANCE = np.array([0.299, 0.587, 0.114])
_LINE, _CASING = 255.0, 20.0  # a light line in a dark casing shows on every photograph
_DROPPED = (0.3, 26.0)  # contrast and base of what was not read: dark, without colour, still recognisable

Array = NDArray[np.float64]


def photo(image: Tensor, mean: Sequence[float], std: Sequence[float], height: int = HEIGHT) -> Image.Image:
    """A normalised image (3, H, W) as a person sees it: `height` pixels high, RGB, in its own aspect ratio."""
    means, stds = (torch.tensor(tuple(values)).view(-1, 1, 1) for values in (mean, std))
    pixels = (image.detach().cpu().float() * stds + means).clamp(0, 1) * 255
    picture = Image.fromarray(pixels.round().byte().permute(1, 2, 0).numpy())
    width = max(1, round(height * picture.width / picture.height))
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def heat(photo: Image.Image, significance: Tensor, ends: tuple[float, float] | None = None) -> Image.Image:
    """A significance map (h, w) in colours over the photograph, dark blue for its lowest value, yellow for its highest.

    Each patch has one colour, for the ranking sees one number. A map of equal values is drawn in the middle colour.
    `ends` are the lowest and the highest value where the map is one moment of several.
    """
    values = significance.detach().cpu().double().numpy()
    low, high = (values.min(), values.max()) if ends is None else ends
    span = high - low
    shares = (values - low) / span if span > 0 else np.full_like(values, 0.5)
    colours = _over(photo, 255.0 * colormaps[MAP_COLOURS](shares)[..., :3])
    return _image(_COLOUR * colours + (1 - _COLOUR) * _grey(photo))


def kept(photo: Image.Image, index: Tensor, grid: tuple[int, ...]) -> Image.Image:
    """The patches `index` (K,), row-major on `grid`, as they are and outlined; the dropped ones dark and colourless.

    -1 is padding.
    """
    inside = np.zeros(grid, dtype=np.int64)
    inside.reshape(-1)[index[index >= 0].detach().cpu().numpy()] = 1
    read = _over(photo, inside)
    pixels = np.where(read[..., None] == 1, _pixels(photo), _dimmed(photo))
    patch = min(photo.height / grid[0], photo.width / grid[1])
    width = max(1, round(min(photo.height / 160, patch / 12)))  # small patches would drown in thick lines
    return _image(_outlined(pixels, read, read == 1, width))


@dataclass(frozen=True)
class Merged:
    """Of each token, from -1 on, which stands for dropped patches: the patches that it stands for, and the mean colour
    of their pixels."""

    counts: NDArray[np.int64]
    colours: Array

    @classmethod
    def of(cls, photos: Sequence[Image.Image], source: Tensor, grid: tuple[int, int, int]) -> Self:
        """`source` (P,), row-major on `grid`, over photographs in the order of time."""
        labels = source.detach().cpu().numpy()
        moments, tokens = labels.reshape(grid), labels.max() + 2
        area, sums = np.zeros(tokens), np.zeros((tokens, 3))
        for number, photo in enumerate(photos):
            flat = _over(photo, moments[number * grid[0] // len(photos)]).ravel() + 1
            pixels = _pixels(photo).reshape(-1, 3)
            area += np.bincount(flat, minlength=tokens)
            sums += np.stack([np.bincount(flat, pixels[:, c], minlength=tokens) for c in range(3)], axis=-1)
        return cls(np.bincount(labels + 1), sums / np.maximum(area, 1)[:, None])


def groups(photo: Image.Image, source: Tensor, grid: tuple[int, int], clip_groups: Merged | None = None) -> Image.Image:
    """Which patches were merged: `source` (P,) is each patch's token, -1 where it was dropped; see `Trace.source`.

    The patches of one token have their common mean colour and a border around them; a patch that is a token of its own
    stays as it is, a dropped one is dark. `clip_groups`: those of the whole clip that these patches are a moment of.
    """
    labels = source.detach().cpu().numpy()
    clip_groups = clip_groups or Merged.of([photo], source, (1, *grid))
    merged = (clip_groups.counts[labels + 1] > 1) & (labels >= 0)
    token, pixels = _over(photo, labels.reshape(grid)), _pixels(photo)
    result = np.where(_over(photo, merged.reshape(grid))[..., None], clip_groups.colours[token + 1], pixels)
    result = np.where(token[..., None] < 0, _dimmed(photo), result)
    # Neighbours that were not merged need no border between them: it would cover the photograph with a grid.
    alone = np.where(merged, labels, -1 - (labels >= 0))
    return _image(_outlined(result, _over(photo, alone.reshape(grid)), token >= 0, width=1))


def coloured(photo: Image.Image, cells: Tensor, colours: Sequence[tuple[int, int, int] | None]) -> Image.Image:
    """Cells (h, w), each a number of `colours`, over the photograph in grey; a dark line between unlike neighbours.

    None leaves the photograph as it is, in its own colours.
    """
    numbers = _over(photo, cells.detach().cpu().numpy())
    table = np.array([colour or (0, 0, 0) for colour in colours], dtype=np.float64)
    tinted = _TINT * table[numbers] + (1 - _TINT) * _grey(photo)
    bare = np.array([colour is None for colour in colours])
    result = np.where(bare[numbers][..., None], _pixels(photo), tinted)
    return _image(_outlined(result, numbers, np.zeros(numbers.shape, dtype=bool), width=1))


def stack(images: Sequence[Image.Image], gap: int = 6) -> Image.Image:
    """Images one below the other, `gap` transparent pixels between them."""
    size = max(image.width for image in images), sum(image.height + gap for image in images) - gap
    canvas, top = Image.new("RGBA", size), 0
    for image in images:
        canvas.paste(image, (0, top))
        top += image.height + gap
    return canvas


def _pixels(photo: Image.Image) -> Array:
    """(height, width, 3) in 0 to 255."""
    return np.asarray(photo.convert("RGB"), dtype=np.float64)


def _grey(photo: Image.Image) -> Array:
    """(height, width, 1) in 0 to 255."""
    return (_pixels(photo) @ _LUMINANCE)[..., None]


def _dimmed(photo: Image.Image) -> Array:
    contrast, base = _DROPPED
    return np.broadcast_to(base + contrast * _grey(photo), (photo.height, photo.width, 3))


def _over(photo: Image.Image, cells: NDArray[Any]) -> NDArray[Any]:
    """Values (h, w, ...) of a grid's cells at each pixel of the photograph, without any blending at the edges."""
    rows = np.arange(photo.height) * cells.shape[0] // photo.height
    columns = np.arange(photo.width) * cells.shape[1] // photo.width
    return cells[rows[:, None], columns]


def _outlined(pixels: Array, labels: NDArray[Any], light: NDArray[Any], width: int) -> Array:
    """Lines along the borders between labels, `width` pixels on either side: light on `light` pixels, else dark."""
    edge = np.zeros(labels.shape, dtype=bool)
    for shift in range(1, width + 1):
        for before, after in (
            (np.s_[:-shift], np.s_[shift:]),
            (np.s_[:, :-shift], np.s_[:, shift:]),
        ):
            differs = labels[before] != labels[after]
            edge[before] |= differs
            edge[after] |= differs
    tone = np.where(light, _LINE, _CASING)[..., None]
    return np.where(edge[..., None], tone, pixels)


def _image(pixels: Array) -> Image.Image:
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))

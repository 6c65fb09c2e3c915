"""Draws the effect of a recipe over a picture: takes tensors and indices, returns Pillow images."""

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
"""Height of a panel in pixels: a multiple of 14 and of 16, so that patches of common grids have whole pixels."""

MAP_COLOURS = "viridis"  # readable without red and green, and in grey
_COLOUR = 0.68  # share of a map's colour; the rest is the photograph in grey
_TINT = 0.62  # likewise of a class or a stage
_LUMINANCE = np.array([0.299, 0.587, 0.114])
_LINE, _CASING = 255.0, 20.0  # a light line with a dark border is visible on every photograph
_DROPPED = (0.3, 26.0)  # contrast and brightness offset of dropped patches: dark and grey, still recognisable

Array = NDArray[np.float64]


def photo(image: Tensor, mean: Sequence[float], std: Sequence[float], height: int = HEIGHT) -> Image.Image:
    """A normalised image (3, H, W) as an RGB picture, `height` pixels high, in its own aspect ratio."""
    means, stds = (torch.tensor(tuple(values)).view(-1, 1, 1) for values in (mean, std))
    pixels = (image.detach().cpu().float() * stds + means).clamp(0, 1) * 255
    picture = Image.fromarray(pixels.round().byte().permute(1, 2, 0).numpy())
    width = max(1, round(height * picture.width / picture.height))
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def heat(photo: Image.Image, significance: Tensor, value_range: tuple[float, float] | None = None) -> Image.Image:
    """A significance map (h, w) in colours over the photograph, dark blue for its lowest value, yellow for its highest.

    Each patch has one colour, since it has one value. A map of equal values is drawn in the middle colour. Give
    `value_range`, the lowest and the highest value, if the map is one moment of several.
    """
    values = significance.detach().cpu().double().numpy()
    low, high = (values.min(), values.max()) if value_range is None else value_range
    span = high - low
    shares = (values - low) / span if span > 0 else np.full_like(values, 0.5)
    colours = _over(photo, 255.0 * colormaps[MAP_COLOURS](shares)[..., :3])
    return _image(_COLOUR * colours + (1 - _COLOUR) * _grey(photo))


def kept(photo: Image.Image, index: Tensor, grid: tuple[int, ...]) -> Image.Image:
    """Draw the patches `index` (K,), row-major on `grid`, unchanged and outlined, and all others dark and grey.

    -1 in `index` is padding.
    """
    is_kept = np.zeros(grid, dtype=np.int64)
    is_kept.reshape(-1)[index[index >= 0].detach().cpu().numpy()] = 1
    kept_pixels = _over(photo, is_kept)
    pixels = np.where(kept_pixels[..., None] == 1, _pixels(photo), _dimmed(photo))
    patch = min(photo.height / grid[0], photo.width / grid[1])
    width = max(1, round(min(photo.height / 160, patch / 12)))  # thick lines would cover small patches
    return _image(_outlined(pixels, kept_pixels, kept_pixels == 1, width))


@dataclass(frozen=True)
class Merged:
    """For each token, the number of its patches and the mean colour of their pixels. Entry 0: dropped patches."""

    counts: NDArray[np.int64]
    colours: Array

    @classmethod
    def of(cls, photos: Sequence[Image.Image], source: Tensor, grid: tuple[int, int, int]) -> Self:
        """From `source` (P,), row-major on `grid`, and the photographs of a clip in temporal order."""
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
    """Draw the merged patches; `source` (P,) is each patch's token, -1 if it was dropped, see `Trace.source`.

    The patches of one token have their mean colour and a common border; a patch that was not merged is unchanged, a
    dropped one is dark. `clip_groups`: the groups of the whole clip, if these patches are one moment of it.
    """
    labels = source.detach().cpu().numpy()
    clip_groups = clip_groups or Merged.of([photo], source, (1, *grid))
    merged = (clip_groups.counts[labels + 1] > 1) & (labels >= 0)
    token, pixels = _over(photo, labels.reshape(grid)), _pixels(photo)
    result = np.where(_over(photo, merged.reshape(grid))[..., None], clip_groups.colours[token + 1], pixels)
    result = np.where(token[..., None] < 0, _dimmed(photo), result)
    # No border between neighbours that were not merged: it would cover the photograph with a grid.
    regions = np.where(merged, labels, -1 - (labels >= 0))
    return _image(_outlined(result, _over(photo, regions.reshape(grid)), token >= 0, width=1))


def coloured(photo: Image.Image, cells: Tensor, colours: Sequence[tuple[int, int, int] | None]) -> Image.Image:
    """Cells (h, w), each an index into `colours`, over the grey photograph; a dark line between different neighbours.

    A colour None leaves the photograph unchanged there.
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

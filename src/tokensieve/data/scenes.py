"""Scenes: generated pictures of one handwritten digit on a photograph, with exact labels and masks.

The small data of tests, documentation and demo, made from what scikit-learn and scikit-image ship. The digit is placed,
sized, turned and coloured at random over a crop of a photograph; fragments of other digits lie around it, so that a
stroke alone tells nothing. Nothing is downloaded.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import RecipeError

SIZE = 112
"""Side of a scene in pixels, unless asked for otherwise."""
SPLITS = ("train", "validation")
VALIDATION = 5
"""Every fifth sample of the digits belongs to validation."""
FRAGMENTS = 6
"""Fragments of other digits around the digit."""
AT_ONCE = 32
"""Scenes drawn together: more leave the processor's cache."""
MAP_CLASSES = ("background", "fragment", *(f"digit {digit}" for digit in range(10)))
"""Classes of the pixels, in the order of `Scenes.label_maps`."""

# What one scene draws, each a number in [0, 1): the ground, then the same for the digit and every fragment.
_GROUND = ("photograph", "side", "top", "left", "flip", "gain")
_GLYPH = ("sample", "x", "y", "scale", "turn", "shear", "aspect", "hue", "saturation", "value", "cut_x", "cut_y")


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
    """Scene i of a split depends on the seed, the split, i and the size alone, in whatever batch it is made.

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
        parts = [self._some(indices[start : start + AT_ONCE]) for start in range(0, len(indices), AT_ONCE)]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _some(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        draws = torch.from_numpy(np.stack([self._draw(index) for index in indices]))
        ground, pieces = draws[:, : len(_GROUND)], draws[:, len(_GROUND) :].unflatten(1, (1 + FRAGMENTS, len(_GLYPH)))
        images = _crops(dict(zip(_GROUND, ground.unbind(1), strict=True)), self.size)
        drawn = dict(zip(_GLYPH, pieces.unbind(2), strict=True))
        glyphs, digits = _glyphs(self.split)
        samples = (drawn["sample"] * len(glyphs)).long()
        alpha = _place(glyphs[samples], drawn, self.size)
        images = _paint(images, alpha, _colours(drawn))
        return images, digits[samples[:, 0]], alpha[:, 0] > 0.5, alpha[:, 1:].sum(1) > 0.5

    def _draw(self, index: int) -> np.ndarray:
        count = len(_GROUND) + (1 + FRAGMENTS) * len(_GLYPH)
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


def photographs() -> dict[str, Image.Image]:
    """The colour photographs that scikit-image and scikit-learn ship, by name."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    loaders: dict[str, Callable[[], np.ndarray]] = {
        "astronaut": data.astronaut,
        "cat": data.chelsea,
        "coffee": data.coffee,
        "rocket": data.rocket,
        "galaxies": data.hubble_deep_field,
        "motorcycle": lambda: data.stereo_motorcycle()[0],
        "china": lambda: load_sample_image("china.jpg"),
        "flower": lambda: load_sample_image("flower.jpg"),
    }
    return {name: Image.fromarray(np.ascontiguousarray(load()[..., :3])) for name, load in loaders.items()}


@cache
def _grounds(size: int) -> list[Tensor]:
    """Photographs (1, 3, h, w) in [0, 1], their short side twice a scene's."""
    grounds = []
    for picture in photographs().values():
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
        scale = 2 * size / min(pixels.shape[-2:])
        grounds.append(F.interpolate(pixels, scale_factor=scale, mode="bilinear", antialias=True).clamp(0, 1))
    return grounds


@cache
def _glyphs(split: str) -> tuple[Tensor, Tensor]:
    """Opacities (S, 60, 60) and classes (S,) of a split's handwritten digits, the strokes made smooth."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    chosen = (np.arange(len(digits)) % VALIDATION == 0) == (split == "validation")
    small = torch.from_numpy(pixels[chosen]).float().view(-1, 1, 8, 8) / 16
    smooth = F.interpolate(F.pad(small, (1, 1, 1, 1)), scale_factor=6, mode="bicubic", align_corners=False)
    edge = ((smooth[:, 0] - 0.4) / 0.3).clamp(0, 1)
    return edge.square() * (3 - 2 * edge), torch.from_numpy(digits[chosen]).long()


def _crops(drawn: dict[str, Tensor], size: int) -> Tensor:
    """A square crop of a photograph for each scene, (B, 3, size, size)."""
    grounds = _grounds(size)
    chosen = (drawn["photograph"] * len(grounds)).long()
    images = torch.empty(len(chosen), 3, size, size)
    line = (torch.arange(size) + 0.5) / size
    for number in chosen.unique().tolist():
        rows = (chosen == number).nonzero()[:, 0]
        ground = grounds[number]
        height, width = ground.shape[-2:]
        side = (0.45 + 0.55 * drawn["side"][rows]) * min(height, width)
        top, left = drawn["top"][rows] * (height - side), drawn["left"][rows] * (width - side)
        x = torch.where(drawn["flip"][rows, None] < 0.5, line, 1 - line) * side[:, None] + left[:, None]
        y = line * side[:, None] + top[:, None]
        grid = torch.stack(
            [
                (2 * x / width - 1)[:, None, :].expand(-1, size, -1),
                (2 * y / height - 1)[:, :, None].expand(-1, -1, size),
            ],
            dim=-1,
        )
        images[rows] = F.grid_sample(
            ground.expand(len(rows), -1, -1, -1), grid, padding_mode="border", align_corners=False
        )
    gain = 0.75 + 0.4 * drawn["gain"]
    return (images * gain[:, None, None, None]).clamp(0, 1)


def _place(glyphs: Tensor, drawn: dict[str, Tensor], size: int) -> Tensor:
    """Glyphs (B, G, 60, 60) on the canvas: opacities (B, G, size, size), the digit first, fragments clear of it."""
    count = glyphs.shape[1]
    first = torch.arange(count) == 0
    # Shares of the canvas's side. A glyph's strokes fill eight tenths of its box.
    side = torch.where(first, 0.47 + 0.27 * drawn["scale"], 0.38 + 0.26 * drawn["scale"])
    margin = torch.where(first, 0.5 * side, 0.1)
    x, y = (margin + (1 - 2 * margin) * drawn[axis] for axis in ("x", "y"))
    turn = torch.where(first, 0.28, torch.pi) * (2 * drawn["turn"] - 1)
    shear, aspect = 0.3 * (drawn["shear"] - 0.5), 0.85 + 0.3 * drawn["aspect"]

    # From the canvas back to the glyph, both in [-1, 1].
    line = (2 * torch.arange(size) + 1) / size - 1
    cos, sin = turn.cos() / side, turn.sin() / side
    across = cos / aspect + shear * sin, sin / aspect - shear * cos
    dx, dy = (line[None, :] - (2 * centre.flatten() - 1)[:, None] for centre in (x, y))
    u, v = (
        along.flatten()[:, None, None] * dx[:, None, :] + beside.flatten()[:, None, None] * dy[:, :, None]
        for along, beside in (across, (-sin, cos))
    )
    grid = torch.stack([u, v], dim=-1)
    alpha = F.grid_sample(glyphs.flatten(0, 1)[:, None], grid, align_corners=False)[:, 0]

    # A fragment is what shows through a window over part of its glyph.
    cut_x, cut_y = (1.2 * drawn[cut].flatten()[:, None, None] - 0.6 for cut in ("cut_x", "cut_y"))
    through = ((0.42 - torch.maximum((u - cut_x).abs_(), (v - cut_y).abs_())) * 12).clamp_(0, 1)
    whole = first.repeat(len(x))[:, None, None]
    alpha = torch.where(whole, alpha, alpha * through)
    alpha = alpha.unflatten(0, (-1, count))
    clear = 1 - _grow(alpha[:, :1], size // 12)
    return torch.cat([alpha[:, :1], alpha[:, 1:] * clear], dim=1)


def _colours(drawn: dict[str, Tensor]) -> Tensor:
    """(B, G, 2, 3): for each glyph a light and a dark colour of its hue."""
    table = []
    hue, saturation, value = (drawn[name].flatten().tolist() for name in ("hue", "saturation", "value"))
    for h, s, v in zip(hue, saturation, value, strict=True):
        light = colorsys.hls_to_rgb(h, 0.78 + 0.17 * v, 0.5 + 0.5 * s)
        dark = colorsys.hls_to_rgb(h, 0.08 + 0.14 * v, 0.4 + 0.6 * s)
        table.append((light, dark))
    return torch.tensor(table).view(*drawn["hue"].shape, 2, 3)


def _paint(images: Tensor, alpha: Tensor, colours: Tensor) -> Tensor:
    """Glyphs on grounds (B, 3, H, W): light ones on dark ground and the other way, each in a halo of its opposite.

    The halo guarantees the contrast: where a stroke is light, the ground around it is not.
    """
    luminance = (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    below = torch.einsum("bghw,bhw->bg", alpha, luminance) / alpha.sum((2, 3)).clamp(min=1)
    dark = below > 0.5
    colour = torch.where(dark[..., None], colours[:, :, 1], colours[:, :, 0])
    masks = dark[..., None, None], ~dark[..., None, None]
    strokes = torch.stack([torch.where(mask, alpha, 0).amax(1) for mask in masks], dim=1)
    halo = 0.7 * F.avg_pool2d(_grow(strokes, alpha.shape[-1] // 56), 5, stride=1, padding=2, count_include_pad=False)

    images = _over(images, halo, (0.95 * halo[:, :1] + 0.05 * halo[:, 1:]).expand_as(images))
    return _over(images, alpha, torch.einsum("bghw,bgc->bchw", alpha, colour)).clamp(0, 1)


def _over(images: Tensor, alpha: Tensor, paint: Tensor) -> Tensor:
    """`paint`, already weighed by the layers' opacities (B, G, H, W), over images; layers that overlap share."""
    cover = alpha.sum(1, keepdim=True)
    scale = cover.clamp(min=1)
    return images * (1 - cover / scale) + paint / scale


def _grow(alpha: Tensor, radius: int) -> Tensor:
    """The largest opacity within a square of `radius` pixels around, one axis after the other."""
    wide = F.max_pool2d(alpha, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    return F.max_pool2d(wide, (2 * radius + 1, 1), stride=1, padding=(radius, 0))

"""Drawing of generated scenes: photographs as background, handwritten digits, their strokes and their colours."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SPLITS = ("train", "validation")
VALIDATION = 5
"""Every fifth sample of the digits belongs to the validation split."""

# Names of the random numbers in [0, 1): those of the background, and those of the digit and of each fragment.
GROUND = ("photograph", "side", "top", "left", "flip", "gain")
GLYPH = ("sample", "x", "y", "scale", "turn", "shear", "aspect", "hue", "saturation", "value", "cut_x", "cut_y")


def photographs() -> dict[str, Image.Image]:
    """The colour photographs included in scikit-image and scikit-learn, by name."""
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
def grounds_of(size: int) -> list[Tensor]:
    """The photographs (1, 3, h, w) in [0, 1], with a short side of twice the side of a scene."""
    grounds = []
    for picture in photographs().values():
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
        scale = 2 * size / min(pixels.shape[-2:])
        grounds.append(F.interpolate(pixels, scale_factor=scale, mode="bilinear", antialias=True).clamp(0, 1))
    return grounds


@cache
def glyphs_of(split: str) -> tuple[Tensor, Tensor]:
    """Opacities (S, 60, 60), with smoothed strokes, and classes (S,) of the handwritten digits of a split."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    chosen = (np.arange(len(digits)) % VALIDATION == 0) == (split == "validation")
    small = torch.from_numpy(pixels[chosen]).float().view(-1, 1, 8, 8) / 16
    smooth = F.interpolate(F.pad(small, (1, 1, 1, 1)), scale_factor=6, mode="bicubic", align_corners=False)
    edge = ((smooth[:, 0] - 0.4) / 0.3).clamp(0, 1)
    return edge.square() * (3 - 2 * edge), torch.from_numpy(digits[chosen]).long()


def crops(drawn: dict[str, Tensor], size: int) -> Tensor:
    """A square crop of a photograph for each scene, (B, 3, size, size)."""
    grounds = grounds_of(size)
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


def strokes(
    glyphs: Tensor, drawn: dict[str, Tensor], x: Tensor, y: Tensor, side: Tensor, turn: Tensor, whole: Tensor, size: int
) -> Tensor:
    """Place glyphs (B, G, 60, 60) on the canvas: opacities (B, G, size, size).

    The centres `x`, `y` and the `side` of the boxes are fractions of the canvas's side, `turn` is in radians, each
    (B, G). Of glyphs that are not `whole` (G,) only a square part is drawn.
    """
    shear, aspect = 0.3 * (drawn["shear"] - 0.5), 0.85 + 0.3 * drawn["aspect"]

    # The affine map from canvas coordinates to glyph coordinates, both in [-1, 1].
    line = (2 * torch.arange(size) + 1) / size - 1
    cos, sin = turn.cos() / side, turn.sin() / side
    u_factors = cos / aspect + shear * sin, sin / aspect - shear * cos
    dx, dy = (line[None, :] - (2 * centre.flatten() - 1)[:, None] for centre in (x, y))
    u, v = (
        x_factor.flatten()[:, None, None] * dx[:, None, :] + y_factor.flatten()[:, None, None] * dy[:, :, None]
        for x_factor, y_factor in (u_factors, (-sin, cos))
    )
    grid = torch.stack([u, v], dim=-1)
    alpha = F.grid_sample(glyphs.flatten(0, 1)[:, None], grid, align_corners=False)[:, 0]
    if not whole.all():
        cut_x, cut_y = (1.2 * drawn[cut].flatten()[:, None, None] - 0.6 for cut in ("cut_x", "cut_y"))
        window = ((0.42 - torch.maximum((u - cut_x).abs_(), (v - cut_y).abs_())) * 12).clamp_(0, 1)
        alpha = torch.where(whole.repeat(len(x))[:, None, None], alpha, alpha * window)
    return alpha.unflatten(0, (-1, len(whole)))


def colours_of(drawn: dict[str, Tensor]) -> Tensor:
    """(B, G, 2, 3): for each glyph a light and a dark RGB colour of its hue."""
    table = []
    hue, saturation, value = (drawn[name].flatten().tolist() for name in ("hue", "saturation", "value"))
    for h, s, v in zip(hue, saturation, value, strict=True):
        light = colorsys.hls_to_rgb(h, 0.78 + 0.17 * v, 0.5 + 0.5 * s)
        dark = colorsys.hls_to_rgb(h, 0.08 + 0.14 * v, 0.4 + 0.6 * s)
        table.append((light, dark))
    return torch.tensor(table).view(*drawn["hue"].shape, 2, 3)


def is_bright(images: Tensor, alpha: Tensor) -> Tensor:
    """(B, G) bool: whether the background under each glyph is bright."""
    luminance = (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    mean_luminance = torch.einsum("bghw,bhw->bg", alpha, luminance) / alpha.sum((2, 3)).clamp(min=1)
    return mean_luminance > 0.5


def paint(images: Tensor, alpha: Tensor, colours: Tensor, dark: Tensor, halo: Tensor | None = None) -> Tensor:
    """Paint glyphs on images (B, 3, H, W), in their dark colour where `dark` (B, G), else in their light one.

    Each glyph has a halo of the opposite brightness, which guarantees its contrast to the background. `halo`
    (B, 2, H, W) has the opacities of the halos of dark and of light glyphs; by default they are computed here.
    """
    colour = torch.where(dark[..., None], colours[:, :, 1], colours[:, :, 0])
    if halo is None:
        masks = dark[..., None, None], ~dark[..., None, None]
        halo = halo_of(torch.stack([torch.where(mask, alpha, 0).amax(1) for mask in masks], dim=1))

    images = _over(images, halo, (0.95 * halo[:, :1] + 0.05 * halo[:, 1:]).expand_as(images))
    return _over(images, alpha, torch.einsum("bghw,bgc->bchw", alpha, colour)).clamp(0, 1)


def halo_of(alpha: Tensor) -> Tensor:
    """Opacities (B, G, H, W) of strokes -> opacities (B, G, H, W) of the halos around them."""
    halo = grown(alpha, alpha.shape[-1] // 56)
    return 0.7 * F.avg_pool2d(halo, 5, stride=1, padding=2, count_include_pad=False)


def _over(images: Tensor, alpha: Tensor, paint: Tensor) -> Tensor:
    """Composite `paint`, already multiplied by the opacities (B, G, H, W) of the layers, over images (B, 3, H, W).

    Layers that overlap share a pixel in proportion to their opacities.
    """
    cover = alpha.sum(1, keepdim=True)
    scale = cover.clamp(min=1)
    return images * (1 - cover / scale) + paint / scale


def grown(alpha: Tensor, radius: int) -> Tensor:
    """Dilate opacities: the maximum over a square of `radius` pixels on each side, one axis after the other."""
    row_max = F.max_pool2d(alpha, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    return F.max_pool2d(row_max, (2 * radius + 1, 1), stride=1, padding=(radius, 0))

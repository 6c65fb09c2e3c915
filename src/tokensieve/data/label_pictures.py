"""Label pictures, with a class index for each pixel: strict reading, and writing as PNG with a palette."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .._files import draft
from ..errors import InputError
from .images import UnusableError, reason_of
from .segmentation_layouts import VOID

INVALID = -1
SHOWN = 3
"""Largest number of invalid values in an error message."""


def lookup(values: Mapping[int, int]) -> Tensor:
    """(256,) int64: the class of each pixel value, `VOID` for ignored values, -1 for invalid values."""
    table = torch.full((256,), INVALID)
    for value, index in values.items():
        table[value] = index
    return table


def label_picture(source: Any, table: Tensor, classes: int) -> Tensor:
    """Read the labels of a picture, (H, W) uint8.

    Args:
        source: a path or an opened file.
        table: (256,) of `lookup`.
        classes: number of classes, for the error.

    Raises:
        UnusableError: the file is not a label picture, or has a value that is invalid in `table`.
    """
    try:
        picture = Image.open(source)
    except FileNotFoundError:
        raise UnusableError("does not exist") from None
    except Exception as error:  # Pillow's readers can raise any exception
        raise UnusableError(f"is not a picture that Pillow can read: {reason_of(error)}") from error
    with picture:
        if picture.format in ("JPEG", "MPO"):
            raise UnusableError("is a JPEG, which does not keep labels exactly: save labels as 8-bit PNG")
        if picture.mode.startswith("I") or picture.mode == "F":
            raise UnusableError("has 16 or more bits per pixel: save labels with 8 bits, a class index for each pixel")
        if picture.mode not in ("L", "P", "1"):
            raise UnusableError(
                f"is a colour picture ({picture.mode}): labels must be 8-bit grey or palette pictures, with a class "
                "index for each pixel"
            )
        try:
            values = torch.from_numpy(np.array(picture, dtype=np.uint8))
        except Exception as error:
            raise UnusableError(f"cannot be decoded: {reason_of(error)}") from error
    labels = table[values.long()]
    if bool((labels == INVALID).any()):
        invalid = values[labels == INVALID].unique().tolist()
        more = f" and {len(invalid) - SHOWN} more" if len(invalid) > SHOWN else ""
        raise UnusableError(
            f"holds the label{'s' if len(invalid) > 1 else ''} {', '.join(map(str, invalid[:SHOWN]))}{more}, beyond "
            f"the {classes} classes"
        )
    return labels.to(torch.uint8)


def palette(count: int = 256) -> list[tuple[int, int, int]]:
    """The palette of Pascal VOC: `count` RGB colours, which differ most for small class indices.

    The bits of the index are distributed over red, green and blue. 255 (ignored pixels) is a light colour.
    """
    colours = []
    for index in range(count):
        red = green = blue = 0
        for bit in range(8):
            bits = index >> (3 * bit)
            red |= (bits & 1) << (7 - bit)
            green |= ((bits >> 1) & 1) << (7 - bit)
            blue |= ((bits >> 2) & 1) << (7 - bit)
        colours.append((red, green, blue))
    return colours


def save_labels(
    labels: Tensor, path: str | os.PathLike[str], colours: Sequence[tuple[int, int, int]] | None = None
) -> None:
    """Write a class index for each pixel as a PNG with a palette; reading it gives the same indices.

    Args:
        labels: (H, W) integers from 0 to 255.
        path: the file, ending in .png.
        colours: RGB colours of the classes in order; by default `palette()`.

    Raises:
        InputError: labels of another shape or above 255, another file extension, a path that cannot be written.
    """
    if labels.ndim != 2 or labels.is_floating_point() or (labels.numel() and int(labels.min()) < 0):
        raise InputError(f"Labels must be integers (H, W) from 0 to {VOID}, not of shape {tuple(labels.shape)}.")
    if labels.numel() and int(labels.max()) > VOID:
        raise InputError(f"A label picture holds indices up to {VOID}, not {int(labels.max())}.")
    if not os.fspath(path).lower().endswith(".png"):
        raise InputError(f"{path} must end in .png: other formats do not keep labels exactly.")
    picture = Image.fromarray(labels.to(torch.uint8).cpu().numpy())
    picture.putpalette([value for colour in (palette() if colours is None else colours) for value in colour])
    with draft(path) as file:
        picture.save(file, "PNG")

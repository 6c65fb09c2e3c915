"""Label pictures: a class index for each pixel, read strictly and written with a palette."""

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

WRONG = -1
SHOWN = 3
"""Values in a sentence about wrong ones."""


def lookup(values: Mapping[int, int]) -> Tensor:
    """(256,) int64: the class of each value of a label picture, `VOID` of those that count nowhere, -1 of others."""
    table = torch.full((256,), WRONG)
    for value, index in values.items():
        table[value] = index
    return table


def label_picture(source: Any, table: Tensor, classes: int) -> Tensor:
    """The labels of a picture, (H, W) uint8.

    Raises:
        UnusableError: no label picture, or a value that `table` does not know.
    """
    try:
        picture = Image.open(source)
    except FileNotFoundError:
        raise UnusableError("does not exist") from None
    except Exception as error:  # Pillow's readers raise what they like
        raise UnusableError(f"is not a picture that Pillow can read: {reason_of(error)}") from error
    with picture:
        if picture.format in ("JPEG", "MPO"):
            raise UnusableError("is a JPEG, which does not keep labels exactly: save labels as 8-bit PNG")
        if picture.mode.startswith("I") or picture.mode == "F":
            raise UnusableError("holds 16 bits a pixel or more: save labels with 8 bits, a class index for each pixel")
        if picture.mode not in ("L", "P", "1"):
            raise UnusableError(
                f"is a picture of colours ({picture.mode}): labels are 8-bit grey or palette pictures, a class index "
                "for each pixel"
            )
        try:
            values = torch.from_numpy(np.array(picture, dtype=np.uint8))
        except Exception as error:
            raise UnusableError(f"cannot be decoded: {reason_of(error)}") from error
    labels = table[values.long()]
    if bool((labels == WRONG).any()):
        wrong = values[labels == WRONG].unique().tolist()
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise UnusableError(
            f"holds the label{'s' if len(wrong) > 1 else ''} {', '.join(map(str, wrong[:SHOWN]))}{more}, beyond the "
            f"{classes} classes"
        )
    return labels.to(torch.uint8)


def palette(count: int = 256) -> list[tuple[int, int, int]]:
    """A colour for each class index, far apart for small ones: the bits of the index, spread over red, green and blue,
    as Pascal VOC colours its classes; 255 is a light one."""
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
    """Write a class index for each pixel as a PNG with a palette, which reads back as the same indices.

    Args:
        labels: (H, W) integers from 0 to 255.
        path: of the file, ending in .png.
        colours: of the classes in order; by default `palette()`.

    Raises:
        InputError: labels of another shape or beyond 255, another ending, a place that cannot be written.
    """
    if labels.ndim != 2 or labels.is_floating_point() or (labels.numel() and int(labels.min()) < 0):
        raise InputError(f"Labels are whole numbers (H, W) from 0 to {VOID}, not of shape {tuple(labels.shape)}.")
    if labels.numel() and int(labels.max()) > VOID:
        raise InputError(f"A label picture holds indices up to {VOID}, not {int(labels.max())}.")
    if not os.fspath(path).lower().endswith(".png"):
        raise InputError(f"{path} must end in .png: other formats do not keep labels exactly.")
    picture = Image.fromarray(labels.to(torch.uint8).cpu().numpy())
    picture.putpalette([value for colour in (palette() if colours is None else colours) for value in colour])
    with draft(path) as file:
        picture.save(file, "PNG")

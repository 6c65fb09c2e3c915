"""Panels for segmenters: class maps, and the early exits of patches (DToP)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from ..data import palette
from ..stream import Trace
from .page import Key, Panel
from .pictures import coloured
from .tables import percent

Colour = tuple[int, int, int]
LISTED = 8
"""Number of classes that a legend names, those with most pixels first."""
BACKGROUND = "background"
"""The name of a class that is shown in grey."""
_GREY: Colour = (120, 120, 120)
_STAGES = "plasma"  # from dark to light in the order of the exits; readable without red and green, and in grey
_FIRST, _LAST = 0.05, 0.95
_FEW = (0, 2, 4, 6, 8, 10, 12, 16, 18, 1, 3, 5, 7, 9, 11, 13, 17, 19)  # of tab20: strong colours first, no greys


def class_colours(count: int, names: Sequence[str] | None = None) -> list[Colour]:
    """A colour for each class, easy to distinguish if there are few; grey for a class called background."""
    few = [_rgb(colormaps["tab20"](index)) for index in _FEW]
    bare = [] if names is None else [index for index, name in enumerate(names) if name == BACKGROUND]
    colours = few if count - len(bare) <= len(few) else palette(count)
    for index in bare:
        colours.insert(index, _GREY)
    return colours[:count]


def class_panel(
    picture: Image.Image,
    classes: Tensor,
    count: int,
    names: Sequence[str] | None,
    caption: str,
    note: str = "",
) -> Panel:
    """Draw the class of each pixel (H, W), of `count` classes, over a picture, with a legend of the largest classes."""
    colours = class_colours(count, names)
    shares = torch.bincount(classes.flatten(), minlength=count) / classes.numel()
    present = [index for index in shares.argsort(descending=True).tolist() if shares[index] > 0]
    legend = [
        Key(hexadecimal(colours[index]), f"{class_name(index, names)} {percent(float(shares[index]))}")
        for index in present[:LISTED]
    ]
    if len(present) > LISTED:
        legend[-1:] = [Key(hexadecimal(_GREY), f"and {len(present) - LISTED + 1} classes more")]
    alt = ", ".join(key.meaning for key in legend)
    return Panel(coloured(picture, classes, colours), caption, note, f"{caption}: {alt}", legend=tuple(legend))


def class_name(index: int, names: Sequence[str] | None) -> str:
    """The name of a class, or its number."""
    return f"class {index}" if names is None else names[index]


def exits_panel(picture: Image.Image, trace: Trace, index: int, caption: str = "Exits") -> Panel:
    """Draw each patch of image `index` of a trace in the colour of the block after which it exits.

    Patches that were dropped before the first block have no colour.
    """
    blocks, stages = _stages_of(trace, index)
    colours = stage_colours(len(blocks))
    legend = []
    for stage, (block, colour) in enumerate(zip(blocks, colours, strict=True)):
        alt = f"exits after block {block}" if block < blocks[-1] else f"stays to the last, block {block}"
        legend.append(Key(hexadecimal(colour), f"{alt}: {_share(stages == stage)}"))
    dropped = stages == len(blocks)
    if bool(dropped.any()):
        legend.append(Key("#ffffff", f"dropped before block 0: {_share(dropped)}"))
    alt = ", ".join(key.meaning for key in legend)
    image = coloured(picture, stages, [*colours, None])
    return Panel(image, caption, f"{stages.numel()} patches", f"{caption}: {alt}", legend=tuple(legend))


def exit_counts(trace: Trace, index: int) -> dict[str, int]:
    """Block index as text -> number of patches of image `index` that exit after it; the rest counts for the last."""
    blocks, stages = _stages_of(trace, index)
    return {str(block): int((stages == stage).sum()) for stage, block in enumerate(blocks)}


def _stages_of(trace: Trace, index: int) -> tuple[list[int], Tensor]:
    """The blocks after which patches can exit, the last included; and for each patch (h, w) the index in that list of
    its block, or the length of the list if it was dropped before the first block."""
    blocks = [block for block, _ in trace.exits] + [len(trace.reads) - 1]
    exit_blocks = trace.left_behind[index].cpu()
    dropped = (trace.exits[0][1][index].cpu() < 0).unflatten(0, exit_blocks.shape)
    return blocks, torch.searchsorted(torch.tensor(blocks), exit_blocks).masked_fill(dropped, len(blocks))


def _share(cells: Tensor) -> str:
    return percent(float(cells.float().mean()))


def stage_colours(count: int) -> list[Colour]:
    """A colour for each of `count` stages in order."""
    positions = torch.linspace(_FIRST, _LAST, count).tolist()
    return [_rgb(colormaps[_STAGES](position)) for position in positions]


def hexadecimal(colour: Colour) -> str:
    """(255, 0, 16) -> #ff0010."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _rgb(colour: tuple[float, ...]) -> Colour:
    red, green, blue = (round(255 * value) for value in colour[:3])
    return red, green, blue

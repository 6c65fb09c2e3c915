"""Bilinear resizing of dense predictions, with a count of resizes as in the papers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._recording import recording


class Resize(nn.Module):
    """Resize maps bilinearly (align_corners=False). Maps that already have the size are returned unchanged.

    Args:
        published: number of resizes to this size in the published code. All but the first change nothing, so they are
            not run; `measure.macs(fvcore_compat=True)` counts them, as the papers do.
    """

    def __init__(self, published: int = 1) -> None:
        super().__init__()
        self.published = published

    def forward(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """(B, K, h, w) -> (B, K, *size)."""
        if tuple(maps.shape[2:]) == tuple(size):
            return maps
        if maps.device.type == "cpu" and not recording():
            # channels_last halves the time, also of a later argmax over classes; the output has these strides too.
            maps = maps.contiguous(memory_format=torch.channels_last)
        return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)

    def not_run(self, maps: Tensor, resized: Tensor) -> int:
        """Number of published resizes that a call does not run."""
        return self.published - (tuple(maps.shape[2:]) != tuple(resized.shape[2:]))

    def extra_repr(self) -> str:
        return f"published={self.published}"

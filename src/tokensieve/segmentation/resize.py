"""Bilinear resizing of dense predictions, counted as the papers count it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._recording import recording


class Resize(nn.Module):
    """Bilinear, between pixel centres (align_corners=False). A map that has the size already is returned as it is.

    Args:
        published: how many resizes to this size the published code does in the place of this one. All but the first
            change nothing, so they are not run; `measure.macs(fvcore_compat=True)` counts them, as the papers do.
    """

    def __init__(self, published: int = 1) -> None:
        super().__init__()
        self.published = published

    def forward(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """(B, K, h, w) -> (B, K, *size)."""
        if tuple(maps.shape[2:]) == tuple(size):
            return maps
        if maps.device.type == "cpu" and not recording():
            # Half the time, of the argmax over classes that follows too. What comes out has these strides.
            maps = maps.contiguous(memory_format=torch.channels_last)
        return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)

    def not_run(self, maps: Tensor, resized: Tensor) -> int:
        """How many of the published resizes a call leaves out."""
        return self.published - (tuple(maps.shape[2:]) != tuple(resized.shape[2:]))

    def extra_repr(self) -> str:
        return f"published={self.published}"

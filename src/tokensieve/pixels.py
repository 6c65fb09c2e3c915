"""Pixels: the positions of a stage's feature map at which its point-wise operators run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

Background = Literal["zero", "keep"]
"""Whether pixels that are not computed are set to zero, or keep their values."""
SLICE = 2**19
"""Number of values that a point-wise operator reads at a time on CPUs."""


@dataclass(frozen=True)
class Pixels:
    """The pixels selected in a stage, used by its blocks until others are selected. Never changed in place."""

    index: Tensor
    """(B, K) int64, positions in row-major order of the map: where the point-wise operators run."""
    count: int
    """Number of positions of the whole map, H x W, or T x H x W for video."""
    background: Background | None = None
    """Treatment of the other pixels; None is the host's default."""
    rest: Tensor | None = None
    """(B, R = H x W - K) int64: all other positions, if a cheaper operator runs on them."""
    cheaper: Mapping[str, nn.Module] | nn.ModuleDict | None = None
    """The cheaper operator for the other pixels, by the block's index: (B, R, C) -> (B, R, C)."""

    flat: Tensor = field(init=False)
    """(B K,) int64: the selected positions in the concatenated maps of all images."""
    flat_rest: Tensor = field(init=False)
    """(B R,) int64: the other positions in the concatenated maps."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "flat", _flat(self.index, self.count))
        object.__setattr__(self, "flat_rest", self.flat[:0] if self.rest is None else _flat(self.rest, self.count))


def take(map: Tensor, flat: Tensor, count: int) -> Tensor:
    """Pixels at positions `flat` of maps (B, H, W, C) or (B, T, H, W, C), `count` = K per map -> (B, K, C)."""
    batch, channels = map.shape[0], map.shape[-1]
    return map.reshape(-1, channels).index_select(0, flat).view(batch, count, channels)


def put(map: Tensor, flat: Tensor, change: Tensor, background: Background, *, in_place: bool = False) -> Tensor:
    """Maps (B, H, W, C) or (B, T, H, W, C) with `change` (n, C) added at the n positions `flat`; `background` decides
    whether all other pixels keep their values or are set to zero.

    `in_place` allows changing the map itself if nothing is set to zero. Uses index_add in both cases: index_copy is
    fifty times slower on CPUs.
    """
    wide = torch.promote_types(map.dtype, change.dtype)  # under autocast a scale in fp32 makes the change fp32
    rows, change = map.reshape(-1, map.shape[-1]).to(wide), change.to(wide)
    if background == "keep":
        return (rows.index_add_ if in_place else rows.index_add)(0, flat, change).view(map.shape)
    changed = rows.index_select(0, flat) + change
    return torch.zeros_like(rows).index_add_(0, flat, changed).view(map.shape)


def by_slices(operator: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """`operator` on (B, K, C), a slice of the rows at a time, so that its wider hidden activations fit the cache.

    For operators that read one pixel at a time.
    """
    batch, count, channels = pixels.shape
    slices = -(-pixels.numel() // SLICE)
    if slices <= 1:
        return operator(pixels)
    rows = pixels.view(1, -1, channels)
    return torch.cat([operator(piece) for piece in rows.chunk(slices, 1)], 1).view(batch, count, -1)


def _flat(index: Tensor, count: int) -> Tensor:
    batch = torch.arange(index.shape[0], device=index.device)[:, None]
    return (index + batch * count).flatten()

"""The patch significance map: a feature map reduced to one number per patch.

PaPr (ECCV 2024), section 3: the classifier of a small ConvNet is replaced by uniform weights, so that a patch's
significance is the channel mean of the last feature map, interpolated to the token grid.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError, RecipeError


def patch_significance(features: Tensor, grid: Sequence[int], *, align_corners: bool = True) -> Tensor:
    """Significance of every patch: channel mean of `features`, interpolated to `grid` (PaPr, ECCV 2024, section 3).

    Args:
        features: (B, K, h, w), or for video (B, K, t, h, w).
        grid: (H, W) or (T, H, W), patches along each axis. Maps of images are interpolated bicubically, those of video
            trilinearly; a map that already has the grid's size is not interpolated.
        align_corners: of the interpolation. True is the published code's choice; the paper's pseudo-code implies False.

    Returns:
        (B, H*W) or (B, T*H*W), row-major, in float32, or float64 for float64 features.

    Raises:
        InputError: features of another rank.
        RecipeError: a grid that does not fit them.
    """
    if features.ndim not in (4, 5):
        raise InputError(
            f"Features have shape {tuple(features.shape)}; expected (B, K, h, w), or (B, K, t, h, w) for video."
        )
    # Mean and interpolation are linear and commute: averaging first is K times cheaper.
    return resize_map(channel_mean(features), grid, align_corners).flatten(1)


def channel_mean(features: Tensor) -> Tensor:
    """Mean over channels: (B, K, ...) -> (B, ...), in float32 or higher precision."""
    return features.mean(1, dtype=torch.promote_types(features.dtype, torch.float32))


def resize_map(map: Tensor, grid: Sequence[int], align_corners: bool = True) -> Tensor:
    """Interpolate maps (B, h, w) bicubically, or (B, t, h, w) trilinearly, to (B, *grid).

    Maps that already have this size are not interpolated.

    Raises:
        InputError: a map of another rank.
        RecipeError: a grid that does not fit the map.
    """
    if map.ndim not in (3, 4):
        raise InputError(f"The map has shape {tuple(map.shape)}; expected (B, h, w), or (B, t, h, w) for video.")
    grid = tuple(grid)
    if len(grid) != map.ndim - 1:
        raise RecipeError(
            f"A significance map of {map.ndim - 1} dimensions does not fit a grid of {len(grid)} ({grid}): "
            "images need (H, W), video (T, H, W)."
        )
    if min(grid) < 1:
        raise RecipeError(f"The grid {grid} has no patches.")
    map = map.to(torch.promote_types(map.dtype, torch.float32))
    if tuple(map.shape[1:]) == grid:
        return map
    mode = "bicubic" if len(grid) == 2 else "trilinear"
    return F.interpolate(map[:, None], size=grid, mode=mode, align_corners=align_corners)[:, 0]

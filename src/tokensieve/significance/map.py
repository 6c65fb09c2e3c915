"""The patch significance map: a feature map reduced to one number a patch.

PaPr (ECCV 2024), section 3: the classifier of a small ConvNet is replaced by uniform weights, so a patch matters as
much as the mean over channels of the last feature map at its place, interpolated to the token grid.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError, RecipeError


def patch_significance(features: Tensor, grid: Sequence[int], *, align_corners: bool = True) -> Tensor:
    """Significance of every patch: channel mean of `features`, interpolated to `grid` (PaPr, ECCV 2024, section 3).

    `features` (B, K, h, w) with `grid` (H, W) is interpolated bicubically and gives (B, H*W); (B, K, t, h, w) with
    (T, H, W) is interpolated trilinearly and gives (B, T*H*W). Both are row-major. The result is float32, or float64
    for float64 features. A map that has the grid's size already is not interpolated. `align_corners=True` is the
    published code's choice, the paper's pseudo-code reads as False.

    Raises `InputError` for features of another rank, `RecipeError` for a grid that does not fit them.
    """
    if features.ndim not in (4, 5):
        raise InputError(
            f"Features have shape {tuple(features.shape)}; expected (B, K, h, w), or (B, K, t, h, w) for video."
        )
    # Mean and interpolation are linear and commute: averaging first is K times cheaper.
    return resize_map(channel_mean(features), grid, align_corners).flatten(1)


def channel_mean(features: Tensor) -> Tensor:
    """(B, K, ...) -> (B, ...), in float32 at least."""
    return features.mean(1, dtype=torch.promote_types(features.dtype, torch.float32))


def resize_map(map: Tensor, grid: Sequence[int], align_corners: bool = True) -> Tensor:
    """Interpolate maps (B, h, w) bicubically to (B, *grid), or (B, t, h, w) trilinearly; the same size stays as it is.

    Raises `InputError` for a map of another rank, `RecipeError` for a grid that does not fit it.
    """
    if map.ndim not in (3, 4):
        raise InputError(f"The map has shape {tuple(map.shape)}; expected (B, h, w), or (B, t, h, w) for video.")
    grid = tuple(grid)
    if len(grid) != map.ndim - 1:
        raise RecipeError(
            f"A significance map of {map.ndim - 1} dimensions cannot be laid on a grid of {len(grid)} ({grid}): "
            "pictures need (H, W), video (T, H, W)."
        )
    if min(grid) < 1:
        raise RecipeError(f"The grid {grid} has no patches.")
    map = map.to(torch.promote_types(map.dtype, torch.float32))
    if tuple(map.shape[1:]) == grid:
        return map
    mode = "bicubic" if len(grid) == 2 else "trilinear"
    return F.interpolate(map[:, None], size=grid, mode=mode, align_corners=align_corners)[:, 0]

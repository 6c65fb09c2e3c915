"""The motion map: how much each patch of a clip changes over time, computed without a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._recording import as_int
from ..errors import InputError


def motion_map(clips: Tensor, grid: Sequence[int]) -> Tensor:
    """Mean absolute difference of each patch to the previous patch at its position: (B, C, T, H, W) -> (B, *grid) fp32.

    A patch is a tubelet of T / t frames of H / h x W / w pixels; each value is compared with that T / t frames earlier,
    in the units of the clips. Run-length tokenization (Choudhury et al., NeurIPS 2024, arXiv 2411.05222, section 3)
    compares this difference with a threshold. The first patch of a position, which has no previous one, gets the value
    of the second; on a grid with t = 1 all values are zero.

    Raises:
        InputError: the input is not a clip, or its number of frames is not a multiple of t.
    """
    t, h, w = grid
    frames = as_int(clips.shape[2]) if clips.ndim == 5 else 0
    if frames == 0 or frames % t:
        raise InputError(
            f"Motion is computed between frames: expected clips (B, C, T, H, W) with T a multiple of {t}, not "
            f"{tuple(clips.shape)}."
        )
    tubelets = clips.to(torch.promote_types(clips.dtype, torch.float32)).unflatten(2, (t, frames // t))
    if t == 1:
        return tubelets.new_zeros(clips.shape[0], 1, h, w)
    change = (tubelets[:, :, 1:] - tubelets[:, :, :-1]).abs().mean((1, 3))
    change = F.adaptive_avg_pool2d(change, (h, w))
    return torch.cat([change[:, :1], change], dim=1)

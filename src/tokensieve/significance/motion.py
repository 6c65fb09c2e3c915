"""Motion: how much each patch of a clip changes from one moment to the next. No network is asked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._recording import as_int
from ..errors import InputError


def motion_map(clips: Tensor, grid: Sequence[int]) -> Tensor:
    """Mean absolute difference of each patch from the one before it at its place: (B, C, T, H, W) -> (B, *grid) fp32.

    A patch is a tubelet, T / t frames of H / h x W / w pixels, and each of its values is compared with the one as many
    frames earlier, in the units in which the clips come: what run-length tokenization (Choudhury et al., NeurIPS 2024,
    arXiv 2411.05222, section 3) compares with its threshold. The first patch of a place, which has none before it,
    takes the value of the second; a grid of one moment is all zeros.

    Raises:
        InputError: no clip, or a number of frames that is no multiple of t.
    """
    t, h, w = grid
    frames = as_int(clips.shape[2]) if clips.ndim == 5 else 0
    if frames == 0 or frames % t:
        raise InputError(
            f"Motion is between frames: expected clips (B, C, T, H, W) with T a multiple of {t}, not "
            f"{tuple(clips.shape)}."
        )
    tubelets = clips.to(torch.promote_types(clips.dtype, torch.float32)).unflatten(2, (t, frames // t))
    if t == 1:
        return tubelets.new_zeros(clips.shape[0], 1, h, w)
    change = (tubelets[:, :, 1:] - tubelets[:, :, :-1]).abs().mean((1, 3))
    change = F.adaptive_avg_pool2d(change, (h, w))
    return torch.cat([change[:, :1], change], dim=1)

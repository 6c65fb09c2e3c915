"""Maps that ask no network: the controls that every ranking must beat."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BITS = 24  # that float32 holds exactly


def random_map(images: Tensor, grid: Sequence[int], seed: int = 0) -> Tensor:
    """Uniform pseudo-random numbers in [0, 1): images (B, ...) -> (B, *grid) float32.

    An image's map depends on the image's bits and on `seed` alone: not on the batch around it, its place in it or the
    device. Plain integer arithmetic, so that it can be compiled.
    """
    bits = _bits(images)
    # Odd weights are invertible modulo 2^64 and so is the mixing: images that differ in one pixel never share a key.
    columns = _mix(_steps(bits.shape[-1], images)) | 1
    rows = (bits * columns).sum(-1).flatten(1)
    key = _mix(_mix(rows + _steps(rows.shape[1], images)).sum(1) + _signed(_mix_number(seed)))
    values = _shift(_mix(key[:, None] + _steps(prod(grid), images)), 64 - _BITS)
    return (values.float() * 2.0**-_BITS).unflatten(1, tuple(grid))


def centre_map(images: Tensor, grid: Sequence[int]) -> Tensor:
    """Minus the squared distance in patches from the grid's centre: images (B, ...) -> (B, *grid) float32."""
    squares = torch.zeros((), device=images.device)
    for axis, size in enumerate(grid):
        offset = torch.arange(size, device=images.device, dtype=torch.float32) - (size - 1) / 2
        squares = squares + offset.square().view(-1, *[1] * (len(grid) - axis - 1))
    return (-squares).expand(len(images), *grid)


def _bits(images: Tensor) -> Tensor:
    """The images' bits as int64, one number a pixel and channel."""
    if images.is_floating_point():
        views = {2: torch.int16, 4: torch.int32, 8: torch.int64}
        images = images.view(views[images.element_size()])
    return images.long()


def _steps(count: int, like: Tensor) -> Tensor:
    """SplitMix64's sequence of states, (count,) int64."""
    return torch.arange(1, count + 1, device=like.device) * _signed(_GOLDEN)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al., OOPSLA 2014): every bit of the input reaches every bit of the output."""
    z = (z ^ _shift(z, 30)) * _signed(_MIX_1)
    z = (z ^ _shift(z, 27)) * _signed(_MIX_2)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, count: int) -> Tensor:
    """Shift right without the sign."""
    return (z >> count) & ((1 << (64 - count)) - 1)


def _mix_number(seed: int) -> int:
    """The same mixing of a Python number of any size and sign, so that neighbouring seeds give unrelated maps."""
    mask = 2**64 - 1
    z = (seed + 1) * _GOLDEN & mask
    z = (z ^ z >> 30) * _MIX_1 & mask
    z = (z ^ z >> 27) * _MIX_2 & mask
    return z ^ z >> 31


def _signed(number: int) -> int:
    """A 64-bit pattern as the int64 that has it."""
    return number - 2**64 if number >= 2**63 else number

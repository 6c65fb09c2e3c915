"""Maps made without a network: the controls that every ranking must beat."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", int, Tensor)

# Numbers are hashed in 31 bits held in int64, so that no product overflows: compiled code may do anything on overflow.
_BITS, _MASK = 31, 2**31 - 1
_GOLDEN = 0x4F1BBCDD  # 2^31 / golden ratio, made odd: its multiples spread evenly over 31 bits
_MANTISSA = 24  # bits that float32 holds exactly
_COLUMN_BITS = 18  # 32 bits of a pixel x 18 x rows of 2^13 pixels stay below 2^63


def random_map(images: Tensor, grid: Sequence[int], seed: int = 0) -> Tensor:
    """Uniform pseudo-random numbers in [0, 1): images (B, ..., W) -> (B, *grid) float32.

    An image's map depends on the image's bits and on `seed` alone: not on the batch around it, its place in it or the
    device. Plain integer arithmetic, so that it can be compiled.
    """
    bits = _bits(images)
    columns = _mix(_steps(bits.shape[-1], images)) >> (_BITS - _COLUMN_BITS) | 1
    rows = (bits * columns).sum(-1).flatten(1)
    rows = _mix(_mix((rows + _steps(rows.shape[1], images)) & _MASK) ^ rows >> _BITS & _MASK)
    first, second = (
        _mix(_fold(lane.sum(1, keepdim=True)) ^ salt)
        for lane, salt in zip((rows, _mix(rows ^ _GOLDEN)), _salts(seed), strict=True)
    )
    values = _mix(_mix(first + _steps(prod(grid), images) & _MASK) ^ second) >> (_BITS - _MANTISSA)
    return (values.float() * 2.0**-_MANTISSA).unflatten(1, tuple(grid))


def centre_map(images: Tensor, grid: Sequence[int]) -> Tensor:
    """Minus the squared distance in patches from the picture's centre: images (B, ...) -> (B, *grid) float32.

    On a grid (t, h, w) the same at every moment, so that what lies highest is a tube through time.
    """
    squares = torch.zeros((), device=images.device)
    for axis, size in enumerate(grid):
        if axis < len(grid) - 2:
            continue
        offset = torch.arange(size, device=images.device, dtype=torch.float32) - (size - 1) / 2
        squares = squares + offset.square().view(-1, *[1] * (len(grid) - axis - 1))
    return (-squares).expand(images.shape[0], *grid)


def _bits(images: Tensor) -> Tensor:
    """The images' bits as int64 numbers of 32 bits at most."""
    if images.is_floating_point():
        if images.element_size() == 8:
            images = images.contiguous()
        images = images.view(torch.int16 if images.element_size() == 2 else torch.int32)
    return images.long()


def _steps(count: int, like: Tensor) -> Tensor:
    """(count,) int64 in 31 bits, all different."""
    return torch.arange(1, count + 1, device=like.device) * _GOLDEN & _MASK


def _fold(number: Tensor) -> Tensor:
    return (number ^ number >> _BITS) & _MASK


def _mix(z: Number) -> Number:
    """A bijection of 31-bit numbers in which every bit of the input reaches every bit of the output (xor-multiply)."""
    z = (z ^ z >> 16) * 0x7FEB352D & _MASK
    z = (z ^ z >> 15) * 0x846CA68B & _MASK
    return z ^ z >> 16


def _salts(seed: int) -> tuple[int, int]:
    """Two 31-bit numbers for a seed of either sign (62 bits count); neighbouring seeds give unrelated ones."""
    first = _mix(_mix(seed & _MASK) ^ seed >> _BITS & _MASK)
    return first, _mix(first ^ _GOLDEN)

"""Maps made without a network, random and centre: baselines that every significance map should beat."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", int, Tensor)

# Hashing uses 31-bit numbers in int64, so that no product overflows: overflow is undefined in compiled code.
_BITS, _MASK = 31, 2**31 - 1
_GOLDEN = 0x4F1BBCDD  # 2^31 / golden ratio, made odd: its multiples spread evenly over 31 bits
_MANTISSA = 24  # bits that float32 holds exactly
_COLUMN_BITS = 18  # 32 bits of a pixel x 18 x rows of 2^13 pixels stay below 2^63


def random_map(images: Tensor, grid: Sequence[int], seed: int = 0) -> Tensor:
    """Uniform pseudo-random numbers in [0, 1): images (B, ..., W) -> (B, *grid) float32.

    The map of an image depends only on the image's bits and `seed`, not on its batch, its position in it or the device.
    It is computed by integer arithmetic, so that it can be compiled.
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
    """Negative squared distance from the image's centre, in patches: images (B, ...) -> (B, *grid) float32.

    On a grid (t, h, w) it is the same at every t.
    """
    squares = torch.zeros((), device=images.device)
    for axis, size in enumerate(grid):
        if axis < len(grid) - 2:
            continue
        offset = torch.arange(size, device=images.device, dtype=torch.float32) - (size - 1) / 2
        squares = squares + offset.square().view(-1, *[1] * (len(grid) - axis - 1))
    return (-squares).expand(images.shape[0], *grid)


def _bits(images: Tensor) -> Tensor:
    """The bits of the images as int64, at most 32 bits each; float64 images have two numbers for each value."""
    if images.is_floating_point():
        if images.element_size() == 8:
            images = images.contiguous()
        images = images.view(torch.int16 if images.element_size() == 2 else torch.int32)
    return images.long()


def _steps(count: int, images: Tensor) -> Tensor:
    """(count,) int64, distinct 31-bit numbers, on the device of the images."""
    return torch.arange(1, count + 1, device=images.device) * _GOLDEN & _MASK


def _fold(number: Tensor) -> Tensor:
    """Numbers of up to 62 bits -> 31 bits."""
    return (number ^ number >> _BITS) & _MASK


def _mix(z: Number) -> Number:
    """A bijection of 31-bit numbers in which every input bit affects every output bit (xor-multiply)."""
    z = (z ^ z >> 16) * 0x7FEB352D & _MASK
    z = (z ^ z >> 15) * 0x846CA68B & _MASK
    return z ^ z >> 16


def _salts(seed: int) -> tuple[int, int]:
    """Two 31-bit numbers for a seed of either sign (its lower 62 bits are used); neighbouring seeds give unrelated
    numbers."""
    first = _mix(_mix(seed & _MASK) ^ seed >> _BITS & _MASK)
    return first, _mix(first ^ _GOLDEN)

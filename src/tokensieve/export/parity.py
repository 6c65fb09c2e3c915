"""Compares the outputs of an exported file with those of its module, and explains differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExportError

DRAWS = 8
"""Number of times an image is changed in its last bits, to find out whether its output depends on rounding."""


@torch.no_grad()
def largest_difference(module: nn.Module, run: Callable[[Tensor], Any], images: Tensor, tolerance: float) -> float:
    """The largest difference between `module(images)` and `run(images)`, images (B, ...); each a tensor or several.

    Absolute; for outputs (B, ., ., ...), tokens and maps, relative to the image's largest value if that is above 1.

    Raises:
        ExportError: it exceeds `tolerance`. The message counts the images and distinguishes two causes. Selecting
            tokens compares numbers: if two are equal up to rounding, a runtime that sums in another order may select
            the other one. Then PyTorch's own output also changes if the image changes in its last bits. If it does not
            change, the file is wrong.
    """
    expected, actual = _as_tuple(module(images)), _as_tuple(run(images))
    shapes = [", ".join(str(tuple(tensor.shape)) for tensor in tensors) for tensors in (actual, expected)]
    if shapes[0] != shapes[1]:
        raise ExportError(f"The exported file returns shape {shapes[0]} where PyTorch returns {shapes[1]}.")
    difference = _differences(expected, actual)
    wrong = ~(difference <= tolerance)  # NaN is wrong too
    if not wrong.any():
        return difference.max().item()
    expected, images = tuple(tensor[wrong] for tensor in expected), images[wrong]
    change, generator = torch.zeros_like(difference[wrong]), torch.Generator().manual_seed(0)
    bits = 8 * torch.finfo(images.dtype).eps
    for _ in range(DRAWS):
        noise = torch.randn(images.shape, generator=generator).to(images)
        change = torch.maximum(change, _differences(expected, _as_tuple(module(images * (1 + bits * noise)))))
    stable = int((change <= tolerance).sum())
    if stable:
        reason = (
            f"On {stable} of them PyTorch's own output stays when the image changes in its last bits: the file is "
            "wrong."
        )
    else:
        reason = (
            "There PyTorch's own output changes too when the image changes in its last bits: tokens are equal up to "
            "rounding, and another one was selected. Try another seed, which checks on other images."
        )
    raise ExportError(
        f"The exported file's outputs differ from PyTorch's on {len(images)} of {len(wrong)} random images, by up to "
        f"{difference.max().item():.2g} (allowed: {tolerance:g}). {reason}"
    )


def _as_tuple(output: Any) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)


def _differences(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> Tensor:
    """The largest difference for each image (B,), between two sequences of tensors (B, ...)."""
    differences = []
    for reference, other in zip(expected, actual, strict=True):
        a, b = reference.double().flatten(1), other.double().flatten(1)
        scale = a.abs().amax(1).clamp(min=1) if reference.ndim > 2 else 1
        differences.append((a - b).abs().amax(1) / scale)
    return torch.stack(differences).amax(0)

"""Whether a file answers as the module that it was written from, and what it means where it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExportError

DRAWS = 8
"""How often an image is changed in its last bits, to learn whether rounding decides its answer."""


@torch.no_grad()
def largest_difference(module: nn.Module, run: Callable[[Tensor], Any], images: Tensor, tolerance: float) -> float:
    """The largest difference between `module(images)` and `run(images)`, images (B, ...); each a tensor or several.

    Absolute; of outputs (B, ., ., ...), tokens and maps, a share of the image's largest number where that is above 1.

    Raises:
        ExportError: it exceeds `tolerance`. The sentence counts the images and tells apart two causes. Which token goes
            is a choice between numbers: where two are equal up to rounding, a runtime that sums in another order may
            choose the other, and the module's own answer changes as well if the image changes by next to nothing. An
            answer that stays then has no such excuse.
    """
    expected, got = _several(module(images)), _several(run(images))
    shapes = [", ".join(str(tuple(tensor.shape)) for tensor in tensors) for tensors in (got, expected)]
    if shapes[0] != shapes[1]:
        raise ExportError(f"The exported file answers {shapes[0]} where PyTorch answers {shapes[1]}.")
    difference = _apart(expected, got)
    wrong = ~(difference <= tolerance)  # NaN is wrong too
    if not wrong.any():
        return difference.max().item()
    expected, images = tuple(tensor[wrong] for tensor in expected), images[wrong]
    moved, generator = torch.zeros_like(difference[wrong]), torch.Generator().manual_seed(0)
    bits = 8 * torch.finfo(images.dtype).eps
    for _ in range(DRAWS):
        noise = torch.randn(images.shape, generator=generator).to(images)
        moved = torch.maximum(moved, _apart(expected, _several(module(images * (1 + bits * noise)))))
    firm = int((moved <= tolerance).sum())
    if firm:
        why = (
            f"On {firm} of them PyTorch's own answer stays when the image changes in its last bits: the file is wrong."
        )
    else:
        why = (
            "There PyTorch's own answer changes too when the image changes in its last bits: tokens are equal up to "
            "rounding, and the choice between them fell otherwise. Another seed checks on other images."
        )
    raise ExportError(
        f"The exported file answers otherwise than PyTorch on {len(images)} of {len(wrong)} random images, by up to "
        f"{difference.max().item():.2g} (allowed: {tolerance:g}). {why}"
    )


def _several(answer: Any) -> tuple[Tensor, ...]:
    return (answer,) if isinstance(answer, Tensor) else tuple(answer)


def _apart(expected: Sequence[Tensor], got: Sequence[Tensor]) -> Tensor:
    """Tensors (B, ...) twice -> (B,) the largest difference for each image."""
    differences = []
    for reference, other in zip(expected, got, strict=True):
        a, b = reference.double().flatten(1), other.double().flatten(1)
        scale = a.abs().amax(1).clamp(min=1) if reference.ndim > 2 else 1
        differences.append((a - b).abs().amax(1) / scale)
    return torch.stack(differences).amax(0)

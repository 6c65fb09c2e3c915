"""Whether a file answers as the module that it was written from, and what it means where it does not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import ExportError

DRAWS = 8
"""How often an image is changed in its last bits, to learn whether rounding decides its answer."""


@torch.no_grad()
def largest_difference(module: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor, tolerance: float) -> float:
    """The largest absolute difference between `module(images)` and `run(images)`, images (B, ...).

    Raises:
        ExportError: it exceeds `tolerance`. The sentence counts the images and tells apart two causes. Which token goes
            is a choice between numbers: where two are equal up to rounding, a runtime that sums in another order may
            choose the other, and the module's own answer changes as well if the image changes by next to nothing. An
            answer that stays then has no such excuse.
    """
    wanted, got = module(images), run(images)
    if got.shape != wanted.shape:
        raise ExportError(f"The exported file answers {tuple(got.shape)} where PyTorch answers {tuple(wanted.shape)}.")
    apart = _apart(wanted, got)
    wrong = ~(apart <= tolerance)  # NaN is wrong too
    if not wrong.any():
        return apart.max().item()
    wanted, images = wanted[wrong], images[wrong]
    moved, generator = torch.zeros_like(apart[wrong]), torch.Generator().manual_seed(0)
    bits = 8 * torch.finfo(images.dtype).eps
    for _ in range(DRAWS):
        noise = torch.randn(images.shape, generator=generator).to(images)
        moved = torch.maximum(moved, _apart(wanted, module(images * (1 + bits * noise))))
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
        f"{apart.max().item():.2g} (allowed: {tolerance:g}). {why}"
    )


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """(B, ...) twice -> (B,) the largest difference for each image."""
    return (a.double() - b.double()).abs().flatten(1).amax(1)

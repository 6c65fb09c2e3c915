"""The map made from a proposal's features, with the resizing and normalisation of the proposal's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._devices import check_device
from ..errors import InputError, RecipeError
from .cam import CLASS_BASED, Reduction, class_weights
from .proposal import Proposal

ADVICE = "Give a network of your own for these channels (proposal=), or a map without a network (significance=centre)."
"""End of errors for hosts whose images a named proposal cannot read."""
HOST = "host"
"""The value of `proposal_size` for which the proposal gets the images in the host's size."""


class FeatureMap(nn.Module):
    """Reduces a proposal's features to a map (B, h, w), for video (B, t, h, w).

    Args:
        proposal: the network.
        reduction: the function from its features to a map.
        affine: scale and shift from the host's normalisation to the proposal's, see `renormalisation`.
        size: (height, width), or (frames, height, width), to which its input is resized; see `input_size`.
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        proposal: Proposal,
        reduction: Reduction,
        affine: tuple[Tensor, Tensor] | None = None,
        size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.proposal, self.reduction = proposal, reduction
        self.size = None if size is None else tuple(size)
        scale, shift = affine or (None, None)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: Tensor, grid: tuple[int, ...]) -> Tensor:
        rank = 5 if self.proposal.video else 4
        if self.proposal.mean is not None and (images.ndim != rank or images.shape[1] != len(self.proposal.mean)):
            sides = "T, H, W" if self.proposal.video else "H, W"
            raise InputError(
                f"Images have shape {tuple(images.shape)}; the proposal {self.proposal.name} reads "
                f"(B, {len(self.proposal.mean)}, {sides}). {ADVICE}"
            )
        if self.proposal.in_pieces:  # a named proposal; a module of the user may move its input itself
            check_device(self.proposal, images, f"The proposal {self.proposal.name} is")
        images = self._resized(images)
        if self.scale is not None and self.shift is not None:
            images = (images * self.scale).add_(self.shift)
        return self.reduction(self.proposal(images), self.proposal, images)

    def _resized(self, images: Tensor) -> Tensor:
        if self.size is None:
            return images
        image_size = tuple(images.shape[2:])
        size = image_size[: len(image_size) - len(self.size)] + self.size
        if image_size == size:
            return images
        mode = "trilinear" if len(size) == 3 else "bilinear"
        return F.interpolate(images, size=size, mode=mode, align_corners=True)


def input_size(size: int | str | Sequence[int] | None, proposal: Proposal) -> tuple[int, ...] | None:
    """The size to which a proposal's input is resized, from a recipe's `proposal_size`; None leaves it unchanged.

    Raises:
        RecipeError: `size` is invalid, or has frames although the proposal reads images.
    """
    if size is None or size == HOST:
        return proposal.clip_size if size is None else None
    sides: tuple[Any, ...] = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) not in (2, 3) or not all(type(side) is int and side > 0 for side in sides):
        raise RecipeError(
            f"proposal_size={size!r} is not a size: expected a side in pixels, (height, width), for a video proposal "
            f"(frames, height, width), or {HOST}."
        )
    if len(sides) == 3 and proposal.mean is not None and not proposal.video:
        raise RecipeError(f"proposal_size={size!r} has frames, but the proposal {proposal.name} reads images.")
    return sides


def check_head(proposal: Proposal, significance: str) -> None:
    """Raise `RecipeError` if the reduction needs a classifier and the proposal has none."""
    if significance == "cam":
        class_weights(proposal)
    elif significance in CLASS_BASED and proposal.head is None:
        raise RecipeError(
            f"The proposal {proposal.name} has no known classifier, which {significance} needs: use mean or eigen-cam."
        )


def renormalisation(mean: Sequence[float], std: Sequence[float], proposal: Proposal) -> tuple[Tensor, Tensor] | None:
    """Scale and shift from the host's normalisation to the proposal's, (1, 3, 1, 1), for video (1, 3, 1, 1, 1); None if
    the two are equal."""
    if proposal.mean is None or proposal.std is None:
        return None
    if len(mean) == len(std) != len(proposal.mean):
        raise RecipeError(
            f"The proposal {proposal.name} reads {len(proposal.mean)} channels, the host {len(mean)} (mean=). {ADVICE}"
        )
    if len(mean) != len(proposal.mean) or len(std) != len(proposal.std) or min(std) <= 0:
        raise RecipeError(f"mean={tuple(mean)} and std={tuple(std)} are invalid: expected 3 numbers each, std > 0.")
    host_mean, host_std, proposal_mean, proposal_std = (
        torch.tensor(tuple(values), dtype=torch.float64).view(1, -1, *[1] * (3 if proposal.video else 2))
        for values in (mean, std, proposal.mean, proposal.std)
    )
    scale, shift = host_std / proposal_std, (host_mean - proposal_mean) / proposal_std
    if torch.allclose(scale, torch.ones_like(scale)) and torch.allclose(shift, torch.zeros_like(shift), atol=1e-6):
        return None
    return scale.float(), shift.float()

"""A proposal's features reduced to a map, with what its input has to go through before."""

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

WITHOUT = "Give a network of your own for these channels (proposal=), or a map that asks none (significance=centre)."
"""What to do where a host's images are not what a named proposal reads."""
HOST = "host"
"""The value of `proposal_size` that leaves the images as the host reads them."""


class FeatureMap(nn.Module):
    """A proposal's features reduced to a map (B, h, w), of video (B, t, h, w).

    Args:
        proposal: the network.
        reduction: its features to a map.
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
                f"(B, {len(self.proposal.mean)}, {sides}). {WITHOUT}"
            )
        if self.proposal.in_pieces:  # one by name; a module of the user's own may place its input itself
            check_device(self.proposal, images, f"The proposal {self.proposal.name} is")
        images = self._resized(images)
        if self.scale is not None and self.shift is not None:
            images = (images * self.scale).add_(self.shift)
        return self.reduction(self.proposal(images), self.proposal, images)

    def _resized(self, images: Tensor) -> Tensor:
        if self.size is None:
            return images
        given_size = tuple(images.shape[2:])
        size = given_size[: len(given_size) - len(self.size)] + self.size
        if given_size == size:
            return images
        mode = "trilinear" if len(size) == 3 else "bilinear"
        return F.interpolate(images, size=size, mode=mode, align_corners=True)


def input_size(size: int | str | Sequence[int] | None, proposal: Proposal) -> tuple[int, ...] | None:
    """The input size of this proposal under a recipe's `proposal_size`: sides to resize its input to, or None.

    Raises:
        RecipeError: it is none, or has a number of frames and the proposal reads images.
    """
    if size is None or size == HOST:
        return proposal.clip_size if size is None else None
    sides: tuple[Any, ...] = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) not in (2, 3) or not all(type(side) is int and side > 0 for side in sides):
        raise RecipeError(
            f"proposal_size={size!r} is no size: expected a side in pixels, (height, width), of a proposal that reads "
            f"video (frames, height, width), or {HOST}."
        )
    if len(sides) == 3 and proposal.mean is not None and not proposal.video:
        raise RecipeError(f"proposal_size={size!r} names frames, and the proposal {proposal.name} reads images.")
    return sides


def check_head(proposal: Proposal, significance: str) -> None:
    """Refuse, before the first image, a reduction that needs a classifier where there is none."""
    if significance == "cam":
        class_weights(proposal)
    elif significance in CLASS_BASED and proposal.head is None:
        raise RecipeError(
            f"The proposal {proposal.name} has no known classifier, which {significance} needs: use mean or eigen-cam."
        )


def renormalisation(mean: Sequence[float], std: Sequence[float], proposal: Proposal) -> tuple[Tensor, Tensor] | None:
    """Scale and shift (1, 3, 1, 1), of video (1, 3, 1, 1, 1), from the host's normalisation to the proposal's; None
    where they are the same."""
    if proposal.mean is None or proposal.std is None:
        return None
    if len(mean) == len(std) != len(proposal.mean):
        raise RecipeError(
            f"The proposal {proposal.name} reads {len(proposal.mean)} channels, the host {len(mean)} (mean=). {WITHOUT}"
        )
    if len(mean) != len(proposal.mean) or len(std) != len(proposal.std) or min(std) <= 0:
        raise RecipeError(f"mean={tuple(mean)} and std={tuple(std)} are no normalisation: expected 3 numbers, std > 0.")
    host_mean, host_std, own_mean, own_std = (
        torch.tensor(tuple(values), dtype=torch.float64).view(1, -1, *[1] * (3 if proposal.video else 2))
        for values in (mean, std, proposal.mean, proposal.std)
    )
    scale, shift = host_std / own_std, (host_mean - own_mean) / own_std
    if torch.allclose(scale, torch.ones_like(scale)) and torch.allclose(shift, torch.zeros_like(shift), atol=1e-6):
        return None
    return scale.float(), shift.float()

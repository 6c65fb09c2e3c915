"""From the settings of a recipe to the module that ranks an image's patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._devices import check_device
from ..errors import ExportError, InputError, RecipeError, nearest
from .cam import CLASS_BASED, REDUCTIONS, Reduction, class_weights
from .controls import centre_map, random_map
from .map import resize_map
from .proposal import Frozen, Proposal, module_proposal, named_proposal

WITHOUT = "Give a network of your own for these channels (proposal=), or a map that asks none (significance=centre)."
"""What to do where a host's images are not what a named proposal reads."""
UNTRACEABLE = {
    "grad-cam": "takes gradients, which no file computes",
    "grad-cam++": "takes gradients, which no file computes",
    "score-cam": "runs the proposal anew for every channel of every image",
}
"""Maps that no graph can hold, and why."""
_UNTRACEABLE_BY_JIT = UNTRACEABLE | {"random": "hashes the bits of the images, which TorchScript cannot see"}
PATCH = 16
"""Pixels a side of the patches for which a map is made where no grid is given and the map has no size of its own."""


class Significance(Frozen):
    """How much each patch of an image matters; keeps nothing between calls.

    `proposal` is the network that is asked, None where there is none; `name` says in words what ranks, `kind` is the
    recipe's word for how.
    """

    def __init__(self, source: nn.Module, name: str, *, kind: str = "", align_corners: bool = True) -> None:
        super().__init__()
        self.source, self.name, self.kind, self.align_corners = source, name, kind, align_corners
        self.eval()

    @property
    def proposal(self) -> Proposal | None:
        """The network whose features are reduced to a map."""
        return self.source.proposal if isinstance(self.source, FeatureMap) else None

    def forward(self, images: Tensor, grid: Sequence[int]) -> Tensor:
        """Images (B, 3, H, W), normalised as the host reads them, -> (B, prod(grid)) float32, row-major, no gradients.

        Raises `InputError` for images or maps whose shapes do not fit.
        """
        return self.ask(images)(grid)

    def ask(self, images: Tensor) -> Callable[[Sequence[int]], Tensor]:
        """The map of these images for any grid, as `forward` gives it; a network is asked once, here."""
        asks = isinstance(self.source, (FeatureMap, CallableMap))  # torch 2.6 does not compile a test for A | B
        made = self.maps(images) if asks else None

        def on(grid: Sequence[int]) -> Tensor:
            grid = tuple(grid)
            maps = self.maps(images, grid) if made is None else made
            if maps.ndim != 2:
                maps = resize_map(maps, grid, self.align_corners).flatten(1)
            count = images.shape[0]  # not len(): exporters with a free batch size would fix it
            if maps.shape[1] != prod(grid) or maps.shape[0] not in (1, count):
                raise InputError(
                    f"The significance map of {self.name} has shape {tuple(maps.shape)}, which does not fit {count} "
                    f"images of {prod(grid)} patches."
                )
            return maps.expand(count, -1).float()

        return on

    def maps(self, images: Tensor, grid: Sequence[int] | None = None) -> Tensor:
        """The maps as they are made, before they are resized: (B, h, w), or (B, P) from a source that makes those.

        `grid` is for maps that have no size of their own (`random`, `centre`): by default patches of 16 pixels.
        """
        if torch.jit.is_tracing() and self.kind in _UNTRACEABLE_BY_JIT:
            raise ExportError(
                f"torch.jit.trace cannot record the map {self.kind}, which {_UNTRACEABLE_BY_JIT[self.kind]}. It "
                "records mean, cam, eigen-cam and centre; tokensieve.export_program records random as well."
            )
        if grid is None:
            grid = tuple(max(1, side // PATCH) for side in images.shape[-2:])
        with torch.no_grad():
            return self.source(images, tuple(grid))

    def extra_repr(self) -> str:
        return f"name={self.name!r}"


def build(
    *,
    proposal: str | nn.Module | Callable[[Tensor], Tensor] = "mobileone_s0",
    significance: str | Tensor | Callable[[Tensor], Tensor] = "mean",
    layer: int | str | None = None,
    align_corners: bool = True,
    proposal_norm: str = "native",
    proposal_size: int | Sequence[int] | None = None,
    proposal_weights: str | PathLike[str] | None = None,
    proposal_sha256: str | None = None,
    proposal_args: Mapping[str, Any] | None = None,
    proposal_dtype: torch.dtype | str | None = None,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pretrained: bool = True,
) -> Significance:
    """What a recipe's settings mean by significance.

    Args:
        proposal: the ConvNet that is asked: a name that timm or torchvision knows (see `named_proposal`), or the user's
            own module from images to features (see `module_proposal`), which receives the host's tensor as it is.
        significance: how its features become a map: a name in `REDUCTIONS`; without any proposal: `random` and
            `centre`, a tensor (P,), (B, P), (h, w) or (B, h, w) used as the map, or a callable from images to
            (B, h, w) or (B, P).
        layer: the feature map that is read; None is the last one.
        align_corners: of the interpolation to the token grid; the published code says True.
        proposal_norm: `native` gives a named proposal the images as it was trained on, `shared` as the host reads them.
        proposal_size: side or (height, width) in pixels to which the proposal's input is resized bilinearly.
        proposal_weights, proposal_sha256, proposal_args, pretrained: of a named proposal, as in `zoo.create`.
        proposal_dtype: precision of a named proposal, float32 by default.
        seed: of `random`.
        mean, std: the host's normalisation, three numbers each.

    Raises:
        RecipeError: settings that make no sense.
        InputError: weights that cannot be had.
    """
    if proposal_norm not in ("native", "shared"):
        raise RecipeError(f"proposal_norm={proposal_norm!r} is unknown: choose native or shared.")
    if isinstance(significance, Tensor):
        return Significance(GivenMap(significance), "tensor", align_corners=align_corners)
    if not isinstance(significance, str):
        if not callable(significance):
            raise RecipeError(
                f"significance={significance!r} is not a name, a tensor or a callable from images to (B, h, w)."
            )
        name = getattr(significance, "__name__", type(significance).__name__)
        return Significance(CallableMap(significance), name, align_corners=align_corners)
    if significance == "random":
        control = ControlMap(partial(random_map, seed=seed))
        return Significance(control, "random", kind="random", align_corners=align_corners)
    if significance == "centre":
        return Significance(ControlMap(centre_map), "centre", align_corners=align_corners)
    if significance not in REDUCTIONS:
        names = [*REDUCTIONS, "random", "centre"]
        raise RecipeError(f"significance={significance!r} is unknown{nearest(significance, names)}.")

    if isinstance(proposal, str):
        if proposal_norm == "native" and (mean is None or std is None):
            raise RecipeError(
                f"The proposal {proposal} has its own normalisation, and that of the host is not known: pass mean= and "
                "std= to sieve(), or proposal_norm='shared'."
            )
        net = named_proposal(
            proposal,
            layer=layer,
            weights=proposal_weights,
            sha256=proposal_sha256,
            args=proposal_args,
            pretrained=pretrained,
            dtype=_dtype(proposal_dtype),
        )
    else:
        if not callable(proposal):
            raise RecipeError(f"proposal={proposal!r} is neither a name nor a module from images to features.")
        given = {"proposal_weights": proposal_weights, "proposal_args": proposal_args, "proposal_dtype": proposal_dtype}
        for setting, value in given.items():
            if value is not None:
                raise RecipeError(f"{setting}= belongs to a proposal given by name; a module is used as it is.")
        net = module_proposal(proposal, layer)
    _check_head(net, significance)
    affine = None
    if proposal_norm == "native" and mean is not None and std is not None:
        affine = _renormalisation(mean, std, net)
    size = (proposal_size, proposal_size) if isinstance(proposal_size, int) else proposal_size
    name = net.name if significance == "mean" else f"{net.name} {significance}"
    source = FeatureMap(net, REDUCTIONS[significance], affine, size)
    return Significance(source, name, kind=significance, align_corners=align_corners)


class FeatureMap(nn.Module):
    """A proposal's features reduced to a map."""

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
        if self.proposal.mean is not None and (images.ndim != 4 or images.shape[1] != len(self.proposal.mean)):
            raise InputError(
                f"Images have shape {tuple(images.shape)}; the proposal {self.proposal.name} reads "
                f"(B, {len(self.proposal.mean)}, H, W). {WITHOUT}"
            )
        if self.proposal.in_pieces:  # one by name; a module of the user's own may place its input itself
            check_device(self.proposal, images, f"The proposal {self.proposal.name} is")
        if self.size is not None and tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, size=self.size, mode="bilinear", align_corners=True)
        if self.scale is not None and self.shift is not None:
            images = (images * self.scale).add_(self.shift)
        return self.reduction(self.proposal(images), self.proposal, images)


class ControlMap(nn.Module):
    """A map that asks no network."""

    def __init__(self, make: Callable[[Tensor, tuple[int, ...]], Tensor]) -> None:
        super().__init__()
        self.make = make

    def forward(self, images: Tensor, grid: tuple[int, ...]) -> Tensor:
        return self.make(images, grid)


class CallableMap(nn.Module):
    """The user's own function or module from images to maps."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor, grid: tuple[int, ...]) -> Tensor:
        maps = self.function(images)
        if not isinstance(maps, Tensor) or maps.ndim not in (2, len(grid) + 1) or maps.shape[0] != images.shape[0]:
            shape = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise InputError(
                f"The significance callable returned {shape} for {len(images)} images: expected (B, h, w) or (B, P)."
            )
        return maps


class GivenMap(nn.Module):
    """A tensor that is the map, for every image or image by image."""

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        if not 1 <= values.ndim <= 4:
            raise RecipeError(
                f"The significance tensor has shape {tuple(values.shape)}: expected (P,), (B, P), (h, w) or (B, h, w)."
            )
        self.register_buffer("values", values.detach(), persistent=False)

    def forward(self, images: Tensor, grid: tuple[int, ...]) -> Tensor:
        values, patches = self.values, prod(grid)
        if values.ndim == 1 or (values.ndim == 2 and values.shape[1] == patches):
            values = values.view(-1, values.shape[-1])
        elif values.ndim == len(grid):
            values = values[None]
        fits = values.shape[1] == patches if values.ndim == 2 else values.ndim == len(grid) + 1
        if not fits or values.shape[0] not in (1, images.shape[0]):
            raise InputError(
                f"The significance tensor has shape {tuple(self.values.shape)}, which does not fit "
                f"{len(images)} images on a grid of {' x '.join(map(str, grid))} patches."
            )
        return values


def _check_head(proposal: Proposal, significance: str) -> None:
    """Say now, not at the first image, that a reduction asks for a classifier that is not there."""
    if significance == "cam":
        class_weights(proposal)
    elif significance in CLASS_BASED and proposal.head is None:
        raise RecipeError(
            f"The proposal {proposal.name} has no known classifier, which {significance} needs: use mean or eigen-cam."
        )


def _renormalisation(mean: Sequence[float], std: Sequence[float], proposal: Proposal) -> tuple[Tensor, Tensor] | None:
    """Scale and shift (1, 3, 1, 1) from the host's normalisation to the proposal's; None where they are the same."""
    if proposal.mean is None or proposal.std is None:
        return None
    if len(mean) == len(std) != len(proposal.mean):
        raise RecipeError(
            f"The proposal {proposal.name} reads {len(proposal.mean)} channels, the host {len(mean)} (mean=). {WITHOUT}"
        )
    if len(mean) != len(proposal.mean) or len(std) != len(proposal.std) or min(std) <= 0:
        raise RecipeError(f"mean={tuple(mean)} and std={tuple(std)} are no normalisation: expected 3 numbers, std > 0.")
    host_mean, host_std, own_mean, own_std = (
        torch.tensor(tuple(values), dtype=torch.float64).view(1, -1, 1, 1)
        for values in (mean, std, proposal.mean, proposal.std)
    )
    scale, shift = host_std / own_std, (host_mean - own_mean) / own_std
    if torch.allclose(scale, torch.ones_like(scale)) and torch.allclose(shift, torch.zeros_like(shift), atol=1e-6):
        return None
    return scale.float(), shift.float()


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise RecipeError(f"proposal_dtype={dtype!r} is unknown: choose float32, bfloat16 or float16.")
    return found

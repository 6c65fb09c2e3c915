"""Builds the module that computes significance maps, from the settings of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from .. import zoo
from ..errors import ExportError, InputError, RecipeError, nearest
from .cam import REDUCTIONS
from .controls import centre_map, random_map
from .feature_map import FeatureMap, check_head, input_size, renormalisation
from .map import resize_map
from .motion import motion_map
from .proposal import Frozen, Proposal, module_proposal, named_proposal, named_video_proposal

UNTRACEABLE = {
    "grad-cam": "needs gradients, which an exported file cannot compute",
    "grad-cam++": "needs gradients, which an exported file cannot compute",
    "score-cam": "runs the proposal once for every channel of every image",
}
"""Kind of map that cannot be exported -> the reason."""
_UNTRACEABLE_BY_JIT = UNTRACEABLE | {"random": "hashes the bits of the images, which TorchScript cannot record"}
TIMES_MOTION = "*motion"
"""Suffix of a reduction's name: the map, interpolated to the grid, is multiplied by the motion map."""
PATCH = 16
"""Patch side in pixels for maps without a size of their own, if no grid is given."""


class Significance(Frozen):
    """Computes the significance map of images; keeps nothing between calls."""

    def __init__(
        self, source: nn.Module, name: str, *, kind: str = "", align_corners: bool = True, moving: bool = False
    ) -> None:
        """Wrap a source of maps.

        Args:
            source: a module from images and a grid to maps.
            name: a description of the source, for messages.
            kind: the reduction, as named in the recipe; empty for maps and functions of the user.
            align_corners: of the interpolation to the grid.
            moving: multiply the map by the motion map of the clip.
        """
        super().__init__()
        self.source, self.name, self.kind, self.align_corners = source, name, kind, align_corners
        self.moving = moving
        self.eval()

    @property
    def proposal(self) -> Proposal | None:
        """The network whose features are reduced to a map, or None."""
        return self.source.proposal if isinstance(self.source, FeatureMap) else None

    def forward(self, images: Tensor, grid: Sequence[int]) -> Tensor:
        """The map of images (B, 3, H, W), or clips (B, 3, T, H, W), with the host's normalisation: (B, prod(grid))
        float32, row-major, without gradients.

        Raises `InputError` for images or maps whose shapes do not fit.
        """
        return self.for_images(images)(grid)

    def for_images(self, images: Tensor) -> Callable[[Sequence[int]], Tensor]:
        """A function from a grid to the map of these images, as in `forward`; a network runs only once, here."""
        grid_free = isinstance(self.source, (FeatureMap, CallableMap))  # torch 2.6 cannot compile a test for A | B
        computed = self.maps(images) if grid_free else None

        def on_grid(grid: Sequence[int]) -> Tensor:
            grid = tuple(grid)
            maps = self.maps(images, grid) if computed is None else computed
            if maps.ndim != 2:
                maps = resize_map(maps, grid, self.align_corners).flatten(1)
            count = images.shape[0]  # not len(), which would fix a dynamic batch size in exports
            if maps.shape[1] != prod(grid) or maps.shape[0] not in (1, count):
                raise InputError(
                    f"The significance map of {self.name} has shape {tuple(maps.shape)}, which does not fit {count} "
                    f"images of {prod(grid)} patches."
                )
            maps = maps.expand(count, -1).float()
            return maps * motion_map(images, grid).flatten(1).to(maps.dtype) if self.moving else maps

        return on_grid

    def maps(self, images: Tensor, grid: Sequence[int] | None = None) -> Tensor:
        """The maps before interpolation: (B, h, w), for video (B, t, h, w), or (B, P), depending on the source.

        `grid` is used by maps that have no size of their own (`random`, `centre`); the default is patches of 16 pixels.
        """
        if torch.jit.is_tracing() and self.kind in _UNTRACEABLE_BY_JIT:
            raise ExportError(
                f"torch.jit.trace cannot record the map {self.kind}, which {_UNTRACEABLE_BY_JIT[self.kind]}. It "
                "records mean, cam, eigen-cam and centre; tokensieve.export_program records random as well."
            )
        if grid is None:
            grid = (*images.shape[2:-2], *(max(1, side // PATCH) for side in images.shape[-2:]))
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
    proposal_size: int | str | Sequence[int] | None = None,
    proposal_weights: str | PathLike[str] | None = None,
    proposal_sha256: str | None = None,
    proposal_args: Mapping[str, Any] | None = None,
    proposal_dtype: torch.dtype | str | None = None,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pretrained: bool = True,
    video: bool = False,
) -> Significance:
    """Build the significance module from the settings of a recipe.

    Args:
        proposal: the ConvNet whose features are reduced to the map: a name of timm or torchvision (see
            `named_proposal`), for video a name in `zoo.VIDEO_PROPOSALS`, or the user's own module from images to
            features (see `module_proposal`), which gets the host's images unchanged, clips as (B, C, T, H, W).
        significance: how the features are reduced: a name in `REDUCTIONS`, for video also with the suffix `*motion`,
            such as `mean*motion`, to multiply by the motion map. Or a map without a proposal: `random`, `centre`, for
            video `motion`; a tensor (P,), (B, P), (h, w) or (B, h, w); a callable from images to (B, h, w) or (B, P).
        layer: the feature map to use; None is the last one.
        align_corners: of the interpolation to the token grid; True as in the published code.
        proposal_norm: `native` gives a named proposal images with the normalisation of its training, `shared` with that
            of the host.
        proposal_size: side, (height, width) or (frames, height, width) to which the proposal's input is resized
            linearly; `host` leaves it unchanged. None: the paper's clip size for a named video proposal, unchanged for
            others.
        proposal_weights, proposal_sha256, proposal_args, pretrained: for a named proposal, as in `zoo.create`.
        proposal_dtype: dtype of a named proposal, float32 by default.
        seed: seed of `random`.
        mean, std: the host's normalisation, three numbers each.
        video: whether the host reads video, passed here as (B, C, T, H, W).

    Raises:
        RecipeError: invalid settings.
        InputError: weights cannot be loaded.
    """
    if proposal_norm not in ("native", "shared"):
        raise RecipeError(f"proposal_norm={proposal_norm!r} is unknown: choose native or shared.")
    if isinstance(significance, Tensor):
        return Significance(TensorMap(significance), "tensor", align_corners=align_corners)
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
    reduction = significance.removesuffix(TIMES_MOTION)
    moving = reduction != significance
    if (moving or significance == "motion") and not video:
        raise RecipeError(f"significance={significance} is computed between frames, but this model reads images.")
    if significance == "motion":
        return Significance(ControlMap(motion_map), "motion", kind="motion", align_corners=align_corners)
    if reduction not in REDUCTIONS:
        names = [*REDUCTIONS, "random", "centre", "motion"]
        raise RecipeError(f"significance={significance!r} is unknown{nearest(significance, names)}.")

    if isinstance(proposal, str):
        _check_reads(proposal, video)
        if proposal_norm == "native" and (mean is None or std is None):
            raise RecipeError(
                f"The proposal {proposal} has its own normalisation, and that of the host is not known: pass mean= and "
                "std= to sieve(), or proposal_norm='shared'."
            )
        settings: dict[str, Any] = {"weights": proposal_weights, "sha256": proposal_sha256, "pretrained": pretrained}
        build_proposal = named_video_proposal if video else named_proposal
        net = build_proposal(proposal, layer=layer, args=proposal_args, dtype=_dtype(proposal_dtype), **settings)
    else:
        if not callable(proposal):
            raise RecipeError(f"proposal={proposal!r} is neither a name nor a module from images to features.")
        proposal_settings = {
            "proposal_weights": proposal_weights,
            "proposal_args": proposal_args,
            "proposal_dtype": proposal_dtype,
        }
        for setting, value in proposal_settings.items():
            if value is not None:
                raise RecipeError(f"{setting}= belongs to a proposal given by name; a module is used unchanged.")
        net = module_proposal(proposal, layer)
    check_head(net, reduction)
    affine = None
    if proposal_norm == "native" and mean is not None and std is not None:
        affine = renormalisation(mean, std, net)
    name = net.name if significance == "mean" else f"{net.name} {significance}"
    source = FeatureMap(net, REDUCTIONS[reduction], affine, input_size(proposal_size, net))
    return Significance(source, name, kind=reduction, align_corners=align_corners, moving=moving)


class ControlMap(nn.Module):
    """A map computed without a network, by a function of images and grid."""

    def __init__(self, make: Callable[[Tensor, tuple[int, ...]], Tensor]) -> None:
        super().__init__()
        self.make = make

    def forward(self, images: Tensor, grid: tuple[int, ...]) -> Tensor:
        return self.make(images, grid)


class CallableMap(nn.Module):
    """Maps by the user's own function or module from images to maps."""

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


class TensorMap(nn.Module):
    """A map given as a tensor, the same for all images or one for each image."""

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


def _check_reads(proposal: str, video: bool) -> None:
    """Raise `RecipeError` if a named proposal reads images and the host reads video, or the other way round."""
    reads_video = proposal in zoo.VIDEO_PROPOSALS
    if video and not reads_video:
        raise RecipeError(
            f"The proposal {proposal} reads images, and this model reads video: name one of "
            f"{', '.join(zoo.VIDEO_PROPOSALS)}, give a module from clips (B, 3, T, H, W) to features, or use a map "
            "without a network (significance=motion)."
        )
    if reads_video and not video:
        raise RecipeError(
            f"The proposal {proposal} reads video, and this model reads images: name a ConvNet for images."
        )


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    result = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(result, torch.dtype) or not result.is_floating_point:
        raise RecipeError(f"proposal_dtype={dtype!r} is unknown: choose float32, bfloat16 or float16.")
    return result

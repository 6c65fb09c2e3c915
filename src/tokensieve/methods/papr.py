"""PaPr: a small ConvNet, the proposal, ranks the patches, and the host reads only the top ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from .._recording import recording
from ..errors import InputError, RecipeError, nearest
from ..pixels import Background, Pixels
from ..tokens import Tokens
from .base import SHORTHANDS, MapEvidence, PixelMethod, PixelSite, TokenSite, register
from .matching import ranked
from .ranking import Scored
from .schedule import shares_field, tuple_field

REDUCTIONS = ("mean", "cam", "grad-cam", "grad-cam++", "eigen-cam", "score-cam")
WITHOUT_NETWORK = ("random", "centre", "motion")
SIGNIFICANCES = (*REDUCTIONS, *(f"{name}*motion" for name in REDUCTIONS), *WITHOUT_NETWORK)


def _check_stages(_method: str, _setting: str, stages: Any) -> tuple[int, ...] | None:
    if isinstance(stages, list | tuple | range):
        stages = tuple(stages)
        valid = all(isinstance(stage, int) and not isinstance(stage, bool) and stage >= 0 for stage in stages)
        if not stages or not valid or len(set(stages)) < len(stages):
            raise RecipeError(f"papr: stages must be different stage indices from 0 up, not {stages!r}.")
    elif stages is not None:
        raise RecipeError(f"papr: stages must be stage indices, such as (1, 2, 3), not {stages!r}.")
    return stages


@register
@dataclass(frozen=True)
class PaPr(Scored[MapEvidence], PixelMethod):
    """Keep the patches that a significance map ranks highest, once, before block 0 (Mahmud et al., ECCV 2024, sec. 3).

    Args:
        keep: share of tokens to keep, in (0, 1]. `int((patches + prefix) * keep)` patches are kept, at least one, and
            in addition all prefix tokens. At 1 nothing is ranked and the proposal does not run.
        proposal: the ConvNet that ranks: a name of timm or torchvision, or a module that maps the host's images
            (B, 3, H, W) to features (B, K, h, w), which gets them exactly as the host does. For video models `x3d_s`,
            `x3d_m`, `x3d_l`, `slowonly_r50` or `slowonly_r101`, or a module that maps clips (B, 3, T, H, W) to
            features (B, K, t, h, w).
        significance: how features are reduced to a map: `mean` over channels (as in the paper), `cam`, `grad-cam`,
            `grad-cam++`, `eigen-cam`, `score-cam`. Without a proposal: `random`; `centre`, which is the same in all
            frames of a video; for video `motion`, the change of each patch from the previous one at its position.
            `mean*motion` and the like multiply the proposal's map by the motion map. Or a tensor of P values or (B, P),
            used as the map; or a callable that returns it.
        layer: the feature map to use, by index of a stage or name of a submodule; None is the last one.
        order: kept tokens stay in `raster` order, or come in descending `significance` as in the published code, which
            matters to methods that use positions in the sequence, such as ToMe.
        align_corners: of the interpolation of the map (bicubic, for video trilinear) to the grid of patches; True as in
            the published code.
        proposal_norm: `native` normalises the proposal's input as in its training, `shared` gives it the host's tensor.
        proposal_size: side or (height, width) in pixels, for video also (frames, height, width), to which the
            proposal's input is resized. None leaves images in the host's size, and resizes clips for a named video
            proposal to the paper's size, (8, 160, 160) for `x3d_s`; `host` does not resize clips either, as the
            published code with `x3d_m`.
        proposal_weights: file with the proposal's weights; None takes the library's pretrained ones.
        proposal_sha256: expected SHA-256 of that file; recipe files record it.
        proposal_args: further constructor arguments of the proposal, by name.
        proposal_dtype: dtype of the proposal, by default `float32`.
        seed: seed of the `random` map.
        stages: on hierarchical hosts (ConvNeXt, Swin, Swin3D) the stages in which pixels are selected; None is all.
            Maps keep their full size there, and point-wise operators run on the `int(H * W * keep)` most significant
            pixels of each stage; `keep` may be a tuple with a share for each of `stages`.
        background: on hierarchical hosts the values of the other pixels: `zero`, or `keep` their previous values; None
            is as in the published code, zero for ConvNeXt and keep for Swin.
    """

    keep: float | tuple[float, ...] = shares_field()
    proposal: Any = "mobileone_s0"
    significance: Any = "mean"
    layer: int | str | None = None
    order: Literal["raster", "significance"] = "raster"
    align_corners: bool = True
    proposal_norm: Literal["native", "shared"] = "native"
    proposal_size: int | tuple[int, ...] | str | None = tuple_field()
    proposal_weights: str | os.PathLike[str] | None = None
    proposal_sha256: str | None = field(default=None, compare=False)
    proposal_args: Mapping[str, Any] | None = None
    proposal_dtype: str | None = None
    seed: int = 0
    stages: tuple[int, ...] | None = field(default=None, metadata={"check": _check_stages})
    background: Background | None = None

    name: ClassVar[str] = "papr"
    place: ClassVar[Literal["start"]] = "start"
    needs_significance: ClassVar[bool] = True
    not_of_the_map: ClassVar[tuple[str, ...]] = ("keep", "order", "stages", "background")
    files: ClassVar[Mapping[str, str]] = {"proposal_weights": "proposal_sha256"}

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("order", self.order, ("raster", "significance"))
        _one_of("proposal_norm", self.proposal_norm, ("native", "shared"))
        if isinstance(self.significance, str):
            _one_of("significance", self.significance, SIGNIFICANCES)
        if self.proposal_dtype is not None:
            _one_of("proposal_dtype", self.proposal_dtype, ("float32", "bfloat16", "float16"))
        if self.background is not None:
            _one_of("background", self.background, ("zero", "keep"))
        if isinstance(self.keep, tuple) and self.stages is not None and len(self.keep) != len(self.stages):
            raise RecipeError(f"papr: keep has {len(self.keep)} shares, but stages has {len(self.stages)} stages.")

    @property
    def ranks(self) -> bool:
        """Whether patches or pixels are dropped, so that a map is needed."""
        return min(self.keep) < 1 if isinstance(self.keep, tuple) else self.keep < 1

    @property
    def needs_proposal(self) -> bool:
        """Whether the map is made by a proposal."""
        return self.significance not in WITHOUT_NETWORK

    @property
    def by_score(self) -> bool:
        return self.order == "significance"

    def kept(self, site: TokenSite) -> int | None:
        if isinstance(self.keep, tuple) or self.stages is not None or self.background is not None:
            raise RecipeError(
                "papr: a share for each stage, stages= and background= are for hierarchical models, such as ConvNeXt "
                "and Swin; this model has no stages."
            )
        return None if site.block != 0 or self.keep == 1 else int(site.tokens * self.keep)

    def score(self, tokens: Tokens, evidence: MapEvidence) -> Tensor:
        # Use the batch size of the tokens: with that of the map, which is a long symbolic expression, compiling all
        # blocks takes very long.
        return finite(evidence.significance.view(tokens.x.shape[0], -1))

    def chooses(self, site: PixelSite) -> int | None:
        stages = tuple(range(site.stages)) if self.stages is None else self.stages
        if max(stages) >= site.stages:
            raise RecipeError(f"papr: stages={self.stages} do not exist, the model has {site.stages} stages.")
        if isinstance(self.keep, tuple) and len(self.keep) != len(stages):
            raise RecipeError(f"papr: keep has {len(self.keep)} shares, but the model has {len(stages)} stages.")
        if site.block != 0 or site.stage not in stages:
            return None
        share = self.keep[stages.index(site.stage)] if isinstance(self.keep, tuple) else self.keep
        return None if share == 1 else max(int(site.pixels * share), 1)

    def choose(self, x: Tensor, count: int, site: PixelSite, evidence: MapEvidence) -> Pixels:
        index = top_patches(evidence.significance, count).sort(dim=-1).values
        return Pixels(index, site.pixels, self.background)


def top_patches(significance: Tensor, count: int) -> Tensor:
    """Indices (B, count) int64 of the most significant patches, from a map (B, P); highest first, ties to the lower
    index."""
    return ranked(finite(significance))[:, :count]


def finite(significance: Tensor) -> Tensor:
    """Return the map; raises `InputError` if it has NaN or infinite values (not checked in compiled graphs)."""
    if not (recording() or significance.is_meta) and not bool(significance.isfinite().all()):
        raise InputError(
            "The significance map holds NaN or infinite values: check the images and the proposal's weights "
            "(a proposal in float16 may overflow)."
        )
    return significance


def _random(keep: float, seed: int = 0) -> PaPr:
    return PaPr(keep=keep, significance="random", seed=seed)


SHORTHANDS["random"] = _random


def _one_of(setting: str, value: object, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise RecipeError(
            f"papr: {setting}={value!r} is unknown{nearest(value, valid)}; choose from {', '.join(valid)}."
        )

"""DynamicCNN and DynamicSwin: trained predictors select pixels of a stage, and the others take a cheaper operator."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ..errors import RecipeError
from ..pixels import Pixels
from .base import Evidence, PixelMethod, PixelSite, register
from .dynamicvit import Predictor, check_predictors
from .matching import ranked
from .schedule import check_share, shares_field, tuple_field
from .weights import load_part

STAGE = 2
"""Index of the stage in which pixels are selected, which has the most blocks."""


@dataclass(frozen=True)
class DynamicSpatial(PixelMethod):
    """Dynamic spatial sparsification with trained weights (Rao et al., TPAMI 2023, section 3.4).

    Before three blocks of the third stage a predictor ranks all pixels. The best go through the block's own point-wise
    operator (slow path), the others through a norm and one linear layer (fast path); all keep the residual.

    Args:
        keep: the share of pixels on the slow path after the first predictor; 0.2 less after the second, 0.4 less after
            the third; or a tuple with a share for each.
        weights: file with the weights of predictors and fast paths, with the keys of published checkpoints; other
            weights in it are ignored. The host should be the one that was trained with them.
        layers: the blocks of the third stage with a predictor before them; None is after one, two and three ninths.
        sha256: expected SHA-256 of that file; recipe files record it.
    """

    keep: float | tuple[float, ...] = shares_field()
    weights: str | os.PathLike[str] | None = None
    layers: tuple[int, ...] | None = tuple_field()
    sha256: str | None = field(default=None, compare=False)

    files: ClassVar[Mapping[str, str]] = {"weights": "sha256"}
    epsilon: ClassVar[float]
    """Epsilon of its layer norms."""
    scaled: ClassVar[bool]
    """Whether the fast path ends with a learned scale."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None and (not self.layers or list(self.layers) != sorted(set(self.layers))):
            raise RecipeError(f"{self.name}: layers must be blocks in ascending order, not {self.layers!r}.")
        for share in self._shares(len(self.layers or (0, 0, 0))):
            check_share(self.name, "keep", share)

    def _shares(self, count: int) -> tuple[float, ...]:
        if not isinstance(self.keep, tuple):
            # Rounded, since 0.7 - 0.2 is below 0.5 in floating point; the published code thus keeps 97 of 196, not 98.
            return tuple(round(self.keep - 0.2 * step, 9) if self.keep < 1 else 1 for step in range(count))
        if len(self.keep) != count:
            raise RecipeError(f"{self.name}: keep has {len(self.keep)} shares, but there are {count} predictors.")
        return self.keep

    def _blocks(self, depth: int) -> tuple[int, ...]:
        step = max(1, depth // 9)
        return (step, 2 * step, 3 * step) if self.layers is None else self.layers

    def chooses(self, site: PixelSite) -> int | None:
        blocks = self._blocks(site.depth)
        if site.stage != STAGE or site.block not in blocks:
            return None
        shares = self._shares(len(blocks))
        share = shares[blocks.index(site.block)]
        return None if min(shares) == 1 else max(int(site.pixels * share), 1)

    def choose(self, x: Tensor, count: int, site: PixelSite, evidence: Evidence) -> Pixels:
        part: Paths = evidence.module
        with torch.no_grad():
            score = part.predictors[self._blocks(site.depth).index(site.block)](x.flatten(1, 2))[:, :, 0].float()
        order = ranked(score)
        index, rest = (indices.sort(dim=1).values for indices in (order[:, :count], order[:, count:]))
        return Pixels(index, site.pixels, "keep", rest, part.fast)

    def build_for_stages(self, widths: Sequence[int], depths: Sequence[int], pretrained: bool) -> nn.Module | None:
        blocks = self._blocks(depths[STAGE])
        if blocks[-1] >= depths[STAGE]:
            raise RecipeError(
                f"{self.name}: the third stage has {depths[STAGE]} blocks, so there is no block {blocks[-1]}."
            )
        paths = Paths(widths[STAGE], len(blocks), range(blocks[0], depths[STAGE]), self.epsilon, self.scaled)
        check_predictors(self.name, self.weights, pretrained)
        if self.weights is not None:
            load_part(self, paths, f"{self.name}'s predictors and fast paths ({os.fspath(self.weights)})")
        return paths


@register
@dataclass(frozen=True)
class DynamicCNN(DynamicSpatial):
    __doc__ = DynamicSpatial.__doc__

    name: ClassVar[str] = "dynamiccnn"
    family: ClassVar[str] = "ConvNeXt"
    epsilon: ClassVar[float] = 1e-6
    scaled: ClassVar[bool] = True

    published: ClassVar[Mapping[str, str]] = {
        "score_predictor.{}": "predictors.{}",
        f"stages.{STAGE}.{{}}.fast_path.{{}}": "fast.{}.layers.{}",
        f"stages.{STAGE}.{{}}.fast_path_gamma": "fast.{}.scale",
    }


@register
@dataclass(frozen=True)
class DynamicSwin(DynamicSpatial):
    __doc__ = DynamicSpatial.__doc__

    name: ClassVar[str] = "dynamicswin"
    family: ClassVar[str] = "Swin"
    epsilon: ClassVar[float] = 1e-5
    scaled: ClassVar[bool] = False

    published: ClassVar[Mapping[str, str]] = {
        f"layers.{STAGE}.score_predictor.{{}}": "predictors.{}",
        f"layers.{STAGE}.blocks.{{}}.fastmlp.fc1.{{}}": "fast.{}.layers.{}",
    }


class Paths(nn.Module):
    """The predictors, and the fast paths of all blocks from the first predictor on, by block index."""

    def __init__(self, width: int, predictors: int, blocks: range, epsilon: float, scaled: bool) -> None:
        super().__init__()
        norm = partial(ChannelsFirstNorm if scaled else nn.LayerNorm, eps=epsilon)
        self.predictors = nn.ModuleList(Predictor(width, norm) for _ in range(predictors))
        self.fast = nn.ModuleDict({str(block): FastPath(width, epsilon, scaled) for block in blocks})


class ChannelsFirstNorm(LayerNorm2d):
    """The norm of the published ConvNeXt predictors, here on (B, n, C). The papers' MAC counts do not include it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class FastPath(nn.Module):
    """Norm, one linear layer and, if `scaled`, a learned scale: (B, n, C) -> (B, n, C)."""

    scale: Tensor | None

    def __init__(self, width: int, epsilon: float, scaled: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width, eps=epsilon), nn.Linear(width, width))
        self.register_parameter("scale", nn.Parameter(torch.ones(width)) if scaled else None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        return x if self.scale is None else x * self.scale

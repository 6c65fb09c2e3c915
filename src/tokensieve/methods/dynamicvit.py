"""DynamicViT: small trained predictors select, at several blocks, the patches to keep."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..tokens import Tokens
from .base import Evidence, Place, TokenSite, register
from .ranking import Scored
from .schedule import Layers, blocks, layers_field, quarters, shares_field
from .weights import load_part


@register
@dataclass(frozen=True)
class DynamicViT(Scored[Evidence]):
    """Keep the patches that trained predictors rank highest (Rao et al., NeurIPS 2021, section 3).

    Before each block of `layers` a predictor ranks the patches, and the best are kept, in the order of their score. The
    host should be the one that was trained with these predictors.

    Args:
        keep: after stage k (counted from 1), int(patches * keep ** k) patches are left; or a tuple with a share of the
            image's patches for each stage.
        weights: file with the predictors' weights, with keys such as `score_predictor.0.in_conv.0.weight`; other
            weights in it are ignored, so that a DynamicViT checkpoint can be used.
        layers: the blocks with a predictor before them; None is after one, two and three quarters (3, 6 and 9 of 12).
        sha256: expected SHA-256 of that file; recipe files record it.
    """

    keep: float | tuple[float, ...] = shares_field()
    weights: str | os.PathLike[str] | None = None
    layers: Layers = layers_field()
    sha256: str | None = field(default=None, compare=False)

    name: ClassVar[str] = "dynamicvit"
    place: ClassVar[Place] = "before"
    files: ClassVar[Mapping[str, str]] = {"weights": "sha256"}
    published: ClassVar[Mapping[str, str]] = {"score_predictor.{}": "{}"}
    by_score: ClassVar[bool] = True

    def _stages(self, depth: int) -> tuple[int, ...]:
        return tuple(blocks(self.layers, depth, quarters(depth)))

    def kept(self, site: TokenSite) -> int | None:
        stages = self._stages(site.depth)
        if site.block not in stages:
            return None
        stage = stages.index(site.block)
        if not isinstance(self.keep, tuple):
            share = self.keep ** (stage + 1)
        else:
            share = self.keep[min(stage, len(self.keep) - 1)]
        return int(site.patches * share)

    def build(self, width: int, depth: int, pretrained: bool) -> nn.Module:
        predictors = nn.ModuleList(Predictor(width) for _ in self._stages(depth))
        check_predictors("dynamicvit", self.weights, pretrained)
        if self.weights is not None:
            description = f"dynamicvit's {len(predictors)} predictors ({os.fspath(self.weights)}, score_predictor.*)"
            load_part(self, predictors, description)
        return predictors

    def score(self, tokens: Tokens, evidence: Evidence) -> Tensor:
        predictor = evidence.module[self._stages(evidence.depth).index(evidence.block)]
        with torch.no_grad():
            return predictor(tokens.x[:, tokens.prefix :])[:, :, 0].float()


def check_predictors(method: str, weights: object, pretrained: bool) -> None:
    """Raise RecipeError if there are no weights, unless `pretrained` is False (to measure cost)."""
    if weights is None and pretrained:
        raise RecipeError(
            f"{method} needs the weights of its trained predictors: weights=FILE. "
            "To measure only its cost, sieve(..., pretrained=False) uses random weights."
        )


class Predictor(nn.Module):
    """Predicts for each patch whether to keep it, from the patch and the mean of all patches.

    Submodules are named as in published checkpoints.
    """

    def __init__(self, width: int, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(norm(width), nn.Linear(width, width), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width // 4), nn.GELU(),
            nn.Linear(width // 4, 2), nn.LogSoftmax(dim=-1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, d) patches -> (B, n, 2) log-probabilities of being kept and dropped."""
        x = self.in_conv(x)
        half = x.shape[2] // 2
        overall = x[:, :, half:].mean(1, keepdim=True).expand(-1, x.shape[1], -1)
        return self.out_conv(torch.cat([x[:, :, :half], overall], dim=2))

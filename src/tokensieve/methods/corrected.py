"""A linear correction of the final class token, fitted on unlabelled images by `tokensieve.correct`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from .._frozen import replace
from ..errors import RecipeError
from ..tokens import Tokens
from .base import Evidence, Method, Place, TokenSite, register
from .weights import load_part

CORRECTION = "correction.safetensors"
"""Name of the correction's weights file in the output folder of a search."""


@register
@dataclass(frozen=True)
class Corrected(Method[Evidence]):
    """Replace the class token x after the final norm by x + W x + b; a method of this project.

    Token reduction changes the class token, in part in the same way for all images; W and b undo this part. The cost is
    d^2 MACs per image for d channels. A correction is valid for one recipe on one model, and for images like those on
    which it was fitted.

    Args:
        weights: file with W as `weight` (d, d) and b as `bias` (d,), written by `tokensieve.correct` or on the command
            line by `tokensieve correct`.
        sha256: expected SHA-256 of that file; recipe files record it.
    """

    weights: str | os.PathLike[str] | None = None
    sha256: str | None = field(default=None, compare=False)

    name: ClassVar[str] = "corrected"
    needs_prefix_head: ClassVar[str] = "but only the class token is corrected"
    place: ClassVar[Place] = "end"
    needs_class_token: ClassVar[bool] = True
    files: ClassVar[Mapping[str, str]] = {"weights": "sha256"}

    def left(self, site: TokenSite) -> int:
        return site.tokens

    def acts(self, site: TokenSite) -> bool:
        return site.block == site.depth - 1  # the final norm is counted with the last block

    def build(self, width: int, depth: int, pretrained: bool) -> nn.Module:
        if self.weights is None and pretrained:
            raise RecipeError(
                "corrected needs the weights that tokensieve.correct() fitted: weights=FILE. To measure only its cost, "
                "sieve(..., pretrained=False) uses random weights."
            )
        linear = nn.Linear(width, width)
        if self.weights is not None:
            load_part(self, linear, f"the correction {os.fspath(self.weights)}")
        return linear

    def reduce(self, tokens: Tokens, left: int, evidence: Evidence) -> Tokens:
        class_token = tokens.x[:, :1]
        return replace(tokens, x=torch.cat([class_token + evidence.module(class_token), tokens.x[:, 1:]], dim=1))

"""SETR's heads: maps of tokens are convolved and upsampled in steps.

SETR (Zheng et al., CVPR 2021, arXiv 2012.15840), section 3.2: naive upsampling, progressive upsampling (PUP),
multi-level feature aggregation (MLA). Tokens pass a LayerNorm first; convolutions are followed by BatchNorm and ReLU;
the classifier is a 1x1 convolution after the last upsampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct
from torch import Tensor, nn

from ..errors import UnsupportedHost

EPSILON = 1e-6


def on_grid(x: Tensor, grid: Sequence[int]) -> Tensor:
    """Patch tokens (B, P, D) -> map (B, D, h, w)."""
    return x.transpose(1, 2).unflatten(2, tuple(grid))


class UpsamplingHead(nn.Module):
    """Naive and PUP: convolutions, each followed by a bilinear upsampling, then the classifier.

    Args:
        channels: D, channels of the tokens.
        num_classes: K.
        hidden: channels of the convolutions.
        convs: number of convolutions.
        kernel: kernel size, 1 or 3.
        scale: factor of each upsampling.
    """

    def __init__(self, channels: int, num_classes: int, hidden: int, convs: int, kernel: int, scale: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=EPSILON)
        self.convs = nn.ModuleList(
            ConvNormAct(channels if index == 0 else hidden, hidden, kernel) for index in range(convs)
        )
        self.classifier = nn.Conv2d(hidden, num_classes, 1)
        self.kernel, self.scale = kernel, scale

    def forward(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        """Patch tokens (B, P, D) -> class logits (B, K, h', w')."""
        maps = on_grid(self.norm(x), grid)
        for conv in self.convs:
            maps = _upsampled(conv(maps), self.scale)
        return self.classifier(maps)

    def upsampled(self, maps: Tensor) -> Tensor:
        """Upsample maps to the size of this head's output."""
        for _ in self.convs:
            maps = _upsampled(maps, self.scale)
        return maps

    def predict(self, x: Tensor) -> Tensor:
        """Any tokens (B, N, D) -> class logits of each token alone, (B, K, N), without upsampling.

        With one convolution `forward` gives the same, upsampled, since classifier and upsampling commute.

        Raises:
            UnsupportedHost: a token's logits depend on its neighbours.
        """
        if self.kernel != 1:
            raise UnsupportedHost(
                f"This head convolves {self.kernel}x{self.kernel} patches and cannot classify single tokens: use "
                'form="naive".'
            )
        maps = self.norm(x).transpose(1, 2).unsqueeze(3)
        for conv in self.convs:
            maps = conv(maps)
        return self.classifier(maps).squeeze(3)


class MlaNeck(nn.Module):
    """MLA's aggregation: each level's map is projected to fewer channels, added to all deeper ones, and convolved."""

    def __init__(self, channels: int, hidden: int, levels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels, eps=EPSILON) for _ in range(levels))
        self.narrow = nn.ModuleList(ConvNormAct(channels, hidden, 1) for _ in range(levels))
        self.convs = nn.ModuleList(ConvNormAct(hidden, hidden, 3) for _ in range(levels))

    def forward(self, levels: Sequence[Tensor], grid: Sequence[int]) -> list[Tensor]:
        """Patch tokens (B, P, D) of each level, shallowest first -> maps (B, C, h, w), deepest level's first."""
        maps = [narrow(on_grid(norm(x), grid)) for norm, narrow, x in zip(self.norms, self.narrow, levels, strict=True)]
        sums = accumulate(reversed(maps))
        return [conv(total) for conv, total in zip(self.convs, sums, strict=True)]


class MlaHead(nn.Module):
    """MLA's head: two 3x3 convolutions to half the channels and an upsampling for each map, then one classifier."""

    def __init__(self, hidden: int, num_classes: int, levels: int) -> None:
        super().__init__()
        half = hidden // 2
        self.convs = nn.ModuleList(
            nn.Sequential(ConvNormAct(hidden, half, 3), ConvNormAct(half, half, 3)) for _ in range(levels)
        )
        self.classifier = nn.Conv2d(half * levels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The neck's output -> class logits (B, K, 4 h, 4 w)."""
        large = [_upsampled(convs(level_map), 4) for convs, level_map in zip(self.convs, maps, strict=True)]
        return self.classifier(torch.cat(large, dim=1))


def _upsampled(maps: Tensor, scale: int) -> Tensor:
    return F.interpolate(maps, scale_factor=float(scale), mode="bilinear", align_corners=False)

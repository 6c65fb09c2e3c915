"""X3D: a small 3-D ConvNet of depthwise convolutions over space and time (Feichtenhofer, CVPR 2020)."""

from __future__ import annotations

from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (24, 48, 96, 192)
"""Channels of the four stages."""
BASE_DEPTHS = (1, 2, 5, 3)
"""Blocks of the four stages at depth factor 1."""
BOTTLENECK = 2.25
"""Channels inside a block, as a multiple of those of its stage."""
SQUEEZE = 1 / 16
HEAD_WIDTH = 2048


class X3DFeatures(nn.Module):
    """X3D up to its last feature map (section 3.1 and table 1 of the paper).

    Clips (B, 3, T, H, W) -> (B, 432, T, h, w) after BatchNorm and ReLU, with h and w the height and width divided by
    32, rounded up. There is no stride in time.

    Args:
        depth_factor: the paper's gamma_d: 2.2 for X3D-S and X3D-M, 5.0 for X3D-L.
        first_shortcut_norm: whether a BatchNorm follows the shortcut of the first block of the first stage, as in
            mmaction2's checkpoints; in PyTorchVideo's it follows only shortcuts that change the number of channels.
    """

    channels = int(WIDTHS[-1] * BOTTLENECK)

    def __init__(self, depth_factor: float = 2.2, *, first_shortcut_norm: bool = False) -> None:
        super().__init__()
        self.stem = _Stem(WIDTHS[0])
        self.stages = nn.ModuleList()
        in_channels = WIDTHS[0]
        for stage, (width, base) in enumerate(zip(WIDTHS, BASE_DEPTHS, strict=True)):
            blocks = nn.Sequential()
            for index in range(ceil(base * depth_factor)):
                norm = width != in_channels or (stage == 0 and first_shortcut_norm)
                stride, squeeze = 2 if index == 0 else 1, index % 2 == 0
                blocks.append(_Block(in_channels, width, stride, squeeze=squeeze, shortcut_norm=norm))
                in_channels = width
            self.stages.append(blocks)
        self.conv5 = nn.Conv3d(in_channels, self.channels, 1, bias=False)
        self.norm5 = nn.BatchNorm3d(self.channels)

    def forward(self, clips: Tensor) -> Tensor:
        # Channels-last makes depthwise convolutions several times faster on CPUs (benchmarks/video_depthwise.py).
        x = self.stem(clips.contiguous(memory_format=torch.channels_last_3d))
        for stage in self.stages:
            x = stage(x)
        return F.relu(self.norm5(self.conv5(x)))


class X3DHead(nn.Module):
    """Features (B, 432, t, h, w) -> logits (B, num_classes): average pooling, a layer of 2048, ReLU, classifier."""

    def __init__(self, num_classes: int = 400) -> None:
        super().__init__()
        self.fc1 = nn.Linear(X3DFeatures.channels, HEAD_WIDTH, bias=False)
        self.fc2 = nn.Linear(HEAD_WIDTH, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(features.mean((2, 3, 4)))))


class _Stem(nn.Module):
    """A spatial convolution followed by a temporal depthwise one, then BatchNorm and ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv3d(3, width, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False)
        self.temporal = nn.Conv3d(width, width, (5, 1, 1), padding=(2, 0, 0), groups=width, bias=False)
        self.norm = nn.BatchNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.temporal(self.spatial(x))))


class _Block(nn.Module):
    """An inverted bottleneck: expand, depthwise 3 x 3 x 3, squeeze-excitation in every other block, Swish, project;
    ReLU after the residual sum."""

    def __init__(self, in_channels: int, width: int, stride: int, *, squeeze: bool, shortcut_norm: bool) -> None:
        super().__init__()
        inner, steps = int(width * BOTTLENECK), (1, stride, stride)
        self.conv1 = nn.Conv3d(in_channels, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm3d(inner)
        self.conv2 = nn.Conv3d(inner, inner, 3, steps, 1, groups=inner, bias=False)
        self.norm2 = nn.BatchNorm3d(inner)
        self.se = _SqueezeExcitation(inner) if squeeze else nn.Identity()
        self.conv3 = nn.Conv3d(inner, width, 1, bias=False)
        self.norm3 = nn.BatchNorm3d(width)
        changes = stride > 1 or in_channels != width
        self.shortcut = nn.Conv3d(in_channels, width, 1, steps, bias=False) if changes else nn.Identity()
        self.shortcut_norm = nn.BatchNorm3d(width) if changes and shortcut_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.silu(self.se(self.norm2(self.conv2(y))))
        return F.relu(self.shortcut_norm(self.shortcut(x)) + self.norm3(self.conv3(y)))


class _SqueezeExcitation(nn.Module):
    """Each channel scaled by a gate that is computed from the mean of all channels over space and time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = _round_to_8(width * SQUEEZE)
        self.fc1 = nn.Conv3d(width, inner, 1)
        self.fc2 = nn.Conv3d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.relu(self.fc1(x.mean((2, 3, 4), keepdim=True)))).sigmoid()


def _round_to_8(width: float) -> int:
    """Round to the nearest multiple of 8, at least 8 and at least 0.9 of the value."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * width else rounded + 8

"""SlowOnly: a ResNet over few frames, the slow pathway of SlowFast alone (Feichtenhofer et al., ICCV 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPANSION = 4
TEMPORAL_STAGES = (2, 3)
"""Stages, counted from 0, in whose blocks the first convolution has length 3 in time."""


class SlowOnlyFeatures(nn.Module):
    """SlowOnly up to its last feature map (section 3.1 and table 1 of the SlowFast paper).

    Clips (B, 3, T, H, W) -> (B, 2048, T, h, w), with h and w the height and width divided by 32, rounded up. There is
    no stride in time.

    Args:
        depths: bottleneck blocks of the four stages: (3, 4, 6, 3) of ResNet-50, (3, 4, 23, 3) of ResNet-101.
    """

    channels = 64 * 2**3 * EXPANSION

    def __init__(self, depths: Sequence[int] = (3, 4, 6, 3)) -> None:
        super().__init__()
        self.stem = _Stem()
        self.stages = nn.ModuleList()
        in_channels = 64
        for stage, depth in enumerate(depths):
            blocks, inner = nn.Sequential(), 64 * 2**stage
            for index in range(depth):
                stride = 2 if index == 0 and stage > 0 else 1
                blocks.append(_Block(in_channels, inner, stride, temporal=stage in TEMPORAL_STAGES))
                in_channels = inner * EXPANSION
            self.stages.append(blocks)

    def forward(self, clips: Tensor) -> Tensor:
        x = self.stem(clips.contiguous(memory_format=torch.channels_last_3d))
        for stage in self.stages:
            x = stage(x)
        return x


class SlowOnlyHead(nn.Module):
    """Features (B, 2048, t, h, w) -> logits (B, num_classes): average pooling, then the classifier."""

    def __init__(self, num_classes: int = 400) -> None:
        super().__init__()
        self.fc = nn.Linear(SlowOnlyFeatures.channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc(features.mean((2, 3, 4)))


class _Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 64, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
        self.norm = nn.BatchNorm3d(64)
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.relu(self.norm(self.conv(x))))


class _Block(nn.Module):
    """A bottleneck block with its stride in the 3 x 3 convolution."""

    def __init__(self, in_channels: int, inner: int, stride: int, *, temporal: bool) -> None:
        super().__init__()
        width, steps = inner * EXPANSION, (1, stride, stride)
        length = 3 if temporal else 1
        self.conv1 = nn.Conv3d(in_channels, inner, (length, 1, 1), padding=(length // 2, 0, 0), bias=False)
        self.norm1 = nn.BatchNorm3d(inner)
        self.conv2 = nn.Conv3d(inner, inner, (1, 3, 3), steps, (0, 1, 1), bias=False)
        self.norm2 = nn.BatchNorm3d(inner)
        self.conv3 = nn.Conv3d(inner, width, 1, bias=False)
        self.norm3 = nn.BatchNorm3d(width)
        changes = in_channels != width
        self.shortcut = nn.Conv3d(in_channels, width, 1, steps, bias=False) if changes else nn.Identity()
        self.shortcut_norm = nn.BatchNorm3d(width) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.shortcut_norm(self.shortcut(x)) + self.norm3(self.conv3(y)))

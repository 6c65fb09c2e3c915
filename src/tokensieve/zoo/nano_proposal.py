"""The proposal for photographs that does nothing but rank patches, taught by a host, without labels."""

from __future__ import annotations

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from .nano_video import Mixer

STRIDE = 16
"""Pixels a side of a cell of its map: that of the patches of most hosts."""


class NanoProposal(nn.Module):
    """Images (B, 3, H, W) -> (B, 1), the mean of the map that `features` gives, (B, 1, H / 16, W / 16).

    Patches of 4 x 4 pixels, two halvings, then blocks of a wide depth-wise and two point-wise convolutions on the
    hosts' own grid, which see most of it: 0.009 GMACs at 224 pixels, 1 % of DeiT-Tiny, 0.05 % of ViT-B.
    """

    def __init__(self, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        narrow, middle = width // 4, width // 2
        self.features = nn.Sequential(
            nn.Conv2d(3, narrow, 4, 4, bias=False), nn.BatchNorm2d(narrow), nn.ReLU(),
            *_halving(narrow, middle),
            *_halving(middle, width),
            *(Mixer(nn.Conv2d, nn.BatchNorm2d, width, (7, 7)) for _ in range(depth)),
            nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 1, 1),
        )  # fmt: skip
        self.pretrained_cfg = {
            "input_size": (3, 224, 224), "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD,
            "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center", "num_classes": 1,
        }  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images).mean((2, 3))


def _halving(inward: int, outward: int) -> tuple[nn.Module, ...]:
    """Half as many cells a side, each from 3 x 3."""
    return (
        nn.Conv2d(inward, inward, 3, 2, 1, groups=inward, bias=False), nn.BatchNorm2d(inward),
        nn.Conv2d(inward, outward, 1, bias=False), nn.BatchNorm2d(outward), nn.ReLU(),
    )  # fmt: skip

"""A proposal for photographs, a small ConvNet trained by distillation from a host to rank patches, without labels."""

from __future__ import annotations

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from .nano_video import Mixer

STRIDE = 16
"""Side of a cell of its map in pixels, the patch size of most hosts."""


class NanoProposal(nn.Module):
    """Images (B, 3, H, W) -> (B, 1), the mean of the map (B, 1, H / 16, W / 16) that `features` returns.

    Patches of 4 x 4 pixels, two downsampling layers of stride 2, then blocks of a 7 x 7 depth-wise and two point-wise
    convolutions on a grid of patches of 16 pixels, most of which is in their receptive field. Its cost is 0.009 GMACs
    at 224 pixels, 1 % of DeiT-Tiny, 0.05 % of ViT-B.
    """

    def __init__(self, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        narrow, middle = width // 4, width // 2
        self.features = nn.Sequential(
            nn.Conv2d(3, narrow, 4, 4, bias=False), nn.BatchNorm2d(narrow), nn.ReLU(),
            *_downsample(narrow, middle),
            *_downsample(middle, width),
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


def _downsample(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    """Layers that halve height and width: a 3 x 3 depth-wise convolution of stride 2, then a point-wise one."""
    return (
        nn.Conv2d(in_channels, in_channels, 3, 2, 1, groups=in_channels, bias=False), nn.BatchNorm2d(in_channels),
        nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU(),
    )  # fmt: skip

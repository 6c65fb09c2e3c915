"""The bundled video models: a nano VideoMAE, and the nano 3-D ConvNet that is its proposal."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from .hf_video import on_one_device

SIZE, FRAMES, CLASSES = 64, 8, 80
MEAN = STD = (0.5, 0.5, 0.5)


def nano_video(num_labels: int = CLASSES, image_size: int = SIZE, num_frames: int = FRAMES) -> Any:
    """A transformers `VideoMAEForVideoClassification` of 0.7 M parameters: depth 6, width 96, 3 heads, mean pooling.

    It reads clips (B, 8, 3, 64, 64) as 4 x 8 x 8 patches, each of 2 frames of 8 x 8 pixels.

    Raises:
        InputError: transformers is not installed.
    """
    try:
        from transformers import VideoMAEConfig, VideoMAEForVideoClassification
    except ImportError as error:
        raise InputError(
            f"nano_video is a model of transformers ({error.name} is not installed): pip install 'tokensieve[hf]'."
        ) from None
    config = VideoMAEConfig(
        image_size=image_size,
        patch_size=8,
        num_frames=num_frames,
        tubelet_size=2,
        hidden_size=96,
        num_hidden_layers=6,
        num_attention_heads=3,
        intermediate_size=384,
        num_labels=num_labels,
        use_mean_pooling=True,
    )
    model = on_one_device(VideoMAEForVideoClassification(config))
    model.pretrained_cfg = {"mean": MEAN, "std": STD}
    return model


class VideoClassifier(nn.Module):
    """Clips (B, 3, T, H, W) -> logits (B, classes): `features` returns the last feature map, `head` classifies it."""

    pretrained_cfg: dict[str, Any]
    clip_size: tuple[int, int, int]

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features, self.head = features, head

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.features(clips))


class NanoVideoFeatures(nn.Module):
    """Clips (B, 3, T, H, W) -> features (B, 48, T / 2, H / 8, W / 8), one cell for each patch of the nano VideoMAE.

    Three strided convolutions, of which the first has stride 2 in time, then blocks of a 3 x 5 x 5 depth-wise
    convolution over time and space and two point-wise convolutions.
    """

    channels = 48

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        width = self.channels
        self.stem = nn.Sequential(
            *_conv(3, width // 3, (2, 3, 3), (2, 2, 2)),
            *_conv(width // 3, width // 2, (1, 3, 3), (1, 2, 2)),
            *_conv(width // 2, width, (1, 3, 3), (1, 2, 2)),
        )
        self.stages = nn.Sequential(
            *(Mixer(nn.Conv3d, nn.BatchNorm3d, width, (3, 5, 5)) for _ in range(depth)), nn.ReLU()
        )

    def forward(self, clips: Tensor) -> Tensor:
        return self.stages(self.stem(clips))


class NanoVideoHead(nn.Module):
    """Features (B, 48, t, h, w) -> logits (B, num_classes): average pooling, then a linear layer."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.fc = nn.Linear(NanoVideoFeatures.channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc(features.mean((2, 3, 4)))


def nano_video_proposal(num_classes: int = CLASSES) -> VideoClassifier:
    """The nano 3-D ConvNet with its classifier: clips (B, 3, 8, 64, 64) -> logits (B, num_classes)."""
    model = VideoClassifier(NanoVideoFeatures(), NanoVideoHead(num_classes))
    model.pretrained_cfg, model.clip_size = {"mean": MEAN, "std": STD}, (FRAMES, SIZE, SIZE)
    return model


class Mixer(nn.Module):
    """A residual block: a depth-wise convolution and its BatchNorm, then two point-wise convolutions with a ReLU
    between them. `conv` and `norm` are `Conv2d` and `BatchNorm2d`, or their 3-D versions for clips."""

    def __init__(self, conv: Any, norm: type[nn.Module], width: int, kernel: tuple[int, ...]) -> None:
        super().__init__()
        padding = tuple(side // 2 for side in kernel)
        self.across = conv(width, width, kernel, padding=padding, groups=width, bias=False)
        self.norm = norm(width)
        self.wide = conv(width, 3 * width // 2, 1)
        self.act = nn.ReLU()
        self.narrow = conv(3 * width // 2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(self.act(self.wide(self.norm(self.across(x)))))


def _conv(
    in_channels: int, out_channels: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> tuple[nn.Module, ...]:
    convolution = nn.Conv3d(in_channels, out_channels, kernel, stride, (0, 1, 1), bias=False)
    return convolution, nn.BatchNorm3d(out_channels), nn.ReLU()

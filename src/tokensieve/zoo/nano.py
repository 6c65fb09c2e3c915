"""The bundled models: a nano ViT, a nano ConvNeXt, and the nano ConvNet that is their proposal. Their weights are small
enough to be part of the package."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from timm.layers import HybridEmbed
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .nano_proposal import NanoProposal
from .nano_video import Mixer, nano_video, nano_video_proposal

SIZE, CLASSES = 112, 10
MEAN = STD = (0.5, 0.5, 0.5)


def nano_vit(num_classes: int = CLASSES, img_size: int | tuple[int, int] = SIZE) -> VisionTransformer:
    """A plain timm ViT of 1.4 M parameters: 14 x 14 patches of 8 pixels, class token, depth 6, width 128, 4 heads.

    Patches are embedded by three convolutions of stride 2 (Xiao et al., "Early convolutions help transformers see
    better", NeurIPS 2021): with a single convolution, a model as small as this does not learn fine strokes.
    """
    stem = nn.Sequential(*_conv(3, 32, 3, 2), *_conv(32, 64, 3, 2), *_conv(64, 128, 3, 2), nn.Conv2d(128, 128, 1))
    model = VisionTransformer(
        img_size=img_size,
        embed_layer=partial(HybridEmbed, backbone=stem, proj=False),
        patch_size=1,
        embed_dim=128,
        depth=6,
        num_heads=4,
        num_classes=num_classes,
        class_token=True,
    )
    model.pretrained_cfg = _config(img_size)
    return model


def nano_convnext(num_classes: int = CLASSES, img_size: int | tuple[int, int] = SIZE) -> ConvNeXt:
    """A plain timm ConvNeXt of 1.7 M parameters, a hierarchical host, with stages of 2, 2, 6 and 2 blocks.

    Its stem is two overlapping convolutions, for the same reason as in `nano_vit`. Layer scale starts at 1: with the
    usual 1e-6 its accuracy stays at chance. `img_size` is only recorded in `pretrained_cfg`.
    """
    model = ConvNeXt(
        depths=(2, 2, 6, 2),
        dims=(32, 64, 128, 192),
        stem_type="overlap_tiered",
        ls_init_value=1.0,
        num_classes=num_classes,
    )
    model.pretrained_cfg = _config(img_size)
    return model


class NanoConvNet(nn.Module):
    """A classifier whose last feature map has one cell for each patch of the nano ViT.

    Images (B, 3, 112, 112) -> logits (B, num_classes); `features` maps them to (B, 64, 14, 14). It has three
    convolutions of stride 2, then blocks of a 7 x 7 depth-wise and two point-wise convolutions on the 14 x 14 cells.
    """

    def __init__(self, num_classes: int = CLASSES, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_conv(3, width // 4, 3, 2),
            *_conv(width // 4, width // 2, 3, 2),
            *_conv(width // 2, width, 3, 2),
            *(Mixer(nn.Conv2d, nn.BatchNorm2d, width, (7, 7)) for _ in range(depth)),
            nn.ReLU(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, num_classes)
        self.pretrained_cfg = _config(SIZE)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.pool(self.features(images)).flatten(1))


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int, padding: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
    return convolution, nn.BatchNorm2d(out_channels), nn.ReLU()


def _config(size: int | tuple[int, int]) -> dict[str, object]:
    """The entries of timm's `pretrained_cfg` for preprocessing."""
    height, width = (size, size) if isinstance(size, int) else size
    return {
        "input_size": (3, height, width), "mean": MEAN, "std": STD, "interpolation": "bicubic", "crop_pct": 1.0,
        "crop_mode": "center", "num_classes": CLASSES,
    }  # fmt: skip


def bundled_weights(name: str) -> Path:
    """The path at which the weights of a bundled model are stored; the file may be missing."""
    return Path(__file__).parent / "weights" / f"{name}.safetensors"


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "nano_vit": nano_vit,
    "nano_convnet": NanoConvNet,
    "nano_convnext": nano_convnext,
    "nano_proposal": NanoProposal,
    "nano_video": nano_video,
    "nano_video_proposal": nano_video_proposal,
}
"""Name -> builder of this project's own models. `tokensieve train nano` trains the image models, `tokensieve train
nano_video` and `train nano_video_proposal` the video models."""
BUNDLED = {name: build for name, build in BUILDERS.items() if bundled_weights(name).is_file()}
"""Name -> builder of the models whose weights are part of the package."""

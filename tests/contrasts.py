"""A small classifier whose tokens differ, and images of unlike contrast: some have many tokens that are alike."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

SIZE = (3, 64, 64)


def classifier(seed: int = 0) -> VisionTransformer:
    """Four blocks of 64 patches and a class token, with large random weights."""
    torch.manual_seed(seed)
    model = VisionTransformer(
        img_size=64, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=7, mlp_ratio=2.0
    ).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def images(count: int) -> Tensor:
    """Noise (count, *SIZE) of contrasts from 0.05 to 2, in random order."""
    noise = torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(2))
    return noise * torch.linspace(0.05, 2, count)[order, None, None, None]

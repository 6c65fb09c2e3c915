"""A small classifier whose answers differ between recipes, and images for it."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

HALF = "guarded(r=(0, 0, 6, 6), source_guard=0.0)"
"""Leaves two blocks alone."""
THIRD = "guarded(r=(0, 5, 5, 2))"
KEPT = "papr(keep=0.4, significance=centre)"


def classifier(depth: int = 4, **settings) -> nn.Module:
    """A ViT that reads 32 x 32 pixels as 16 patches; its weights are large enough to tell images apart."""
    torch.manual_seed(1)
    words = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3, "num_classes": 7} | settings
    model = timm.models.VisionTransformer(depth=depth, **words).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    return model


def pictures(count: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))

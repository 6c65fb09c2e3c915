"""MACs of segmenters, as the papers count them and by hand."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from tokensieve import segmentation
from tokensieve.measure import macs
from tokensieve.segmentation.resize import Resize
from tokensieve.zoo.models import without_memory

BASE, LARGE = "vit_base_patch16_224", "vit_large_patch16_224"


@pytest.mark.parametrize(
    ("name", "size", "classes", "width", "heads", "printed"),
    [
        (BASE, 512, 150, 384, 6, "109.9"),
        (LARGE, 640, 150, 512, 8, "617.0"),
        (LARGE, 480, 59, 512, 16, "315.4"),
        (LARGE, 512, 171, 512, 16, "366.9"),
    ],
)
def test_bases_to_the_printed_digit(name: str, size: int, classes: int, width: int, heads: int, printed: str) -> None:
    exits = (5, 7, 11) if name == BASE else (7, 15, 23)
    with without_memory():
        model = segmentation.segvit(timm.create_model(name, img_size=size), classes, exits, width, heads).eval()
    assert f"{macs(model, fvcore_compat=True) / 1e9:.1f}" == printed


def test_by_hand() -> None:
    """One block of two, one head of one layer; 6 patches, no class token."""
    n, d, w, k, pixels = 6, 16, 12, 3, 24 * 16
    backbone = VisionTransformer(img_size=(24, 16), patch_size=8, embed_dim=d, depth=2, num_heads=2)
    model = segmentation.segvit(backbone, k, (0,), width=w, heads=3, layers=1).eval()
    block = 12 * n * d * d + 2 * n * n * d
    mixing = 4 * k * w * w + 2 * k * k * w
    reading = 2 * (n + k) * w * w + 2 * n * k * w
    pure = n * 3 * 64 * d + block + n * d * w + mixing + reading + 8 * k * w * w + 2 * k * w
    assert macs(model) == pure
    norms = 5 * (2 * n * d + n * w + 3 * k * w)
    assert macs(model, fvcore_compat=True) == pure + norms + 2 * 4 * k * pixels


@pytest.mark.parametrize("published", [1, 2])
def test_a_resize_counts_as_often_as_the_published_code_does_it(published: int) -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Resize(published), Resize()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(images, (8, 10)), (8, 10))

    module, images = Twice(), torch.randn(1, 3, 4, 5)
    large = module.first(images, (8, 10))
    assert large.shape == (1, 3, 8, 10)
    assert module.second(large, (8, 10)) is large
    assert macs(module, (3, 4, 5), fvcore_compat=True) == (published + 1) * 4 * 3 * 80
    assert macs(module, (3, 4, 5)) == 0

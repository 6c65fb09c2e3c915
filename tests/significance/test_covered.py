"""Images that are no multiple of the patch: the map is of what the host's grid covers, and ranks its patches right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tokensieve import PaPr, sieve


def timm_vit(**settings: Any) -> nn.Module:
    return VisionTransformer(patch_size=14, embed_dim=32, depth=2, num_heads=2, num_classes=5, **settings).eval()


def dinov2() -> nn.Module:
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    return Dinov2Model(Dinov2Config(**sizes, image_size=224, patch_size=14)).eval()


TOKENS: dict[str, Callable[[], nn.Module]] = {
    "transformers": dinov2,
    "padded": lambda: timm_vit(img_size=224, dynamic_img_size=True, dynamic_img_pad=True),
}


def exact(patch: int) -> nn.Module:
    """A map that knows: its means over patches, where the images that it gets are a whole number of them."""

    class Means(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return F.avg_pool2d(images.mean(1, keepdim=True), patch)

    return Means()


@pytest.mark.parametrize("name", TOKENS)
def test_every_bright_patch_is_ranked_at_its_own_place(name: str) -> None:
    fast = sieve(TOKENS[name](), PaPr(keep=0.01, proposal=exact(14), proposal_norm="shared", order="significance"))
    rows, columns = fast.host.embed(torch.zeros(1, 3, 256, 256)).grid
    assert (rows, columns) == ((19, 19) if name == "padded" else (18, 18))
    images = torch.zeros(rows * columns, 3, 19 * 14, 19 * 14)
    for index in range(rows * columns):
        top, left = index // columns * 14, index % columns * 14
        images[index, :, top : top + 14, left : left + 14] = 1
    ranked = [fast.trace(part).kept[:, 0] for part in images[..., :256, :256].split(64)]
    assert torch.equal(torch.cat(ranked), torch.arange(rows * columns))


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224"])
def test_the_first_stage_of_hosts_with_stages(name: str) -> None:
    settings = {"img_size": 64, "window_size": 2} if name.startswith("swin") else {}
    model = timm.create_model(name, **settings).eval()
    seen: list[tuple[int, ...]] = []

    def look(images: Tensor) -> Tensor:
        seen.append(tuple(images.shape))
        return F.avg_pool2d(images.mean(1), 4)

    size = 64 if name.startswith("swin") else 66
    fast = sieve(model, PaPr(keep=0.5, significance=look))
    fast(torch.rand(1, 3, size, size))
    assert seen == [(1, 3, 64, 64)]


def test_images_of_whole_patches_are_given_as_they_are() -> None:
    model, images = timm_vit(img_size=224), torch.rand(1, 3, 224, 224)
    assert sieve(model).covered(images) is images

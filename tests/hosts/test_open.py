"""Which models are opened, and how the others are refused."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from tokensieve import UnsupportedHost, sieve
from tokensieve.hosts import open_host


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("cait_xxs24_224", {"depth": 1}, "class-attention"),
        ("xcit_nano_12_p16_224", {"depth": 1}, "cross-covariance"),
        ("vit_relpos_small_patch16_224", {"depth": 1}, "relative position bias"),
        ("resnet18", {}, "no opener"),
    ],
)
def test_other_architectures_are_refused_by_name(name: str, settings: dict, reason: str) -> None:
    model = timm.create_model(name, **settings)
    with pytest.raises(UnsupportedHost, match=f"{type(model).__name__} cannot be sieved.*{reason}.*VisionTransformer"):
        sieve(model, "tome(r=4)")


def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=32, num_heads=2)


def test_wrapped_models_are_refused_with_what_would_work() -> None:
    with pytest.raises(UnsupportedHost, match=r"sieve model\.module"):
        open_host(nn.DataParallel(vit()))
    with pytest.raises(UnsupportedHost, match=r"then torch\.compile"):
        open_host(torch.compile(vit()))
    with pytest.raises(UnsupportedHost, match=r"fast\.model"):
        open_host(sieve(vit()))
    with pytest.raises(
        UnsupportedHost, match=r"it is sieved already.*fast\.model"
    ):  # by the other class of sieved models
        open_host(sieve(timm.create_model("convnext_atto")))
    with pytest.raises(UnsupportedHost, match=r"VisionTransformer cannot be sieved: it is a traced graph"):
        open_host(torch.fx.GraphModule(nn.Module(), torch.fx.Graph(), "VisionTransformer"))
    with pytest.raises(UnsupportedHost, match="no opener"):
        open_host(nn.Sequential(vit()))


def test_a_subclass_is_not_guessed() -> None:
    class Mine(timm.models.VisionTransformer):
        pass

    with pytest.raises(UnsupportedHost, match="Mine cannot be sieved"):
        open_host(Mine(depth=1, embed_dim=32, num_heads=2))


def test_an_unknown_attention_takes_nothing_inside_its_block() -> None:
    class Mine(type(vit().blocks[0].attn)):  # type: ignore[misc]
        pass

    model = vit()
    model.blocks[0].attn.__class__ = Mine
    sieve(model, "random(keep=0.5)")(torch.randn(1, 3, 224, 224))
    with pytest.raises(UnsupportedHost, match="its attention Mine is unknown"):
        sieve(model, "tome(r=4)")

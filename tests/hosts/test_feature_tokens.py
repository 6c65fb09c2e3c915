"""timm's vision transformers made with `features_only=True`: maps of some blocks, put back on the grid one by one."""

from __future__ import annotations

import zlib
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.models._features import FeatureGetterNet
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tests.reference.hf_hosts import seeded
from tests.reference.vit import reference_forward
from tokensieve import InputError, measure, sieve

SIZES = {"img_size": (32, 40), "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 0}
MODELS: dict[str, Any] = {
    "vit": partial(VisionTransformer, **SIZES, init_values=0.1, reg_tokens=2),
    "eva": partial(Eva, **SIZES, use_rot_pos_emb=True),
    "beit": partial(Beit, **SIZES, use_rel_pos_bias=True, use_abs_pos_emb=False),
}
FORMS = {
    "three": {"out_indices": (0, 2, 3)},
    "last": {"out_indices": [-3, -1], "norm": True},
    "rows": {"out_indices": 2, "output_fmt": "NLC"},
    "whole": {"out_indices": (1, 2), "prune": False},
}
models = pytest.mark.parametrize("model", MODELS)
forms = pytest.mark.parametrize("form", FORMS)


def net(model: str, form: str) -> FeatureGetterNet:
    return FeatureGetterNet(seeded(MODELS[model], zlib.crc32(model.encode())), **FORMS[form]).double().eval()


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 32, 40, generator=torch.Generator().manual_seed(batch)).double()


@models
@forms
def test_identity_settings_are_the_model_bit_for_bit(model: str, form: str) -> None:
    host = net(model, form)
    with torch.no_grad():
        whole = host(images())
        for recipe in ("", "tome(r=0)"):
            told = sieve(host, recipe)(images())
            assert len(told) == len(whole)
            assert all(torch.equal(one, other) for one, other in zip(told, whole, strict=True))


@models
@forms
@pytest.mark.parametrize("fill", ["nearest", "zero"])
def test_maps_are_what_forward_intermediates_restores(model: str, form: str, fill: str) -> None:
    host = net(model, form)
    recipe, settings = "random(keep=0.7) + tome(r=2)", FORMS[form]
    with torch.no_grad():
        told = sieve(host, recipe)(images(), fill=fill)
        by_hand = sieve(host.model, recipe).forward_intermediates(
            images(),
            indices=host.out_indices,
            norm=settings.get("norm", False),
            output_fmt=settings.get("output_fmt", "NCHW"),
            intermediates_only=True,
            restore=True,
            fill=fill,
        )
    assert len(told) == len(by_hand)
    if fill == "nearest":
        for one, other in zip(told, by_hand, strict=True):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
    assert [x.shape for x in told] == [x.shape for x in by_hand]


@pytest.mark.parametrize("model", ["vit", "eva"])
def test_merged_patches_are_those_of_the_slow_reference(model: str) -> None:
    host = net(model, "three")
    slow = reference_forward(seeded(MODELS[model], zlib.crc32(model.encode())), images(), r=3)
    with torch.no_grad():
        told = sieve(host, "tome(r=3)")(images())
    for index, maps in zip((0, 2, 3), told, strict=True):
        for n, (x, groups) in enumerate(slow.behind[index]):
            for token, group in enumerate(groups):
                for patch in group:
                    torch.testing.assert_close(maps[n].flatten(1)[:, patch], x[token], atol=1e-9, rtol=1e-9)


def test_made_by_name_it_is_counted_and_traced() -> None:
    host = timm.create_model(
        "vit_tiny_patch16_224", features_only=True, out_indices=(1, 3), depth=5, embed_dim=24, num_heads=2, img_size=64
    ).eval()
    fast = sieve(host, "tome(r=3)")
    assert measure.macs(fast, (3, 64, 64)) < measure.macs(host, (3, 64, 64)) == measure.macs(sieve(host), (3, 64, 64))
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        trace = fast.trace(pictures)
        assert all(torch.equal(one, other) for one, other in zip(trace.output, fast(pictures), strict=True))
    assert trace.tokens_per_block == [14, 11, 8, 5]  # the fifth block is no part of it
    assert [x.shape[0] for x in fast(pictures[:0])] == [0, 0]
    with pytest.raises(InputError, match="is called with images"):
        fast(pictures, labels=1)

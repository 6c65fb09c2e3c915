"""Empty batches: methods on every form of host answer with no rows, of the shape that they have for some."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import pytest
import torch
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from tests.reference.cases import FIXED, Facts
from tests.reference.hf_hosts import (
    beit_forms,
    beit_images,
    hf_forms,
    hf_images,
    open_clip_forms,
    open_clip_images,
    seeded,
)
from tests.reference.hf_staged import hf_staged_forms
from tests.reference.hosts import host_forms, host_images
from tests.reference.torchvision_hosts import torchvision_images, torchvision_staged, torchvision_vits
from tokensieve import RecipeError, UnsupportedHost, sieve
from tokensieve.hosts import open_host

HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
FORMS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]] = {
    **{f"timm {name}": (form, host_images) for name, form in host_forms().items()},
    **{f"beit {name}": (form, lambda _: beit_images()) for name, form in beit_forms().items()},
    **{f"hf {name}": (form, hf_images) for name, form in hf_forms().items()},
    **{f"open_clip {name}": (form, lambda _: open_clip_images()) for name, form in open_clip_forms().items()},
    **{f"torchvision {name}": (form, torchvision_images) for name, form in torchvision_vits().items()},
}
SWIN = {"img_size": 64, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4}
STAGED: dict[str, Callable[[], nn.Module]] = {
    "timm convnext": lambda: seeded(lambda: ConvNeXt(depths=(1, 2, 1, 1), dims=(8, 16, 24, 32)), 1),
    "timm swin": lambda: seeded(lambda: SwinTransformer(**SWIN), 2),
    **{f"hf {name}": form for name, form in hf_staged_forms().items()},
    **{f"torchvision {name}": form for name, form in torchvision_staged().items()},
}
RECIPES = [cases[0].text for cases in FIXED.values()] + ["papr(keep=0.5, proposal=test_resnet)", "corrected()"]
SHARE = 3
"""Each form takes every third recipe, the next form those beside them: a method never learns its host."""


def tensors(output: Any) -> Iterator[Tensor]:
    """All tensors of whatever a host returns."""
    if isinstance(output, Tensor):
        yield output
    elif output is not None and not isinstance(output, float):
        for part in output.values() if hasattr(output, "values") else output:
            yield from tensors(part)


def assert_empty(fast: Any, images: Tensor) -> None:
    """Answered like some images, but with no row; as a call, as a trace, and as features."""
    none = images[:0]
    some, trace = fast.trace(images), fast.trace(none)
    like = {"output": list(tensors(some.output)), "features": list(tensors(fast.forward_features(images)))}
    for kind, found in (("output", fast(none)), ("output", trace.output), ("features", fast.forward_features(none))):
        answers = list(tensors(found))
        assert [(0, *one.shape[1:]) for one in like[kind]] == [tuple(one.shape) for one in answers]
        assert [one.dtype for one in like[kind]] == [one.dtype for one in answers]
    assert trace.tokens_per_block == some.tokens_per_block
    assert trace.source.shape == (0, *some.source.shape[1:])
    assert [mask.kept.shape for mask in trace.masks] == [(0, mask.kept.shape[1]) for mask in some.masks]
    assert (trace.significance is None) == (some.significance is None)
    assert trace.significance is None or trace.significance.shape[0] == 0


@pytest.mark.parametrize("name", FORMS)
def test_methods_take_an_empty_batch(name: str) -> None:
    form, images_of = FORMS[name]
    model, seen = form(), 0
    images, host = images_of(model), open_host(model)
    with torch.no_grad():
        facts = Facts(prod(host.embed(images).grid), len(host.blocks))
        for text in RECIPES[list(FORMS).index(name) % SHARE :: SHARE]:
            if "ats(" in text and "adaptive=False" not in text:
                text = text[:-1] + ", adaptive=False)"  # how many stay depends on the image
            try:
                fast = sieve(model, text.replace("{slimming}", repr(facts.nested(4))), pretrained=False, **HALF)
            except (UnsupportedHost, RecipeError):
                continue  # refused, and so it is in the matrix
            assert_empty(fast, images)
            seen += 1
    assert seen >= 2


@pytest.mark.parametrize("name", STAGED)
@pytest.mark.parametrize("significance", ["centre", "random", "mean"])
def test_hosts_with_stages_take_an_empty_batch(significance: str, name: str) -> None:
    model = STAGED[name]()
    size = getattr(getattr(model, "config", None), "image_size", 64)
    size = (size, size) if isinstance(size, int) else size
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    recipe = f"papr(keep=0.5, significance={significance}, proposal=test_resnet)"
    with torch.no_grad():
        assert_empty(sieve(model, recipe, pretrained=False, **HALF), images)


def test_adaptive_sampling_takes_an_empty_batch() -> None:
    model = host_forms()["class-token"]()
    with torch.no_grad():
        assert sieve(model, "ats(tokens=12)")(torch.empty(0, 3, 40, 40)).shape == (0, 7)


def test_training_takes_an_empty_batch() -> None:
    """A worker that has none left gives gradients of zero, as for torch's own layers."""
    model = host_forms()["class-token"]().train()
    sieve(model, "evit(keep=0.6) + tome(r=2, layers=0:1)")(torch.empty(0, 3, 40, 40)).sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    assert model.blocks[0].mlp.fc1.weight.grad is not None

"""torch.jit.trace of a sieved model: a graph answers as the model for other images and batches, or is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from math import prod

import pytest
import torch
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from tests.reference.cases import FIXED, Facts
from tests.reference.hf_hosts import seeded
from tests.reference.hosts import host_forms, host_images
from tokensieve import ExportError, PaPr, sieve
from tokensieve._recording import as_int
from tokensieve.hosts import open_host

pytestmark = pytest.mark.slow

HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
RECIPES = [case.text for name, cases in FIXED.items() for case in cases if "random" not in name]
STAGED: dict[str, Callable[[], nn.Module]] = {
    "convnext": lambda: ConvNeXt(depths=(1, 2, 1, 1), dims=(8, 16, 24, 32)),
    "swin": lambda: SwinTransformer(64, embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=4),
}


def traced(fast: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer names every size that is not the batch
        return torch.jit.trace(fast, images)


@torch.no_grad()
def assert_follows(fast: nn.Module, images: Tensor) -> None:
    """Traced on these images, it answers for others, and for other numbers of them."""
    graph = traced(fast, images)
    for batch in (1, 2, 11):
        others = torch.randn(batch, *images.shape[1:])
        torch.testing.assert_close(graph(others), fast(others), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "form"), [*((text, "class-token") for text in RECIPES), *((text, "eva02") for text in RECIPES[::4])]
)
def test_every_method_can_be_traced(text: str, form: str) -> None:
    model = host_forms()[form]()
    images, host = host_images(model), open_host(model)
    facts = Facts(prod(host.embed(images).grid), len(host.blocks))
    assert_follows(sieve(model, text.replace("{slimming}", repr(facts.nested(4))), pretrained=False), images)


@pytest.mark.parametrize("keep", [0.6, 0.7])
def test_a_share_of_tokens_is_the_same_number_in_a_trace(keep: float) -> None:
    """0.6 of 25 is 15 in doubles and a little more in float32, in which tracing multiplies sizes."""
    model = host_forms()["class-token"]()
    assert_follows(sieve(model, f"evit(keep={keep})"), host_images(model))


@pytest.mark.parametrize("name", STAGED)
@pytest.mark.parametrize("text", ["papr(keep=0.6, significance=centre)", "papr(keep=0.6, proposal=test_resnet)"])
def test_hosts_with_stages_can_be_traced(text: str, name: str) -> None:
    model = seeded(STAGED[name], 1)
    assert_follows(sieve(model, text, pretrained=False, **HALF), torch.randn(9, 3, 64, 64))


@pytest.mark.parametrize("significance", ["mean", "cam", "eigen-cam"])
def test_maps_that_can_be_traced(significance: str) -> None:
    """With more images than a proposal reads at once, which a trace must not count."""
    model = host_forms()["class-token"]()
    recipe = PaPr(keep=0.5, proposal="test_resnet", significance=significance)
    assert_follows(sieve(model, recipe, pretrained=False, **HALF), host_images(model, 200))


@pytest.mark.parametrize("significance", ["random", "grad-cam", "grad-cam++", "score-cam"])
def test_maps_that_cannot_be_traced_say_so(significance: str) -> None:
    model = host_forms()["class-token"]()
    recipe = PaPr(keep=0.5, proposal="test_resnet", significance=significance)
    fast = sieve(model, recipe, pretrained=False, **HALF)
    words = rf"trace cannot record the map {significance.replace('+', '.')}, which"
    with pytest.raises(ExportError, match=words):
        traced(fast, host_images(model))


def test_a_size_is_an_integer() -> None:
    assert as_int(5) == 5
    assert type(as_int(torch.tensor(5))) is int

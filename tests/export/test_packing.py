"""Weights packed for the CPU."""

from __future__ import annotations

import pytest
import torch

from tests.reference.hosts import host_forms, host_images
from tokensieve import InputError, prepack, sieve
from tokensieve.export import packing
from tokensieve.export.packing import PackedLinear, packs_bf16

FORMS = host_forms()
needs_bf16 = pytest.mark.skipif(not packs_bf16(), reason="this processor packs no bf16 weights")


@pytest.mark.parametrize("name", ["class-token", "siglip", "eva02", "rms-swiglu", "distilled"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])
@torch.no_grad()
def test_a_packed_host_gives_the_same_answer(name: str, dtype: torch.dtype) -> None:
    model = FORMS[name]().to(dtype)
    images = host_images(model).to(dtype)
    packed = prepack(model)
    assert any(isinstance(part, PackedLinear) for part in packed.modules())
    assert not any(isinstance(part, PackedLinear) for part in model.modules())
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    for recipe in ("", "random(keep=0.6) + tome(r=3)"):
        expected = sieve(model, recipe)(images)
        close = tolerance * max(1, expected.abs().max().item())
        assert (sieve(packed, recipe)(images) - expected).abs().max() <= close


def test_it_shares_the_weights_and_shows_the_same_keys() -> None:
    model = FORMS["class-token"]()
    packed = prepack(model)
    assert type(packed) is type(model)
    assert list(packed.state_dict()) == list(model.state_dict())
    for key, value in packed.state_dict(keep_vars=True).items():
        assert value.data_ptr() == model.state_dict(keep_vars=True)[key].data_ptr()


def test_gradients_are_refused_not_lost() -> None:
    model = FORMS["class-token"]()
    with pytest.raises(InputError, match=r"torch\.no_grad\(\)"):
        prepack(model)(host_images(model))


def test_other_precisions_are_refused() -> None:
    with pytest.raises(InputError, match="fp32 or bf16"):
        prepack(FORMS["class-token"]().double())


def test_a_processor_without_bf16_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "packs_bf16", lambda: False)
    with pytest.raises(InputError, match="no instructions for bf16"):
        prepack(FORMS["class-token"]().bfloat16())
    assert prepack(FORMS["class-token"]()) is not None

"""Attention kernels: which ones a call was given, seen from outside."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.reference.hosts import host_forms, host_images
from tokensieve import sieve
from tokensieve.measure.attention import attention_kernels, lost_attention

HEADS = torch.randn(2, 3, 10, 8)


def forced(backend: SDPBackend, call: object) -> object:
    with sdpa_kernel(backend):
        return call()  # type: ignore[operator]


def test_a_forced_kernel_is_named() -> None:
    attend = partial(F.scaled_dot_product_attention, HEADS, HEADS, HEADS)
    assert attention_kernels(partial(forced, SDPBackend.MATH, attend)) == ("math",)
    assert attention_kernels(partial(forced, SDPBackend.FLASH_ATTENTION, attend)) == ("flash",)


def test_both_are_named_and_nothing_where_there_is_none() -> None:
    attend = partial(F.scaled_dot_product_attention, HEADS, HEADS, HEADS)

    def both() -> None:
        forced(SDPBackend.MATH, attend)
        forced(SDPBackend.FLASH_ATTENTION, attend)

    assert attention_kernels(both) == ("flash", "math")
    assert attention_kernels(lambda: (HEADS @ HEADS.mT).softmax(-1) @ HEADS) == ()


def test_sieving_keeps_the_hosts_fused_kernel_on_the_cpu() -> None:
    model = host_forms()["class-token"]()
    images = host_images(model)
    for recipe in ("random(keep=0.5)", "tome(r=3)"):
        assert attention_kernels(partial(sieve(model, recipe), images)) == ("flash",)


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        (("flash",), ("math",), True),
        (("flash",), ("flash", "math"), True),
        (("flash",), ("efficient",), False),  # still fused
        (("flash", "math"), ("math",), False),  # was never fused throughout
        ((), ("math",), False),
        (("flash",), (), False),
    ],
)
def test_lost_means_fused_before_and_not_after(before: tuple, after: tuple, lost: bool) -> None:
    assert lost_attention(before, after) is lost

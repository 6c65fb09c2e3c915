"""The papers' costs, counted on models with random weights, and the same by hand from the token counts."""

from __future__ import annotations

from functools import cache
from math import ceil

import pytest
import timm
from torch import nn

from tokensieve import sieve
from tokensieve.measure import macs

WIDTH = {"deit_small_patch16_224": 384, "deit_base_patch16_224": 768}
PATCHES, DEPTH = 196, 12


@cache
def deit(name: str) -> nn.Module:
    return timm.create_model(name, pretrained=False).eval()


def by_hand(name: str, counts: list[tuple[int, int]]) -> int:
    """The papers' cost model: (tokens in attention, tokens in MLP) of each block, MLP ratio 4."""
    d = WIDTH[name]
    blocks = sum(4 * a * d * d + 2 * a * a * d + 8 * m * d * d for a, m in counts)
    return PATCHES * 768 * d + blocks + d * 1000


def counted(name: str, recipe: str) -> float:
    return macs(sieve(deit(name), recipe, pretrained=False))


def evit_counts(keep: float, fuse: bool) -> list[tuple[int, int]]:
    counts, n = [], PATCHES
    for block in range(DEPTH):
        before = n
        if block in (3, 6, 9):
            n = ceil(keep * n) + fuse
        counts.append((before + 1, n + 1))
    return counts


@pytest.mark.parametrize(
    ("keep", "fuse", "printed"),
    [
        (0.9, True, 4.022),
        (0.8, True, 3.477),
        (0.7, True, 3.029),
        (0.6, True, 2.635),
        (0.5, True, 2.309),
        (0.7, False, 2.997),
    ],
)
def test_evit_on_deit_s(keep: float, fuse: bool, printed: float) -> None:
    got = counted("deit_small_patch16_224", f"evit(keep={keep}, fuse={fuse})")
    assert got == by_hand("deit_small_patch16_224", evit_counts(keep, fuse))
    assert round(got / 1e9, 3) == printed


def test_evit_leaves_the_papers_tokens() -> None:
    reads = sieve(deit("deit_small_patch16_224"), "evit(keep=0.7)").plan.reads(PATCHES)
    assert [read.keys for read in reads] == [197] * 4 + [140] * 3 + [100] * 3 + [72] * 2
    assert [read.mlp for read in reads] == [197] * 3 + [140] * 3 + [100] * 3 + [72] * 3


@pytest.mark.versions
@pytest.mark.parametrize(
    ("name", "printed", "digits"), [("deit_small_patch16_224", 3.42, 2), ("deit_base_patch16_224", 13.10, 2)]
)
def test_gtp_costs_what_tome_costs(name: str, printed: float, digits: int) -> None:
    got = counted(name, "gtp(r=8)")
    assert got == counted(name, "tome(r=8)")
    assert got == by_hand(name, [(197 - 8 * block, 189 - 8 * block) for block in range(DEPTH)])
    assert round(got / 1e9, digits) == printed


def predictors(width: int) -> int:
    """DynamicViT's three: Linear(d, d), (d, d/2), (d/2, d/4), (d/4, 2) on the patches that reach each of them."""
    each = width * width + width * width // 2 + width * width // 8 + width // 2
    return each * sum(patches_after(stage) for stage in range(3))


def patches_after(stage: int) -> int:
    return int(PATCHES * 0.7**stage)


@pytest.mark.parametrize(("name", "printed"), [("deit_small_patch16_224", 2.981), ("deit_base_patch16_224", 11.476)])
def test_dynamicvit_with_its_predictors(name: str, printed: float) -> None:
    """The printed number includes the predictors: without them DeiT-S costs 2.878 GMAC and DeiT-B 11.064."""
    fast = sieve(deit(name), "dynamicvit(keep=0.7)", pretrained=False)
    counts = [(patches_after(block // 3) + 1,) * 2 for block in range(DEPTH)]
    assert [read.mlp for read in fast.plan.reads(PATCHES)] == [197] * 3 + [138] * 3 + [97] * 3 + [68] * 3
    host = by_hand(name, counts)
    assert round((host + predictors(WIDTH[name])) / 1e9, 3) == printed
    assert macs(fast) == host + predictors(WIDTH[name])

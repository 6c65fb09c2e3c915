"""Fused attention is kept: nothing as large as B x H x N x N is allocated, by whom and by which operator is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tokensieve import PaPr, Recipe, sieve
from tokensieve.attention import BlockQKV
from tokensieve.measure.attention import attention_kernels
from tokensieve.stream import Sieved

BATCH, HEADS, DEPTH, PATCHES = 2, 4, 4, 196
WIDTH = 32
"""Narrow, so that a block's widest activations, B x N x 3 WIDTH, stay below B x N x N."""
FUSED = "_scaled_dot_product_flash_attention_for_cpu"


def nested(pace: int, last: int | None = None) -> list[list[int]]:
    kept = [list(range(PATCHES - pace * (block + 1))) for block in range(DEPTH)]
    return kept if last is None else [*kept[:-1], list(range(last))]


FLASH: dict[str, Recipe] = {
    "dense": Recipe(),
    "papr": Recipe.of(PaPr(keep=0.8, proposal=nn.Conv2d(3, 4, 32, 32))),
    "papr, centre": Recipe.parse("papr(keep=0.8, significance=centre)"),
    "tome": Recipe.parse("tome(r=13)"),
    "tofu": Recipe.parse("tofu(r=13)"),
    "evit": Recipe.parse("evit(keep=0.8)"),
    "dynamicvit": Recipe.parse("dynamicvit(keep=0.8)"),
    "patch_slimming, A": Recipe.parse(f"patch_slimming(patches={nested(16)}, form=A)"),
    "patch_slimming, A, no patch at last": Recipe.parse(f"patch_slimming(patches={nested(16, 0)}, form=A)"),
    "patch_slimming, B": Recipe.parse(f"patch_slimming(patches={nested(16)}, form=B)"),
    "ats": Recipe.parse("ats(tokens=150)"),
    "ats, one count": Recipe.parse("ats(tokens=150, adaptive=False)"),
    "pitome": Recipe.parse("pitome(r=13)"),
    "diffrate": Recipe.parse("diffrate(drop=6, merge=7)"),
    "guarded": Recipe.parse("guarded(r=10, drop=[0, 0, 16, 6])"),
    "guarded, keys": Recipe.parse("guarded(r=10, metric=keys)"),
    "readout": Recipe.parse("readout()"),
    "several": Recipe.parse("random(keep=0.9) + evit(keep=0.9) + tome(r=4) + readout()"),
}
HEAD_BY_HEAD: dict[str, Recipe] = {
    "gtp": Recipe.parse("gtp(r=13)"),
    "gtp, sparse": Recipe.parse("gtp(r=13, sparsity=0.9)"),
    "mctf": Recipe.parse("mctf(r=13)"),
}
ALL = FLASH | HEAD_BY_HEAD


@dataclass(frozen=True)
class Seen:
    """One tensor that an operator gave."""

    block: int
    """-1 before block 0."""
    operator: str
    shape: tuple[int, ...]
    elements: int
    """That it holds: an expanded view has fewer than its shape says."""


class Watch(TorchDispatchMode):
    """Writes down what every operator gives."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.seen = -1, list[Seen]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, Tensor):
                held = one.untyped_storage().nbytes() // one.element_size()
                name = func.overloadpacket.__name__
                self.seen.append(Seen(self.block, name, tuple(one.shape), min(one.numel(), held)))
        return out


def host() -> VisionTransformer:
    sizes = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "mlp_ratio": 2}
    return VisionTransformer(img_size=224, patch_size=16, num_classes=5, **sizes).eval()


def images() -> Tensor:
    return torch.randn(BATCH, 3, 224, 224)


@contextmanager
def numbered(fast: Sieved, enter: Callable[[int], None]) -> Iterator[None]:
    """`enter` is called with a block's number when its first norm runs."""
    hooks = [
        block.norm1.register_forward_pre_hook(lambda *_, number=number: enter(number))
        for number, block in enumerate(fast.model.blocks)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def watched(recipe: Recipe) -> tuple[Sieved, list[Seen]]:
    fast, batch, watch = sieve(host(), recipe, pretrained=False), images(), Watch()

    def enter(number: int) -> None:
        watch.block = number

    with numbered(fast, enter), watch:
        fast(batch)
    assert {seen.block for seen in watch.seen} == set(range(-1, DEPTH))  # the detector knows where it is
    return fast, watch.seen


def too_large(fast: Sieved, seen: list[Seen], allowed: int = BATCH) -> list[Seen]:
    """What holds more than `allowed` numbers for each pair of the tokens that its block reads.

    Before block 0, where maps look at images as a whole, as many as all heads' attention of all tokens.
    """
    bounds = [allowed * read.keys**2 for read in fast.plan.reads(PATCHES)]
    bounds.append(BATCH * HEADS * (PATCHES + fast.plan.prefix) ** 2 - 1)  # found as number -1
    return [one for one in seen if one.elements > bounds[one.block]]


@pytest.mark.parametrize("name", ALL)
def test_no_tensor_is_as_large_as_all_heads_attention(name: str) -> None:
    """None is even larger than B x N x N: the similarity of all tokens, or one head's attention."""
    fast, seen = watched(ALL[name])
    assert min(read.keys for read in fast.plan.reads(PATCHES)) > 3 * WIDTH  # else the bound would mean nothing
    large = too_large(fast, seen)
    if name.startswith("gtp"):  # its graph, made once before block 0, is looked at as one row; nothing is allocated
        large = [one for one in large if (one.operator, one.shape) != ("view", (BATCH, PATCHES**2))]
    assert large == []


@pytest.mark.parametrize("name", FLASH)
def test_attention_is_the_fused_operator_in_every_block(name: str) -> None:
    fast, seen = watched(FLASH[name])
    outputs = [one for one in seen if one.operator == FUSED and len(one.shape) == 4]
    queries = [(BATCH, HEADS, read.queries, WIDTH // HEADS) for read in fast.plan.reads(PATCHES)]
    adaptive = name == "ats"  # which may keep fewer
    assert [one.block for one in outputs] == list(range(DEPTH))
    assert all(one.shape == shape or adaptive for one, shape in zip(outputs, queries, strict=True))
    assert attention_kernels(partial(fast, images())) == ("flash",)


@pytest.mark.parametrize("name", FLASH)
def test_a_softmax_is_of_one_row_at_most(name: str) -> None:
    fast, seen = watched(FLASH[name])
    reads = fast.plan.reads(PATCHES)
    for one in seen:
        if "softmax" in one.operator:
            assert one.elements <= BATCH * HEADS * reads[one.block].keys, one


@pytest.mark.parametrize("name", HEAD_BY_HEAD)
def test_head_by_head_one_matrix_at_a_time(name: str) -> None:
    fast, seen = watched(HEAD_BY_HEAD[name])
    reads = fast.plan.reads(PATCHES)
    heads = [one for one in seen if one.operator == "_softmax"]
    assert [one.block for one in heads] == [block for block in range(DEPTH) for _ in range(HEADS)]
    assert {one.shape for one in heads} == {(BATCH, 1, read.keys, read.keys) for read in reads}
    fused = [one.block for one in seen if one.operator == FUSED and len(one.shape) == 4]
    assert fused == (list(range(DEPTH)) if name == "mctf" else [])  # GTP's output comes from its matrix


def test_the_control_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """GTP as it would be written without care: the matrix of all heads, one of which is looked at."""

    def naive(self: BlockQKV, head: int) -> Tensor:
        return self._probabilities(self.q, slice(None), slice(None))[:, head]

    monkeypatch.setattr(BlockQKV, "head_probabilities", naive)
    fast, seen = watched(HEAD_BY_HEAD["gtp"])
    caught = too_large(fast, seen, BATCH * HEADS - 1)
    assert {one.block for one in caught} == set(range(DEPTH))
    assert "_softmax" in {one.operator for one in caught}


def test_attention_that_is_not_fused_is_caught() -> None:
    with sdpa_kernel(SDPBackend.MATH):
        fast, seen = watched(FLASH["tome"])
    caught = too_large(fast, seen, BATCH * HEADS - 1)
    assert {one.block for one in caught} == set(range(DEPTH))


@torch.no_grad()
def largest_allocation(attend: Callable[[], object]) -> int:
    """Bytes of the largest piece of memory asked for, inside operators too."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        attend()
    return max(event.nbytes() for event in record.profiler.kineto_results.events() if event.name() == "[memory]")


@pytest.mark.parametrize("weighed", [False, True])
def test_inside_the_operator_too_nothing_is_that_large(weighed: bool) -> None:
    """With the size bias as its mask, which is one row for all queries."""
    count = PATCHES + 1
    q, k, v = torch.randn(3, BATCH, HEADS, count, WIDTH // HEADS)
    weight = torch.rand(BATCH, count) if weighed else None
    attention = BlockQKV(q, k, v, k, weight=weight)
    whole = BATCH * HEADS * count**2 * q.element_size()
    assert largest_allocation(attention.attend) < whole / HEADS
    with sdpa_kernel(SDPBackend.MATH):
        assert largest_allocation(attention.attend) >= whole

"""The walk through the blocks: who acts where, who looks on, and what a slicing limit is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from tests.reference.hosts import host_forms, host_images
from tokensieve import InputError, Recipe, UnsupportedHost, sieve
from tokensieve.forward.walk import FirstTokens, Reads, Step, walk
from tokensieve.measure import SlicingLimit
from tokensieve.methods.base import Evidence, Method, TokenSite
from tokensieve.tokens import Tokens

FORMS = host_forms()


@dataclass(frozen=True)
class Behind(Method):
    """Leaves the first patches behind a block, as an exit would."""

    name: ClassVar[str] = "behind"
    place: ClassVar = "after"
    block: int = 0
    count: int = 5

    def left(self, site: TokenSite) -> int:
        return min(site.tokens, site.prefix + self.count) if site.block == self.block else site.tokens

    def reduce(self, tokens: Tokens, left: int, evidence: Evidence) -> Tokens:
        return tokens.select(torch.arange(left - tokens.prefix).expand(len(tokens.x), -1))


@torch.no_grad()
def test_a_walk_without_an_actor_is_the_host() -> None:
    for name, form in FORMS.items():
        model = form()
        images = host_images(model)
        host = sieve(model).host
        seen: list[Step] = []
        tokens = walk(host.blocks, host.embed(images), watch=[seen.append])
        assert torch.equal(host.head(host.features(tokens)), model(images)), name
        assert [step.block for step in seen] == list(range(len(model.blocks)))
        assert all(torch.equal(a.tokens.x, b.read.x) for a, b in pairwise(seen))


def test_the_first_tokens_are_those_that_taking_them_gives() -> None:
    x = torch.randn(2, 9, 4)
    plain = Tokens(x, 1, (2, 4), table=torch.randn(8, 3))
    rich = plain.tracked().select(torch.tensor([[7, 1, 3, 5, 2], [0, 2, 4, 6, 1]]))
    for tokens in (plain.tracked(), rich, Tokens(x, 1, (2, 4), size=torch.rand(2, 9), weight=torch.rand(2, 9))):
        some = tokens.first(4)
        taken = tokens.take(torch.arange(4).expand(2, -1))
        for field in fields(Tokens):
            mine, theirs = getattr(some, field.name), getattr(taken, field.name)
            if field.name == "table" and tokens.positions is None and tokens.table is not None:
                assert torch.equal(mine, theirs[:3])  # its rows are those of the patches 0, 1, 2
            elif field.name == "positions" and tokens.positions is None:
                assert mine is None
            elif isinstance(theirs, Tensor):
                assert torch.equal(mine, theirs), field.name
            else:
                assert mine == theirs, field.name
    assert plain.first(9) is plain


@torch.no_grad()
def test_the_limit_reads_what_the_recipe_reads() -> None:
    recipe = "papr(keep=0.6, significance=centre) + evit(keep=0.7, layers=(1,)) + tome(r=2, layers=2:) + readout()"
    model = FORMS["class-token"]()
    images = host_images(model)
    fast = sieve(model, recipe)
    counts = fast.reads(images)
    assert counts == fast.trace(images).reads
    seen: list[Reads] = []
    tokens = walk(
        fast.host.blocks, fast.host.embed(images), FirstTokens(counts), [lambda step: seen.append(step.reads)]
    )
    assert seen == counts
    assert torch.equal(SlicingLimit(fast)(images), fast.host.head(fast.host.features(tokens)))


@torch.no_grad()
def test_what_acts_behind_a_block_leaves_it_whole() -> None:
    model = FORMS["registers"]()
    images, depth = host_images(model), len(model.blocks)
    prefix, patches = model.num_prefix_tokens, sieve(model).trace(images).source.shape[1]
    for block in range(depth):
        fast = sieve(model, Behind(block, 5))
        trace = fast.trace(images)
        whole, few = prefix + patches, prefix + 5
        assert trace.tokens_per_block == [whole] * (block + 1) + [few] * (depth - block - 1)
        assert fast.reads(images) == trace.reads
        assert fast.plan.left(patches) == trace.tokens.x.shape[1] == few
        features = fast.forward_intermediates(images, indices=[block], intermediates_only=True)[0]
        assert torch.equal(features, model.forward_intermediates(images, indices=[block], intermediates_only=True)[0])
        assert SlicingLimit(fast)(images).shape == trace.output.shape
    behind_ats = sieve(model, Recipe.parse("ats(tokens=20, layers=(0,))") + Behind(1, 5)).trace(images)
    assert behind_ats.tokens_per_block[2:] == [prefix + 5] * (depth - 2)


@torch.no_grad()
def test_class_attention_is_what_the_block_computes() -> None:
    model = FORMS["class-token"]()
    images = host_images(model)
    trace = sieve(model, "tome(r=4, layers=1:)").trace(images, attention=[0, 2])
    assert list(trace.class_attention) == [0, 2]
    block, (x, _) = model.blocks[0], (model.norm_pre(model._pos_embed(model.patch_embed(images))), None)
    attn = block.attn
    q, k, _ = attn.qkv(block.norm1(x)).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    expected = (q[:, :, :1] @ k.transpose(-2, -1) * attn.scale).softmax(-1)[:, :, 0].mean(1)
    torch.testing.assert_close(trace.class_attention[0], expected)
    assert trace.class_attention[2].shape == (len(images), trace.reads[2].keys)
    torch.testing.assert_close(trace.class_attention[2].sum(1), torch.ones(len(images)))
    assert torch.equal(sieve(model).trace(images, attention=[1]).output.argmax(1), model(images).argmax(1))
    with pytest.raises(InputError, match="must be one of 4 blocks"):
        sieve(model).trace(images, attention=[4])
    with pytest.raises(InputError, match="no class token"):
        sieve(FORMS["siglip"]()).trace(images, attention=[0])


@torch.no_grad()
def test_each_block_says_which_of_its_tokens_stands_for_which_patch() -> None:
    model = FORMS["class-token"]()
    images = host_images(model)
    trace = sieve(model, "papr(keep=0.6, significance=centre) + tome(r=3)").trace(images)
    assert len(trace.sources) == len(model.blocks)
    kept = (trace.sources[0] >= 0).sum(1)
    assert kept.tolist() == [trace.kept.shape[1]] * len(images)
    for source, reads in zip(trace.sources, trace.reads, strict=True):
        assert int(source.max()) == reads.keys - 1
    features = torch.arange(trace.reads[1].keys).float().expand(len(images), -1)[..., None]
    on_grid = trace.restore(features, block=1, fill="zero").flatten(1)
    assert torch.equal(on_grid.long(), trace.sources[1].clamp(min=0))
    with pytest.raises(InputError, match="takes features and one of 4 blocks"):
        trace.restore(features, block=4)


def test_a_closed_block_shows_no_attention() -> None:
    closed = [name for name, form in FORMS.items() if any(b.closed for b in sieve(form()).host.blocks)]
    for name in closed:
        model = FORMS[name]()
        block = next(i for i, b in enumerate(sieve(model).host.blocks) if b.closed)
        if sieve(model).host.class_token:
            with pytest.raises(UnsupportedHost, match="cannot be recorded: in block"):
                sieve(model).trace(host_images(model), attention=[block])

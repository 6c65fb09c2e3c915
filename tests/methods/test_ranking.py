"""A method in a few lines from outside the package, by the parent of those that rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from tests.reference.hosts import host_forms, host_images
from tokensieve import Recipe, RecipeError, sieve
from tokensieve.methods import METHODS, Evidence, Ranking, register
from tokensieve.tokens import Tokens

FORMS = host_forms()


@register
@dataclass(frozen=True)
class Longest(Ranking[Evidence]):
    """Keeps the longest patch tokens, in the order they have."""

    name: ClassVar[str] = "longest"

    def score(self, tokens: Tokens, evidence: Evidence) -> Tensor:
        return tokens.x[:, tokens.prefix :].norm(dim=-1)


@pytest.fixture(autouse=True, scope="module")
def leave_no_trace():
    METHODS["longest"] = Longest
    yield
    del METHODS["longest"]


@pytest.mark.parametrize("form", ["class-token", "registers", "siglip", "eva02"])
@torch.no_grad()
def test_it_keeps_what_it_scores_highest(form: str) -> None:
    model = FORMS[form]()
    images = host_images(model)
    assert torch.equal(sieve(model, "longest(keep=1)")(images), model(images))
    fast = sieve(model, "longest(keep=0.5, layers=(1,))")
    host, tokens = fast.host, fast.host.embed(images)
    tokens = fast.host.blocks[0](tokens), tokens
    x, embedded = tokens
    block = host.blocks[1]
    from tokensieve._frozen import replace

    heads = block.qkv(replace(embedded, x=x))
    x = block.attention_out(heads.attend(), heads, x)
    prefix = host.prefix
    count = -(-(x.shape[1] - prefix) // 2)
    kept = []
    for image in x:
        norms = [float(row.norm()) for row in image[prefix:]]
        kept.append(sorted(sorted(range(len(norms)), key=lambda i: (-norms[i], i))[:count]))
    trace = fast.trace(images)
    assert trace.tokens.positions.tolist() == kept
    assert trace.tokens_per_block == [x.shape[1], *[prefix + count] * (len(host.blocks) - 1)]


def test_its_settings_are_read_and_checked() -> None:
    assert Recipe.parse("longest(keep=0.5, layers=[1, 2])") == Recipe.of(Longest(0.5, (1, 2)))
    assert Recipe.from_json(Recipe.of(Longest(0.5, slice(1, 3))).to_json()) == Recipe.of(Longest(0.5, slice(1, 3)))
    with pytest.raises(RecipeError, match=r"longest: keep must be a number in \(0, 1\], not 2"):
        Recipe.parse("longest(keep=2)")
    with pytest.raises(RecipeError, match="longest: layers must be a slice"):
        Recipe.parse("longest(keep=0.5, layers='all')")

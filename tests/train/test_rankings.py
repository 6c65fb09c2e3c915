"""What a host says of its patches, against the slow obvious way in float64."""

import pytest
import timm
import torch

from tests.train.test_healing import tiny
from tokensieve import sieve
from tokensieve.errors import RecipeError, UnsupportedHost
from tokensieve.train import rankings
from tokensieve.train.rankings import DRAWS, LEFT_OUT, SIDE, WeightedHost, ranking

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.fixture
def model():
    return tiny().double()


def answers(model, images, weights):
    """A ViT's logits, written out: each patch's key counts `weights` (B, P) times in every attention."""
    x = model._pos_embed(model.patch_embed(images))
    weights = torch.cat([torch.ones(len(images), 1, dtype=weights.dtype), weights], 1)
    for block in model.blocks:
        attention = block.attn
        batch, count, width = x.shape
        qkv = attention.qkv(block.norm1(x)).view(batch, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv
        likeness = (q @ k.transpose(2, 3) * attention.scale).exp() * weights[:, None, None]
        mixed = likeness / likeness.sum(3, keepdim=True) @ v
        x = x + attention.proj(mixed.transpose(1, 2).reshape(batch, count, width))
        x = x + block.mlp(block.norm2(x))
    return model.head(model.norm(x)[:, 0])


def kl(p, q):
    p, q = p.log_softmax(1), q.log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def test_weighed_answers_are_those_of_the_formula(model):
    weights = torch.rand(3, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    dense = sieve(model)
    found = WeightedHost(dense)(dense.host.embed(IMAGES), weights)
    torch.testing.assert_close(found, answers(model, IMAGES, weights))
    torch.testing.assert_close(WeightedHost(dense)(dense.host.embed(IMAGES), torch.ones_like(weights)), model(IMAGES))


@pytest.mark.versions
def test_the_gradient_is_that_of_differences(model):
    """Of each draw and its complement, by a small step up of each patch's weight."""
    found = ranking("gradient", sieve(model), seed=5)(IMAGES)
    generator = torch.Generator().manual_seed(5)
    expected = torch.zeros(3, 16, dtype=torch.float64)
    for _ in range(DRAWS):
        order = torch.rand(3, 16, generator=generator).argsort(1).argsort(1)
        for kept in (order < 8, order >= 8):
            weights = torch.where(kept, 1.0, LEFT_OUT).double()
            for patch in range(16):
                step = torch.zeros_like(weights)
                step[:, patch] = 1e-5
                up, down = (kl(model(IMAGES), answers(model, IMAGES, weights + sign * step)) for sign in (1, -1))
                expected[:, patch] -= (up - down) / 2e-5 / (2 * DRAWS)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-7)


def test_hidden_blocks_move_the_answer_as_if_they_were_not_there(model):
    found = ranking("hidden", sieve(model))(IMAGES).view(3, 4, 4)
    assert SIDE == 2
    for top in (0, 2):
        for left in (0, 2):
            weights = torch.ones(3, 4, 4, dtype=torch.float64)
            weights[:, top : top + 2, left : left + 2] = 0
            moved = kl(model(IMAGES), answers(model, IMAGES, weights.flatten(1))).detach()
            for patch in (found[:, top, left], found[:, top + 1, left + 1]):
                torch.testing.assert_close(patch.double(), moved, rtol=1e-4, atol=1e-8)


def test_attention_is_the_class_tokens_over_the_last_blocks(model):
    found = ranking("attention", sieve(model))(IMAGES)
    seen = sieve(model).trace(IMAGES, attention=[1]).class_attention[1][:, 1:]
    torch.testing.assert_close(found.double(), seen.double(), rtol=1e-5, atol=1e-7)


def test_of_embeddings_the_distance_counts():
    model = tiny(classes=0).double()
    found = ranking("gradient", sieve(model))(IMAGES)
    assert found.shape == (3, 16)
    assert found.std() > 0


def test_what_cannot_rank_is_refused(model):
    with pytest.raises(RecipeError, match=r"one of attention, gradient, hidden, not 'atention'.*attention"):
        ranking("atention", sieve(model))
    stages = timm.create_model("test_convnext").eval()
    for target in rankings.TARGETS:
        with pytest.raises(UnsupportedHost, match="has stages"):
            ranking(target, sieve(stages))
    pooled = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, class_token=False, global_pool="avg")
    with pytest.raises(UnsupportedHost, match="no class token whose attention"):
        ranking("attention", sieve(pooled.eval()))

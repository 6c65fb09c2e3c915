"""What is learned from attention without its matrix equals what the matrix says."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.attention import BlockQKV

B, H, N, D = 2, 3, 7, 4


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def attention(**more: Tensor | float) -> BlockQKV:
    q, k, v = (draw(B, H, N, D, seed=seed) for seed in range(3))
    return BlockQKV(q, k, v, keys=k, **more)


def matrix(own: BlockQKV) -> Tensor:
    """(B, H, N, N), the obvious way."""
    scale = D**-0.5 if own.scale is None else own.scale
    logits = own.q @ own.k.transpose(-2, -1) * scale
    if own.bias is not None:
        logits = logits + own.bias
    weighed = logits.exp() if own.weight is None else logits.exp() * own.weight[:, None, None, :]
    return weighed / weighed.sum(-1, keepdim=True)


FORMS = {
    "plain": {},
    "scaled": {"scale": 0.3},
    "weighed": {"weight": draw(B, N, seed=5).abs() + 0.1},
    "biased": {"bias": draw(1, H, N, N, seed=6)},
    "all": {"scale": 0.7, "bias": draw(B, 1, N, N, seed=7), "weight": draw(B, N, seed=8).abs() + 0.1},
}


def test_rows_heads_and_sums_are_those_of_the_matrix() -> None:
    for name, more in FORMS.items():
        own = attention(**more)
        full = matrix(own)
        assert torch.allclose(own.attend(), full @ own.v, atol=1e-12), name
        assert torch.allclose(own.query_probabilities(), full[:, :, 0], atol=1e-12), name
        assert torch.allclose(own.query_probabilities(3), full[:, :, 3], atol=1e-12), name
        for head in range(H):
            assert torch.allclose(own.head_probabilities(head), full[:, head], atol=1e-12), name
        assert torch.allclose(own.received(), full.sum(2), atol=1e-12), name


def test_some_ask_what_all_would() -> None:
    rows = torch.tensor([[0, 3, 5], [0, 1, 6]])
    for name, more in FORMS.items():
        own = attention(gate=draw(B, N, H * D, seed=9), **more)
        some = own.only_queries(rows)
        index = rows[:, None, :, None].expand(-1, H, -1, D)
        assert torch.allclose(some.attend(), own.attend().gather(2, index), atol=1e-12), name
        assert some.gate is not None
        assert torch.equal(some.gate[1], own.gate[1, rows[1]])


def test_a_weight_of_zero_is_a_key_that_is_not_there() -> None:
    weight = torch.ones(B, N, dtype=torch.float64)
    weight[:, 4:] = 0
    own = attention(weight=weight)
    there = BlockQKV(own.q, own.k[:, :, :4], own.v[:, :, :4], own.k[:, :, :4])
    assert torch.allclose(own.attend(), there.attend(), atol=1e-12)
    assert own.query_probabilities()[:, :, 4:].max() < 1e-30


def test_probabilities_are_exact_whatever_the_model_runs_in() -> None:
    own = attention()
    half = BlockQKV(*(part.bfloat16() for part in (own.q, own.k, own.v, own.keys)))
    with torch.autocast("cpu", torch.bfloat16):
        assert half.query_probabilities().dtype == half.head_probabilities(0).dtype == torch.float32
        exact = BlockQKV(*(part.float() for part in (half.q, half.k, half.v, half.keys)))
    assert torch.equal(half.query_probabilities(), exact.query_probabilities())

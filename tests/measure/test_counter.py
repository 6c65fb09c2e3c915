"""The counter: the same for equal shapes whatever computes them, and what it cannot count it names."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.flop_counter import flop_registry, register_flop_formula

from tokensieve.measure.counter import FORMULAS, PRODUCTS, MacCounter

ATTENTION = 2 * 4 * 10 * 12 * (16 + 16)
"""MACs of `q`, `k`, `v` below: every one of 10 queries meets every one of 12 keys."""


def heads(count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 4, 10, 16), torch.randn(2, count, 12, 16), torch.randn(2, count, 12, 16)


def count(call: Callable[[], object], **settings: Any) -> float:
    """MACs of a call that the counter knows all of."""
    with torch.no_grad(), MacCounter(**settings) as counter:
        call()
    assert counter.unknown == set()
    return counter.total


def unknown(call: Callable[[], object]) -> set[str]:
    with torch.no_grad(), MacCounter() as counter:
        call()
    return counter.unknown


@contextmanager
def autocast() -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, autocast])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_counts_the_same_whichever_kernel_computes_it(backend, around, masked) -> None:
    q, k, v = heads()
    mask = torch.zeros(2, 1, 10, 12) if masked else None
    with around(), sdpa_kernel(backend):
        assert count(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)) == ATTENTION
        assert count(lambda: F.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=mask)) == ATTENTION


@pytest.mark.parametrize("backends", [[SDPBackend.MATH], [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]])
def test_keys_that_heads_share_are_met_by_each_head(backends) -> None:
    q, k, v = heads(2)
    with sdpa_kernel(backends):
        assert count(lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)) == ATTENTION


def test_what_a_kernel_is_given_is_no_measure() -> None:
    """On GPUs flash attention is given heads padded to a multiple of 8 channels."""
    wrong = {"aten::_scaled_dot_product_flash_attention_for_cpu": lambda *_, **__: 10**9}
    assert count(lambda: F.scaled_dot_product_attention(*heads()), extra=wrong) == ATTENTION
    assert count(lambda: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*heads()), extra=wrong) == 10**9


@pytest.mark.parametrize(
    ("kernel", "more"),
    [
        ("_scaled_dot_product_flash_attention", ()),
        ("_scaled_dot_product_efficient_attention", (None, False)),
        ("_scaled_dot_product_cudnn_attention", (None, False)),
    ],
)
def test_kernels_of_gpus_count_as_those_of_cpus(kernel, more) -> None:
    with FakeTensorMode():
        parts = [torch.empty(2, 4, length, 16, device="cuda", dtype=torch.float16) for length in (10, 12, 12)]
        assert count(lambda: getattr(torch.ops.aten, kernel)(*parts, *more)) == ATTENTION
    assert count(lambda: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*heads())) == ATTENTION


@pytest.mark.parametrize("kernel", ["flash", "efficient", "cudnn"])
def test_sequences_end_to_end_meet_none_but_themselves(kernel) -> None:
    formula = FORMULAS[f"aten::_{kernel}_attention_forward"]
    q, k, v = torch.randn(9, 4, 16), torch.randn(7, 4, 16), torch.randn(7, 4, 8)
    starts = torch.tensor([0, 4, 9], dtype=torch.int32), torch.tensor([0, 5, 7], dtype=torch.int32)
    assert formula(q, k, v, *starts, 5, 5, 0.0, False, out=None) == (4 * 5 + 5 * 2) * 4 * (16 + 8)
    whole = torch.randn(2, 10, 4, 16), torch.randn(2, 12, 4, 16), torch.randn(2, 12, 4, 16)
    assert formula(*whole, None, None, 10, 12, 0.0, False, out=None) == ATTENTION


def test_flexible_attention_counts_as_any_other() -> None:
    q, k, v = heads()
    assert count(lambda: flex_attention(q, k, v)) == ATTENTION
    assert count(lambda: torch.compile(flex_attention)(q, k, v)) == ATTENTION


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_backwards_attention_is_four_products_to_two(backend) -> None:
    parts = [part.requires_grad_() for part in heads()]
    with sdpa_kernel(backend), MacCounter() as counter:
        F.scaled_dot_product_attention(*parts).sum().backward()
    assert counter.total == 3 * ATTENTION


@pytest.mark.parametrize("weights", [False, True])
def test_torch_s_own_attention_is_counted_without_its_fast_path(weights) -> None:
    layer, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(2, 5, 8)
    assert count(lambda: layer(x, x, x, need_weights=weights)) == 2 * (4 * 5 * 64 + 2 * 25 * 8)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    assert count(lambda: encoder(x)) == 2 * (4 * 5 * 64 + 2 * 25 * 8 + 2 * 5 * 8 * 16)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("enabled", [False, True])
def test_recurrent_layers(enabled) -> None:
    for kind in (nn.LSTM, nn.GRU):
        layer = kind(4, 5, 2, bidirectional=True)
        each = sum(weight.numel() for weight in layer.parameters() if weight.ndim == 2)
        with torch.backends.mkldnn.flags(enabled=enabled):
            assert count(lambda layer=layer: layer(torch.randn(3, 2, 4))) == 3 * 2 * each


@pytest.mark.parametrize(
    ("call", "macs"),
    [
        (lambda: torch.randn(3, 4) @ torch.randn(4, 5), 60),
        (lambda: torch.randn(3, 5).addmm_(torch.randn(3, 4), torch.randn(4, 5)), 60),
        (lambda: torch.randn(2, 3, 5).baddbmm_(torch.randn(2, 3, 4), torch.randn(2, 4, 5)), 120),
        (lambda: torch.addbmm(torch.randn(3, 5), torch.randn(2, 3, 4), torch.randn(2, 4, 5)), 120),
        (lambda: torch.randn(3, 4) @ torch.randn(4), 12),
        (lambda: torch.addmv(torch.randn(3), torch.randn(3, 4), torch.randn(4)), 12),
        (lambda: torch.randn(4) @ torch.randn(4), 4),
        (lambda: F.linear(torch.randn(4), torch.randn(3, 4), torch.randn(3)), 12),
        (lambda: torch.einsum("bij,bkj->bik", torch.randn(2, 3, 4), torch.randn(2, 5, 4)), 120),
        (lambda: F.conv2d(torch.randn(1, 4, 5, 5), torch.randn(6, 2, 3, 3), groups=2), 9 * 6 * 2 * 9),
        (lambda: F.conv_transpose2d(torch.randn(1, 4, 5, 5), torch.randn(4, 3, 2, 2), groups=2), 25 * 4 * 3 * 4),
        (lambda: torch.linalg.eigh(torch.eye(4)), 9 * 64 // 2),
    ],
)
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_products_by_hand(call, macs, around) -> None:
    with around():
        assert count(call) == macs


def test_what_is_compiled_counts_as_it_was_written() -> None:
    layer = nn.Sequential(nn.Linear(4, 5), torch.compile(nn.Linear(5, 6)))
    assert count(lambda: torch.compile(layer)(torch.randn(3, 4))) == 3 * (4 * 5 + 5 * 6)


def test_only_what_was_asked_for_is_counted_and_no_hook_stays() -> None:
    first, second = nn.Linear(4, 5), nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 7))
    model = nn.Sequential(first, second)
    assert count(lambda: model(torch.randn(3, 4)), only=second.modules()) == 3 * (5 * 6 + 6 * 7)
    assert count(lambda: model(torch.randn(3, 4)), only=[first]) == 3 * 4 * 5
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@torch.library.custom_op("tokensieve_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x @ x @ x


@pytest.mark.parametrize(
    ("call", "seen"),
    [
        (lambda: torch.cdist(torch.randn(3, 4), torch.randn(2, 4)), {"aten::_cdist_forward"}),
        (lambda: torch.cdist(torch.randn(33, 4), torch.randn(33, 4)), {"aten::_euclidean_dist"}),
        (lambda: nn.Bilinear(3, 4, 5)(torch.randn(2, 3), torch.randn(2, 4)), {"aten::_trilinear"}),
        (lambda: torch.fft.rfft2(torch.randn(8, 8)), {"aten::_fft_r2c"}),
        (lambda: torch.linalg.svd(torch.randn(3, 3)), {"aten::_linalg_svd"}),
        (lambda: torch.linalg.solve(torch.eye(3), torch.randn(3, 2)), {"aten::_linalg_solve_ex"}),
        (lambda: torch.cond(torch.tensor(True), lambda x: x @ x, lambda x: x, (torch.eye(3),)), {"cond"}),
        (lambda: twice(torch.eye(3)), {"tokensieve_tests::twice"}),
    ],
)
def test_what_no_formula_covers_is_named(call, seen) -> None:
    assert unknown(call) == seen


def test_layouts_and_precisions_that_hide_their_products_are_named() -> None:
    with warnings.catch_warnings(action="ignore"):
        quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 5)), {nn.Linear})
    assert unknown(lambda: quantized(torch.randn(3, 4))) == {"quantized::linear_dynamic"}
    linear = torch.utils.mkldnn.to_mkldnn(nn.Linear(4, 5).eval())
    assert "aten::to_mkldnn" in unknown(lambda: linear(torch.randn(3, 4)))
    ragged = torch.nested.nested_tensor([torch.randn(2, 3, 4), torch.randn(2, 5, 4)], layout=torch.strided)
    assert "aten::matmul" in unknown(lambda: torch.matmul(ragged, ragged.transpose(-1, -2)))


def test_ragged_batches_are_counted_token_by_token() -> None:
    ragged = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)], layout=torch.jagged)
    assert count(lambda: nn.Linear(8, 6)(ragged)) == 8 * 8 * 6


def test_a_formula_that_torch_was_told_is_asked() -> None:
    operator = torch.ops.tokensieve_tests.twice
    register_flop_formula(operator)(lambda shape, *_, out_shape=None, **__: 4 * shape[0] ** 3)
    try:
        assert count(lambda: twice(torch.eye(3))) == 54
    finally:
        del flop_registry[operator]


def test_names_tell_products_from_the_rest() -> None:
    harmless = (
        "upsample_bilinear2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa", "upsample_linear1d", "hamming_window",
        "rrelu_with_noise", "resolve_conj", "cummin", "mvlgamma", "_cudnn_rnn_flatten_weight", "slice_inverse",
        "linalg_vector_norm", "cudnn_batch_norm", "_convert_indices_from_coo_to_csr", "dist", "softmax", "im2col",
    )  # fmt: skip
    assert [name for name in harmless if PRODUCTS.search(name)] == []
    products = (
        "_native_multi_head_attention", "_transformer_encoder_layer_fwd", "mkldnn_convolution", "mkldnn_linear",
        "_weight_int8pack_mm", "_weight_int4pack_mm_for_cpu", "_grouped_mm", "_dyn_quant_matmul_4bit", "linalg_qr",
        "fbgemm_linear_int8_weight", "_scaled_dot_product_some_new_kernel_attention", "_cslt_sparse_mm", "_foreach_mm",
    )  # fmt: skip
    assert [name for name in products if not PRODUCTS.search(name)] == []

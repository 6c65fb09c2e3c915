"""Padding: images of a batch with unlike numbers of tokens."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.reference.hosts import host_forms, host_images
from tokensieve import UnsupportedHost, padding, sieve
from tokensieve import _varlen as varlen
from tokensieve._frozen import replace
from tokensieve.attention import BlockQKV
from tokensieve.measure import macs
from tokensieve.padding import filled, pad, per_length
from tokensieve.tokens import Tokens

FORMS = host_forms()
BEHIND = {
    "tome": "tome(r=2, layers=1:)",
    "tome, of all": "tome(r=50, layers=1:)",
    "tofu": "tofu(r=2, layers=1:)",
    "gtp": "gtp(r=2, layers=2:, sparsity=0.5)",
    "evit": "evit(keep=0.6, layers=(1,))",
    "pitome": "pitome(r=2, layers=1:)",
    "diffrate": "diffrate(drop=1, merge=2, layers=1:)",
    "mctf": "mctf(r=2, layers=1:)",
    "guarded": "guarded(r=2, drop=1, layers=1:)",
    "dynamicvit": "dynamicvit(keep=0.5, layers=(2,))",
    "ats": "ats(tokens=6, layers=(2,))",
    "tome and readout": "tome(r=1, layers=2:) + readout()",
}


def varied(model: torch.nn.Module, batch: int) -> Tensor:
    """Images whose attention asks for unlike numbers of patches."""
    images = host_images(model, batch)
    return images * torch.linspace(0.05, 4, batch, dtype=images.dtype)[:, None, None, None]


@pytest.mark.parametrize("name", BEHIND)
@pytest.mark.parametrize("form", ["class-token", "registers", "mae", "eva02"])
@pytest.mark.parametrize("adaptive", [True, False])
@torch.no_grad()
def test_a_batch_of_unlike_lengths_is_each_image_by_itself(name: str, form: str, adaptive: bool) -> None:
    if form == "mae" and "readout" in name:
        pytest.skip("a head that averages patches has none to read out")
    torch.manual_seed(0)
    model = FORMS[form]().double()
    images = varied(model, 8).double()
    fast = sieve(model, f"ats(tokens=20, layers=(1,), adaptive={adaptive}) + {BEHIND[name]}", pretrained=False)
    trace = fast.trace(images)
    assert len({tuple(lengths.tolist()) for lengths in torch.stack(trace.lengths, 1)}) > 1
    alone = [fast.trace(image[None]) for image in images]
    torch.testing.assert_close(trace.output, torch.cat([one.output for one in alone]), rtol=1e-6, atol=1e-6)
    assert torch.equal(fast(images), trace.output)
    for block, lengths in enumerate(trace.lengths):
        assert lengths.tolist() == [int(one.lengths[block]) for one in alone]
        assert int(lengths.max()) <= trace.reads[block].mlp
    assert torch.equal(trace.source, torch.cat([one.source for one in alone]))


@torch.no_grad()
def test_macs_count_what_each_image_reads() -> None:
    model = FORMS["class-token"]()
    images = varied(model, 4)
    fast = sieve(model, "ats(tokens=12, layers=(1,)) + tome(r=2, layers=2:)")
    each_one = [macs(fast, images=image[None]) for image in images]
    assert len(set(each_one)) > 1
    assert macs(fast, images=images) == pytest.approx(sum(each_one) / 4, rel=1e-12)


def attention_of(lengths: list[int], count: int, **more: Tensor) -> BlockQKV:
    shape = (len(lengths), 2, count, 4)
    q, k, v = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    return BlockQKV(q, k, v, keys=k, lengths=torch.tensor(lengths), **more)


def test_padded_attention_is_that_of_jagged_tensors() -> None:
    lengths = [3, 7, 5]
    padded = attention_of(lengths, 7)
    attended = padded.attend()
    layout = torch.jagged
    ragged = [
        torch.nested.nested_tensor(
            [x[i, :, :n].transpose(0, 1) for i, n in enumerate(lengths)], layout=layout
        ).transpose(1, 2)
        for x in (padded.q, padded.k, padded.v)
    ]
    jagged = F.scaled_dot_product_attention(*ragged).transpose(1, 2).unbind()
    for image, (count, theirs) in enumerate(zip(lengths, jagged, strict=True)):
        torch.testing.assert_close(attended[image, :, :count].transpose(0, 1), theirs, rtol=1e-12, atol=1e-12)


def jagged_kernel(
    q: Tensor, k: Tensor, v: Tensor, ends: Tensor, _: Tensor, longest: int, __: int, scale: float | None
) -> Tensor:
    """What torch's kernel for CUDA computes, by jagged nested tensors, in its arguments."""
    q, k, v = (torch.nested.nested_tensor_from_jagged(x, ends.long()).transpose(1, 2) for x in (q, k, v))
    assert longest == int(ends.diff().max())
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).values()


@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_without_padding(scale: float | None) -> None:
    padded = replace(attention_of([3, 7, 5], 7), scale=scale)
    assert padded.lengths is not None
    mine = varlen.attend(padded.q, padded.k, padded.v, padded.lengths, scale, jagged_kernel)
    theirs = padded.attend()
    for image, count in enumerate([3, 7, 5]):
        torch.testing.assert_close(mine[image, :, :count], theirs[image, :, :count], rtol=1e-12, atol=1e-12)
        assert not mine[image, :, count:].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch's kernel for unlike lengths runs on CUDA alone")
def test_the_kernel_for_cuda() -> None:
    if varlen.kernel() is None:
        pytest.skip("this torch has no varlen_attn")
    padded = attention_of([3, 7, 5], 7)
    q, k, v = (torch.randn(3, 2, 7, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    half = replace(padded, q=q, k=k, v=v, keys=k, lengths=torch.tensor([3, 7, 5], device="cuda"))
    assert varlen.runs(q, k)
    exact = replace(half, q=q.double(), k=k.double(), v=v.double())
    for image, count in enumerate([3, 7, 5]):
        torch.testing.assert_close(
            half.attend()[image, :, :count].double(), exact.attend()[image, :, :count], rtol=2e-2, atol=2e-2
        )


def test_attention_of_some_images_is_attention_without_padding() -> None:
    weight, bias = torch.rand(3, 7, dtype=torch.float64), torch.randn(1, 2, 7, 7, dtype=torch.float64)
    gate = torch.rand(3, 7, 8, dtype=torch.float64)
    padded = attention_of([5, 7, 5], 7, weight=weight, bias=bias, gate=gate)
    images = torch.tensor([0, 2])
    some = padded.of(images, 5)
    assert some.lengths is None
    assert some.gate is not None
    assert torch.equal(some.gate, gate[images, :5])
    assert some.k.shape == (2, 2, 5, 4)
    torch.testing.assert_close(some.attend(), padded.attend()[images, :, :5])
    torch.testing.assert_close(some.received(), sum_of(padded)[images][..., :5])
    assert padded.of(torch.tensor([0, 1]), 5).lengths is not None
    assert padded.query_probabilities()[0, :, 5:].sum() == 0


def sum_of(padded: BlockQKV) -> Tensor:
    """What keys receive of the queries that are there."""
    matrices = torch.stack([padded.head_probabilities(head) for head in range(2)], dim=1)
    assert padded.lengths is not None
    real = torch.arange(7) < padded.lengths[:, None]
    return (matrices * real[:, None, :, None]).sum(2)


def test_padding_is_made_and_taken_away() -> None:
    x = torch.randn(3, 9, 4)
    tokens = Tokens(x, 1, (2, 4)).tracked()
    counts = torch.tensor([4, 9, 6])
    parts = [tokens.of(torch.tensor([i]), int(n)) for i, n in enumerate(counts)]
    order = [torch.tensor([1]), torch.tensor([2]), torch.tensor([0])]
    padded = pad(order, [parts[1], parts[2], parts[0]])
    assert padded.lengths is not None
    assert torch.equal(padded.lengths, counts)
    for image, count in enumerate(counts.tolist()):
        assert torch.equal(padded.x[image, :count], x[image, :count])
        assert not padded.x[image, count:].any()
        assert torch.equal(padded.of(torch.tensor([image]), count).x, parts[image].x)
    assert padded.real is not None
    assert torch.equal(padded.real.sum(1), counts)
    assert torch.equal(padded.counted, padded.real.float())
    same = per_length(padded, lambda images, some: some, 0, "nothing")
    assert torch.equal(same.x, padded.x)
    assert torch.equal(same.lengths, counts)
    assert pad(order[:1], parts[1:2]).lengths is None
    assert filled(x, 9) is x


@pytest.mark.slow
def test_a_graph_cannot_depend_on_lengths() -> None:
    model = FORMS["class-token"]()
    fast = sieve(model, "ats(tokens=12, layers=(1,), adaptive=False) + pitome(r=2, layers=2:)")
    with pytest.raises((UnsupportedHost, torch._dynamo.exc.Unsupported), match="pitome acts on images with different"):
        torch.compile(fast, fullgraph=True, backend="eager")(host_images(model))


@pytest.mark.parametrize("form", ["class-token", "eva02"])
@torch.no_grad()
def test_images_one_by_one_are_the_padded_batch(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = FORMS[form]().double()
    images = varied(model, 4).double()
    fast = sieve(model, "ats(tokens=20, layers=(1,))")
    padded = fast(images)
    sizes: list[tuple[int, ...]] = []
    hook = model.blocks[2].register_forward_pre_hook(lambda _, given: sizes.append(tuple(given[0].shape[:2])))
    monkeypatch.setattr(padding, "CALL", 0)
    with pytest.raises(UnsupportedHost, match="hook"):
        fast(images)
    hook.remove()
    calls = Mock(wraps=padding.one_by_one)
    monkeypatch.setattr(padding, "one_by_one", calls)
    trace = fast.trace(images)
    torch.testing.assert_close(trace.output, padded, rtol=1e-9, atol=1e-9)
    assert calls.call_count == len(model.blocks) - 2, "every block behind the first that leaves unlike lengths"
    assert {reads.keys for reads in trace.reads[2:]} == {int(trace.lengths[1].max())}


def test_one_by_one_only_where_padding_is_much_work() -> None:
    tokens = Tokens(torch.zeros(4, 100, 64), prefix=1, grid=(9, 11))
    assert not padding.faster_one_by_one(tokens)
    assert not padding.faster_one_by_one(replace(tokens, lengths=torch.tensor([100, 90, 90, 90])))
    wide = replace(tokens, x=torch.zeros(4, 100, 1024))
    assert padding.faster_one_by_one(replace(wide, lengths=torch.tensor([100, 90, 90, 90])))
    assert not padding.faster_one_by_one(replace(wide, lengths=torch.tensor([100, 99, 99, 99])))

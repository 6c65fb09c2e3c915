"""timm's Beit: its relative position bias follows the tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.reference.hf_hosts import assert_asking_agrees, assert_verbs_compose, beit_forms, beit_images, in_pairs
from tokensieve import InputError, UnsupportedHost, sieve
from tokensieve.hosts import open_host
from tokensieve.measure import SlicingLimit

FORMS = beit_forms()
PATCHES = 20
each = pytest.mark.parametrize("name", FORMS)


@each
def test_identity_settings_are_the_host_bit_for_bit_and_change_nothing(name: str) -> None:
    model, images = FORMS[name](), beit_images()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        whole = model(images)
        for recipe in ("", "papr(keep=1)", "tome(r=0)"):
            assert torch.equal(sieve(model, recipe)(images), whole)
        sieve(model, "random(keep=0.5) + tome(r=3)")(images)
        assert torch.equal(model(images), whole)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@each
def test_the_verbs_compose_to_the_block(name: str) -> None:
    model = FORMS[name]().double()
    host = open_host(model)
    with torch.no_grad():
        tokens = host.embed(beit_images().double())
        everywhere = tokens.select(torch.arange(PATCHES).expand(2, -1))
        for block in host.blocks:
            for some in (tokens, everywhere):
                assert_verbs_compose(block, some, block(tokens))


@each
def test_only_some_may_ask(name: str) -> None:
    model = FORMS[name]().double()
    host = open_host(model)
    with torch.no_grad():
        tokens = host.embed(beit_images().double())
        for some in (tokens, tokens.select(torch.tensor([[0, 3, 4, 9, 11], [1, 2, 5, 7, 19]]))):
            assert_asking_agrees(host.blocks[1], some)


def masked(model: nn.Module, images: Tensor, kept: Tensor) -> Tensor:
    """The host's own blocks over the whole grid, with -inf for the dropped keys added to the bias: the kept tokens."""
    there = torch.full((len(images), 1, 1, PATCHES + 1), -torch.inf, dtype=images.dtype)
    there[..., 0] = 0
    there[:, 0, 0, 1:].scatter_(1, kept, 0)
    x = torch.cat([model.cls_token.expand(len(images), -1, -1), model.patch_embed(images)], dim=1)
    x = x if model.pos_embed is None else x + model.pos_embed
    shared = 0 if model.rel_pos_bias is None else model.rel_pos_bias()[None]
    for block in model.blocks:
        x = block(x, shared_rel_pos_bias=(shared + there).expand(-1, 2, PATCHES + 1, -1))
    index = torch.cat([torch.zeros_like(kept[:, :1]), kept + 1], dim=1)
    return model.norm(x).gather(1, index[..., None].expand(-1, -1, x.shape[2]))


@each
def test_dropping_is_the_hosts_own_forward_with_those_patches_masked(name: str) -> None:
    model, images = FORMS[name]().double(), beit_images(3).double()
    with torch.no_grad():
        trace = sieve(model, "random(keep=0.5)").trace(images)
        last = masked(model, images, trace.kept)
        expected = model.forward_head(last)
    torch.testing.assert_close(trace.tokens.x, last, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(trace.output, expected, atol=1e-10, rtol=1e-10)


@each
def test_equal_patches_merge_without_a_trace(name: str) -> None:
    model = FORMS[name]().double()
    with torch.no_grad():
        for parameter, value in model.named_parameters():
            if "pos" in parameter:
                value.zero_()
        images = in_pairs(beit_images(3).double())
        trace, whole = sieve(model, "tome(r=[4, 0, 0])").trace(images), model(images)
    assert trace.tokens_per_block == [PATCHES + 1 - 4] * 3
    output = trace.output
    if output.ndim == 3:
        output, whole = output[:, 0], whole[:, 0]
    torch.testing.assert_close(output, whole, atol=1e-10, rtol=1e-10)


@each
def test_a_merged_token_keeps_the_bias_of_its_place(name: str) -> None:
    """Tokens merged in block 0: block 1 by hand, with the bias of the places looked up one pair at a time."""
    model, images = FORMS[name]().double(), beit_images().double()
    with torch.no_grad():
        fast = sieve(model, "tome(r=[4, 0, 0])")
        host = fast.host
        tokens = host.embed(images)
        heads = host.blocks[0].qkv(tokens)
        keep = torch.tensor([[*range(17)], [0, *range(5, 21)]])
        away = torch.tensor([[17, 18, 19, 20], [1, 2, 3, 4]])
        tokens = tokens.merge(keep, away, torch.full((2, 4), 3), weigh=True)
        bias = host.blocks[1].qkv(tokens).bias
        places = keep.tolist()
        for image, at in enumerate(places):
            for i, one in enumerate(at):
                for j, other in enumerate(at):
                    pair = torch.zeros(2, dtype=torch.float64)
                    for source in (model.rel_pos_bias, model.blocks[1].attn):
                        if source is not None and source.relative_position_bias_table is not None:
                            pair += source.relative_position_bias_table[source.relative_position_index[one, other]]
                    if bias is not None:
                        assert torch.equal(bias[image, :, i, j], pair)
                    else:
                        assert not pair.any()
    assert heads.q.shape[2] == PATCHES + 1


@each
def test_the_slicing_limit_runs_on_it(name: str) -> None:
    fast = sieve(FORMS[name](), "random(keep=0.5) + tome(r=2)")
    with torch.no_grad():
        assert SlicingLimit(fast)(beit_images()).shape == fast(beit_images()).shape


def test_the_class_token_can_be_read_out() -> None:
    model, images = FORMS["beit-shared"]().double(), beit_images().double()
    with torch.no_grad():
        torch.testing.assert_close(sieve(model, "readout()")(images), model(images), atol=1e-10, rtol=1e-10)


def test_what_is_known_of_the_host() -> None:
    host = open_host(FORMS["beit"]())
    assert (host.prefix, host.class_token, host.reads_prefix, host.width) == (1, True, False, 32)
    assert open_host(FORMS["beit-shared"]()).reads_prefix


def test_what_would_go_wrong_is_refused() -> None:
    model = FORMS["beit"]()
    with pytest.raises(InputError, match=r"Beit reads \(B, 3, H, W\)"):
        sieve(model)(torch.zeros(3, 32, 40))
    model.blocks[1].attn.__class__ = type("Mine", (type(model.blocks[1].attn),), {})
    with pytest.raises(UnsupportedHost, match="block Block with attention Mine"):
        sieve(model)


@pytest.mark.slow
def test_it_compiles_in_one_graph() -> None:
    model, images = FORMS["beit"](), beit_images()
    fast = sieve(model, "random(keep=0.5) + tome(r=3)")
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(fast, fullgraph=True, backend="eager")(images), fast(images))

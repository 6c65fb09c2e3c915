"""open_clip's own vision tower."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.reference.hf_hosts import (
    assert_asking_agrees,
    assert_verbs_compose,
    in_pairs,
    open_clip_forms,
    open_clip_images,
)
from tokensieve import InputError, UnsupportedHost, sieve
from tokensieve.hosts import open_host

pytest.importorskip("open_clip")

FORMS = open_clip_forms()
PATCHES = 25
each = pytest.mark.parametrize("name", FORMS)


def parts(output: Any) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


@each
def test_identity_settings_are_the_host_bit_for_bit_and_change_nothing(name: str) -> None:
    model, images = FORMS[name](), open_clip_images()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        whole = model(images)
        for recipe in ("", "papr(keep=1)", "tome(r=0)"):
            output = sieve(model, recipe)(images)
            assert type(output) is type(whole)
            assert all(torch.equal(a, b) for a, b in zip(parts(output), parts(whole), strict=True))
        sieve(model, "random(keep=0.5) + tome(r=3)")(images)
        assert all(torch.equal(a, b) for a, b in zip(parts(model(images)), parts(whole), strict=True))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@each
def test_the_verbs_compose_to_the_block(name: str) -> None:
    model = FORMS[name]().double()
    host = open_host(model)
    with torch.no_grad():
        tokens = host.embed(open_clip_images().double())
        for block in host.blocks:
            assert_verbs_compose(block, tokens)
        assert_asking_agrees(host.blocks[1], tokens)


def masked(model: nn.Module, images: Tensor, kept: Tensor) -> Tensor:
    """The host's own blocks with the dropped keys masked: the kept tokens (B, K + 1, d), before any final norm."""
    there = torch.full((len(images), 1, PATCHES + 1), -torch.inf, dtype=images.dtype)
    there[..., 0] = 0
    there[:, 0, 1:].scatter_(1, kept, 0)
    there = there.expand(-1, PATCHES + 1, -1).repeat_interleave(2, dim=0)
    x = model._embeds(images)
    for block in model.transformer.resblocks:
        x = block(x, attn_mask=there)
    index = torch.cat([torch.zeros_like(kept[:, :1]), kept + 1], dim=1)
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


@each
def test_dropping_is_the_hosts_own_forward_with_those_patches_masked(name: str) -> None:
    model, images = FORMS[name]().double(), open_clip_images(3).double()
    with torch.no_grad():
        trace = sieve(model, "random(keep=0.5)").trace(images)
        pooled, rest = model._pool(masked(model, images, trace.kept))
    output = parts(trace.output)
    torch.testing.assert_close(output[0], pooled @ model.proj, atol=1e-10, rtol=1e-10)
    if model.output_tokens:
        torch.testing.assert_close(output[1], rest, atol=1e-10, rtol=1e-10)


@each
def test_equal_patches_merge_without_a_trace(name: str) -> None:
    model = FORMS[name]().double()
    with torch.no_grad():
        model.positional_embedding.zero_()
        images = in_pairs(open_clip_images(3).double())
        trace, whole = sieve(model, "tome(r=[5, 0, 0])").trace(images), parts(model(images))
    assert trace.tokens_per_block == [PATCHES + 1 - 5] * 3
    output = parts(trace.output)
    if name == "unpooled":
        output, whole = (output[0][:, 0],), (whole[0][:, 0],)
    torch.testing.assert_close(output[0], whole[0], atol=1e-10, rtol=1e-10)
    if len(whole) == 2 and name.startswith("attention"):
        torch.testing.assert_close(output[1], whole[1], atol=1e-10, rtol=1e-10)


def test_a_whole_clip_runs_on_a_sieved_tower() -> None:
    import open_clip

    vision = {"image_size": 40, "layers": 2, "width": 64, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    model = open_clip.CLIP(32, vision, text).eval()
    with pytest.raises(UnsupportedHost, match=r"reads text too: sieve its model\.visual"):
        sieve(model)
    with torch.no_grad():
        whole = model.encode_image(open_clip_images())
        model.visual = sieve(model.visual, "")
        assert torch.equal(model.encode_image(open_clip_images()), whole)


def test_what_is_refused() -> None:
    model = FORMS["class"]()
    with pytest.raises(InputError, match=r"reads \(B, 3, 40, 40\)"):
        sieve(model)(torch.zeros(1, 3, 48, 48))
    custom = FORMS["class"]()
    for block in custom.transformer.resblocks:  # open_clip's own other kind came with version 3
        block.__class__ = type("CustomResidualAttentionBlock", (type(block),), {})
    sieve(custom, "random(keep=0.5)")(open_clip_images())
    with pytest.raises(UnsupportedHost, match="CustomResidualAttentionBlock is not a block that can be stopped"):
        sieve(custom, "tome(r=3)")


def test_what_is_known_of_the_host() -> None:
    facts = {name: (open_host(form()).reads_prefix, open_host(form()).cannot_merge) for name, form in FORMS.items()}
    assert facts == {name: (name == "class", None) for name in FORMS}

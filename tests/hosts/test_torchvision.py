"""torchvision's vision transformers (every method on their tokens: see tests/test_matrix.py), ConvNeXt and Swin."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torchvision.models.vision_transformer import EncoderBlock, VisionTransformer

from tests.reference.hf_hosts import assert_asking_agrees, assert_verbs_compose, in_pairs, seeded
from tests.reference.staged import Staged, choice_of, enlarged, significance, staged_reference
from tests.reference.torchvision_hosts import (
    SWIN,
    V2,
    VIT,
    staged_as_timm,
    torchvision_images,
    torchvision_staged,
    torchvision_vits,
)
from tokensieve import InputError, PaPr, UnsupportedHost, export_program, measure, sieve
from tokensieve.hosts import open_host
from tokensieve.measure import SlicingLimit

VITS, STAGED = torchvision_vits(), torchvision_staged()
PATCHES = 25
TIGHT = {"atol": 1e-9, "rtol": 1e-9}
each_vit = pytest.mark.parametrize("name", VITS)
each_staged = pytest.mark.parametrize("name", STAGED)
kinds = pytest.mark.parametrize("name", ["convnext", "swin", "swin-v2"])
SIZES = [(32, 64), (50, 70), (32, 100)]
"""Whole windows; what fills neither windows nor patches; maps of which one window has room in one direction."""


def pictures(size: tuple[int, int], batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(batch)).double()


# --- vision transformers ---------------------------------------------------------------------------------------------


@each_vit
def test_the_verbs_compose_to_the_block(name: str) -> None:
    model = VITS[name]().double()
    host = open_host(model)
    with torch.no_grad():
        tokens = host.embed(torchvision_images(model).double())
        for block in host.blocks:
            assert_verbs_compose(block, tokens)
            assert_asking_agrees(block, tokens)


@each_vit
def test_equal_patches_merge_without_a_trace(name: str) -> None:
    model = VITS[name]().double()
    with torch.no_grad():
        model.encoder.pos_embedding.zero_()
        images = torchvision_images(model, 3).double()
        images = torch.zeros_like(images) if "stem" in name else in_pairs(images)  # convolutions that overlap
        trace, whole = sieve(model, "tome(r=[5, 0, 0, 0])").trace(images), model(images)
    assert trace.tokens_per_block == [PATCHES + 1 - 5] * 4
    if "stem" not in name:
        torch.testing.assert_close(trace.output, whole, atol=1e-10, rtol=1e-10)


def test_dropping_is_the_hosts_own_forward_with_those_patches_masked() -> None:
    """By torchvision's own blocks, with nothing of timm in between."""
    model = VITS["vit"]().double()
    images = torchvision_images(model, 3).double()
    with torch.no_grad():
        trace = sieve(model, "random(keep=0.5)").trace(images)
        there = torch.full((3, PATCHES + 1), -torch.inf, dtype=images.dtype)
        there[:, 0] = 0
        there[:, 1:].scatter_(1, trace.kept, 0)
        x = model._process_input(images)
        x = torch.cat([model.class_token.expand(3, -1, -1), x], dim=1) + model.encoder.pos_embedding
        for block in model.encoder.layers:
            y = block.ln_1(x)
            x = x + block.self_attention(y, y, y, key_padding_mask=there, need_weights=False)[0]
            x = x + block.mlp(block.ln_2(x))
        expected = model.heads(model.encoder.ln(x)[:, 0])
    torch.testing.assert_close(trace.output, expected, atol=1e-10, rtol=1e-10)


def test_dropout_falls_where_it_falls_in_the_host() -> None:
    make = partial(VisionTransformer, **VIT, num_classes=7, dropout=0.2, attention_dropout=0.3)
    model = seeded(make, 1).train()
    images = torchvision_images(model, 4)
    assert_falls_alike(model, images)
    block, host = model.encoder.layers[1], open_host(model)
    tokens = host.embed(images)
    for dropout in (0.0, 1.0):  # between them the attention's output, in memory otherwise than here, loses other parts
        for part in (block.dropout, block.mlp[2], block.mlp[4]):
            part.p = dropout
        answers = []
        for forward in (block, lambda _: opened(host.blocks[1], tokens)):
            torch.manual_seed(5)
            answers.append(forward(tokens.x))
        torch.testing.assert_close(*answers, atol=1e-4, rtol=1e-4)
        assert torch.equal(answers[0], tokens.x) == (dropout == 1)
    assert host.blocks[1].qkv(tokens).dropout == 0.3
    assert open_host(model.eval()).blocks[1].qkv(tokens).dropout == 0


def opened(block: Any, tokens: Any) -> Tensor:
    heads = block.qkv(tokens)
    return block.mlp(block.attention_out(heads.attend(), heads, tokens.x))


def assert_falls_alike(model: nn.Module, images: Tensor) -> None:
    answers = []
    for forward in (model, sieve(model), sieve(model, "papr(keep=1)"), model):
        torch.manual_seed(len(answers) // 3)
        answers.append(forward(images))
    assert torch.equal(answers[1], answers[0])
    assert torch.equal(answers[2], answers[0])
    assert not torch.equal(answers[3], answers[0])


def test_gradients_reach_every_parameter() -> None:
    model = VITS["vit"]()
    fast = sieve(model, "random(keep=0.6) + tome(r=2)").train()
    fast(torchvision_images(model)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_other_sizes_are_refused_in_a_sentence() -> None:
    model = VITS["vit"]()
    with pytest.raises(InputError, match=r"shape \(1, 3, 40, 48\); this VisionTransformer reads \(B, 3, 40, 40\)"):
        sieve(model)(torch.zeros(1, 3, 40, 48))
    with pytest.raises(InputError, match=r"VisionTransformer reads \(B, 3, H, W\)"):
        sieve(model)(torch.zeros(3, 40, 40))


def mine(part: Any) -> None:
    part.__class__ = type("Mine", (type(part),), {})


def test_a_block_that_is_not_known_takes_nothing_inside() -> None:
    images = torchvision_images(VITS["vit"]())
    changes: list[tuple[Callable[[EncoderBlock], Any], str]] = [
        (mine, "Mine is not a block that can be stopped between attention and MLP"),
        (lambda block: mine(block.self_attention), "its attention Mine is unknown here"),
        (lambda block: setattr(block.self_attention, "add_zero_attn", True), "built in a way that is unknown here"),
        (lambda block: setattr(block.self_attention, "batch_first", False), "built in a way that is unknown here"),
    ]
    for change, reason in changes:
        model = VITS["vit"]()
        change(model.encoder.layers[1])
        with torch.no_grad():
            sieve(model, "random(keep=0.5)")(images)
        with pytest.raises(UnsupportedHost, match=reason):
            sieve(model, "tome(r=2)")
    model = VITS["vit"]()
    mine(model.encoder)
    with pytest.raises(UnsupportedHost, match="VisionTransformer holds an encoder Mine"):
        sieve(model)


def test_hooks_that_would_not_run_are_refused_and_others_run() -> None:
    model = VITS["vit"]()
    images, seen = torchvision_images(model), []

    def note(*_: Any) -> None:
        seen.append(1)

    fast = sieve(model, "tome(r=2, layers=1:)")
    layers = model.encoder.layers
    for part in (model, model.encoder, layers, layers[1], layers[1].self_attention):
        handle = part.register_forward_hook(note)
        with pytest.raises(UnsupportedHost, match="has a hook, which would not run"):
            fast(images)
        handle.remove()
    for part in (layers[0], layers[0].self_attention, layers[1].ln_1, layers[1].mlp, layers[1].dropout):
        seen.clear()
        handle = part.register_forward_hook(note)
        with torch.no_grad():
            fast(images)
        assert seen == [1]
        handle.remove()
    model.register_forward_hook(note)  # where nothing acts, the host itself is called
    seen.clear()
    sieve(model, "tome(r=0)")(images)
    assert seen == [1]


# --- models with stages ----------------------------------------------------------------------------------------------


@each_staged
@pytest.mark.parametrize("training", [False, True])
def test_identity_settings_are_the_host_bit_for_bit(name: str, training: bool) -> None:
    for size in SIZES:
        model, images = STAGED[name]().train(training), pictures(size).float()
        with torch.no_grad():
            whole = model(images)
            for recipe in ("", "papr(keep=1, significance=centre)"):
                assert torch.equal(sieve(model, recipe)(images), whole)
            trace = sieve(model).trace(images)
            assert torch.equal(trace.output, whole)
            assert trace.masks == []
            half = STAGED[name]().bfloat16()
            assert torch.equal(sieve(half)(images.bfloat16()), half(images.bfloat16()))


def reference(model: nn.Module, images: Tensor, keep: Any, stages: Any = None, background: str | None = None) -> Staged:
    view = staged_as_timm(model)
    count = len(view.stages if hasattr(view, "stages") else view.layers)
    with torch.no_grad():
        maps = significance(sieve(model).covered(images))
    choices = [choice_of(count, keep, stages, enlarged(map)) for map in maps]
    return staged_reference(view, images, choices, background)


@each_staged
@pytest.mark.parametrize(
    ("settings", "background", "training"),
    [
        ({"keep": 0.6}, None, False),
        ({"keep": 0.5}, "zero", False),
        ({"keep": 0.5}, "keep", False),
        ({"keep": (0.3, 0.75), "stages": (1, 0)}, "zero", False),
        ({"keep": 0.6}, "zero", True),
    ],
)
def test_it_is_the_reference(name: str, settings: dict[str, Any], background: str | None, training: bool) -> None:
    for size in SIZES:
        model, images = STAGED[name]().double().train(training), pictures(size)
        fast = sieve(model, PaPr(**settings, significance=significance, background=background))
        with torch.no_grad():
            slow, trace = reference(model, images, **settings, background=background), fast.trace(images)
            torch.testing.assert_close(trace.output, slow.output, **TIGHT)
            torch.testing.assert_close(fast(images), slow.output, **TIGHT)
            torch.testing.assert_close(fast.forward_features(images), slow.features, **TIGHT)
            for one, other in zip(fast.forward_intermediates(images), slow.maps, strict=True):
                torch.testing.assert_close(one, other, **TIGHT)
            assert (trace.output - model(images)).abs().max() > 1e-4
        assert trace.tokens_per_block == slow.pixels
        assert [None if kept is None else kept.tolist() for kept in trace.kept] == [
            None if kept[0] is None else kept for kept in slow.kept
        ]


@each_staged
def test_gradients_are_the_references(name: str) -> None:
    model, images = STAGED[name]().double().train(), pictures((50, 70)).requires_grad_()
    fast = sieve(model, PaPr(keep=0.6, significance=significance))
    slopes = []
    for forward in (fast, lambda images: reference(model, images, 0.6).output):
        slopes.append(torch.autograd.grad(forward(images).square().sum(), [images, *model.parameters()]))
    for weight, one, other in zip(["images", *dict(model.named_parameters())], *slopes, strict=True):
        assert one.abs().sum() > 0, weight
        torch.testing.assert_close(one, other, atol=1e-9 * (1 + float(other.abs().max())), rtol=1e-9)


RANDOM: dict[str, Callable[[], nn.Module]] = {
    "convnext": lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], 0.5, 0.1, 5),
    "swin": lambda: SwinTransformer(**{**SWIN, "depths": [1, 1], "stochastic_depth_prob": 0.5}),
    "swin-v2": lambda: SwinTransformer(**{**SWIN, **V2, "depths": [1, 1], "stochastic_depth_prob": 0.5}),
}


@kinds
def test_stochastic_depth_spares_the_same_images_as_in_the_host(name: str) -> None:
    """In the last block the kept pixels are what the host makes of them with the same random numbers."""
    model = seeded(RANDOM[name], 1).double().train()
    images = pictures((32, 64), 8)
    assert_falls_alike(model, images)
    fast, behind = sieve(model, PaPr(keep=0.5, significance="centre", stages=(1,))), []
    hook = model.features[-1].register_forward_hook(lambda _module, _inputs, output: behind.append(output))
    torch.manual_seed(3)
    model(images)
    hook.remove()
    torch.manual_seed(3)
    ours = fast.forward_intermediates(images)[-1].flatten(2)
    theirs = (behind[0] if name == "convnext" else behind[0].permute(0, 3, 1, 2)).flatten(2)
    (kept,) = {tuple(kept) for kept in fast.trace(images).kept[-1].tolist()}
    assert len(kept) == 4 * 8 // 2
    torch.testing.assert_close(ours[:, :, kept], theirs[:, :, kept], **TIGHT)
    assert (ours - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["swin", "swin-v2"])  # torchvision's ConvNeXt has no dropout
def test_dropout_falls_where_it_falls_in_swin(name: str) -> None:
    settings = {**SWIN, "dropout": 0.3, "attention_dropout": 0.2, **(V2 if name == "swin-v2" else {})}
    assert_falls_alike(seeded(lambda: SwinTransformer(**settings), 1).train(), pictures((32, 64), 4).float())


@each_staged
def test_what_it_costs_is_counted_and_the_limit_runs(name: str) -> None:
    model, size = STAGED[name](), (3, 64, 64)
    dense = measure.macs(model, size)
    assert measure.macs(sieve(model), size) == dense
    fast = sieve(model, "papr(keep=0.5, significance=centre)")
    assert measure.macs(fast, size) < 0.85 * dense
    with torch.no_grad():
        assert SlicingLimit(fast)(pictures((64, 64)).float()).shape == (2, 5)


def test_methods_with_weights_of_their_own_are_for_one_family() -> None:
    deep = {**SWIN, "depths": [1, 1, 10], "num_heads": [1, 2, 2], "stochastic_depth_prob": 0.0}
    swin = seeded(lambda: SwinTransformer(**deep), 1)
    settings = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 24, 1), CNBlockConfig(24, None, 10)]
    convnext = seeded(lambda: ConvNeXt(settings, layer_scale=0.1, num_classes=5), 1)
    images = pictures((64, 64)).float()
    for model, own, other in ((swin, "dynamicswin", "dynamiccnn"), (convnext, "dynamiccnn", "dynamicswin")):
        fast = sieve(model, f"{own}(keep=0.7)", pretrained=False)
        with torch.no_grad():
            trace = fast.trace(images)
            assert (trace.output - model(images)).abs().max() > 1e-4
        assert trace.tokens_per_block[:2] == [16 * 16, 8 * 8]
        assert trace.tokens_per_block[-1] < 4 * 4 == trace.tokens_per_block[2]
        with pytest.raises(UnsupportedHost, match=f"{type(model).__name__} cannot take {other}: it is made for"):
            sieve(model, f"{other}(keep=0.7)", pretrained=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "convnext", "swin-v2"])
def test_it_is_exported(name: str, tmp_path: Path) -> None:
    model = VITS[name]() if name == "vit" else STAGED[name]()
    fast = sieve(model, "tome(r=2)" if name == "vit" else "papr(keep=0.5, significance=centre)")
    size = None if name == "vit" else (64, 64)
    half = (0.5, 0.5, 0.5)
    done = export_program(fast, tmp_path / "a.pt2", size, mean=half, std=half)
    assert max(done.differences.values()) < 1e-4


@pytest.mark.slow
@kinds
def test_it_compiles_in_one_graph(name: str) -> None:
    model, images = STAGED[name](), pictures((50, 70)).float()
    fast = sieve(model, "papr(keep=0.6, significance=centre)")
    torch.compiler.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(fast, fullgraph=True, backend="eager")(images), fast(images))


@pytest.mark.slow
def test_a_vision_transformer_compiles_in_one_graph() -> None:
    model = VITS["vit"]()
    fast, images = sieve(model, "random(keep=0.6) + tome(r=2)"), torchvision_images(model)
    torch.compiler.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(fast, fullgraph=True, backend="eager")(images), fast(images))


@each_staged
def test_the_state_is_the_hosts(name: str) -> None:
    model, images = STAGED[name](), pictures((50, 70)).float()
    with torch.no_grad():
        whole = model(images)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        fast = sieve(model, PaPr(keep=0.6, significance=significance))
        fast(images)
        assert torch.equal(model(images), whole)
    for held in (model.state_dict(), fast.state_dict()):
        assert list(held) == list(state)
        assert all(torch.equal(value, state[key]) for key, value in held.items())


def test_what_is_known_of_a_host() -> None:
    facts = {name: (host.family, host.widths, host.background) for name, host in opened_hosts().items()}
    assert facts == {
        "convnext": ("ConvNeXt", [8, 16, 24, 32], "zero"),
        "convnext-shrunk-behind": ("ConvNeXt", [8, 16, 24], "zero"),
        **{name: ("Swin", [8, 16], "keep") for name in STAGED if name.startswith("swin")},
    }
    host = open_host(VITS["vit"]())
    assert (host.prefix, host.class_token, host.reads_prefix, host.width, host.patch) == (1, True, True, 32, (8, 8))
    assert open_host(VITS["vit-convolutional-stem"]()).patch is None


def opened_hosts() -> dict[str, Any]:
    return {name: open_host(form()) for name, form in STAGED.items()}


@kinds
def test_others_are_not_guessed(name: str) -> None:
    model = STAGED[name]()
    kind = type(model).__name__
    stage = model.features[1]
    for part in (stage[0], stage, model.features):
        own = type(part)
        mine(part)
        with pytest.raises(UnsupportedHost, match=f"{kind} holds a Mine, for which no opener is written"):
            sieve(model)
        part.__class__ = own
    mine(model)
    with pytest.raises(UnsupportedHost, match="Mine cannot be sieved: no opener"):
        sieve(model)
    empty = STAGED[name]()
    empty.features[1] = nn.Sequential()
    with pytest.raises(UnsupportedHost, match=f"{kind} holds an empty Sequential"):
        sieve(empty)
    with pytest.raises(UnsupportedHost, match=f"{kind} cannot take tome: its feature maps keep their full size"):
        sieve(STAGED[name](), "tome(r=2)")


def test_a_block_of_other_parts_is_refused() -> None:
    model = STAGED["convnext"]()
    model.features[1][0].block.append(nn.Identity())
    with pytest.raises(UnsupportedHost, match="a CNBlock of other parts than torchvision's"):
        sieve(model)


@kinds
def test_hooks_inside_opened_blocks(name: str) -> None:
    model, images, seen = STAGED[name](), pictures((32, 64)).float(), []
    fast = sieve(model, "papr(keep=0.5, significance=centre, stages=(1,))")
    block = model.features[3][0]
    skipped = [model, model.features, model.features[3], block]
    run = [model.features[1][0], model.features[2], model.features[0]]
    if name == "convnext":
        skipped += [block.block, block.block[1], block.block[6]]
        run += [block.block[0], block.block[2], block.block[5], model.classifier]
    else:
        run += [block.attn, block.norm2, block.mlp, model.norm, model.head]
    for part in skipped:
        handle = part.register_forward_hook(lambda *_: seen.append(1))
        with pytest.raises(UnsupportedHost, match="has a hook, which would not run"):
            fast(images)
        handle.remove()
    for part in run:
        seen.clear()
        handle = part.register_forward_hook(lambda *_: seen.append(1))
        with torch.no_grad():
            fast(images)
        assert seen, part
        handle.remove()


# --- torchvision as a whole ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("maxvit_t", "MaxVit cannot be sieved: its windows or strides need the whole grid"),
        ("mvit_v1_b", "MViT cannot be sieved: its attention pools queries, keys and values over the grid"),
        ("squeezenet1_1", r"no opener is written for torchvision\.models\.squeezenet\.SqueezeNet"),
    ],
)
def test_other_models_are_refused_in_a_sentence(name: str, reason: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    with pytest.raises(
        UnsupportedHost, match=rf"{reason}.*torchvision's ConvNeXt, SwinTransformer, .*VisionTransformer"
    ):
        sieve(model)


def test_a_traced_one_is_refused() -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    with pytest.raises(UnsupportedHost, match="traced graph: sieve the Python model"):
        sieve(create_feature_extractor(STAGED["swin"](), ["norm"]))


def vit_macs(side: int, patch: int, depth: int, d: int, classes: int, kept: list[tuple[int, int]] | None = None) -> int:
    """(tokens in attention, tokens in MLP) for each block, MLP ratio 4; by the papers' cost model."""
    patches = (side // patch) ** 2
    kept = kept or [(patches + 1, patches + 1)] * depth
    blocks = sum(4 * a * d * d + 2 * a * a * d + 8 * m * d * d for a, m in kept)
    return patches * 3 * patch**2 * d + blocks + d * classes


def test_the_macs_of_vit_b_16_by_hand() -> None:
    with torch.device("meta"):
        model = torchvision.models.vit_b_16().eval()
    assert measure.macs(model) == measure.macs(sieve(model)) == vit_macs(224, 16, 12, 768, 1000) == 17563828224
    kept = [(197 - 13 * i, 197 - 13 * (i + 1)) for i in range(12)]
    assert measure.macs(sieve(model, "tome(r=13)")) == vit_macs(224, 16, 12, 768, 1000, kept)


def test_the_macs_of_convnext_tiny_by_hand() -> None:
    with torch.device("meta"):
        model = torchvision.models.convnext_tiny().eval()
    widths, depths = (96, 192, 384, 768), (3, 3, 9, 3)

    def by_hand(keep: float) -> int:
        total, side = 0, 56
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            before = 3 * 16 if number == 0 else 4 * widths[number - 1]
            total += side**2 * before * width  # the stem, or what shrinks the map
            total += depth * (49 * side**2 * width + 8 * int(side**2 * keep) * width**2)
            side //= 2
        return total + widths[-1] * 1000

    assert measure.macs(model, 224) == measure.macs(sieve(model), 224) == by_hand(1)
    assert measure.macs(sieve(model, "papr(keep=0.6, significance=centre)"), 224) == by_hand(0.6)


def test_a_swin_block_of_its_own_attention_is_called_as_it_is() -> None:
    """The window attention is never opened, so that any in its place works."""
    model, images = STAGED["swin"](), pictures((32, 64)).float()
    block: SwinTransformerBlock = model.features[1][1]
    block.attn = nn.Linear(8, 8)
    with torch.no_grad():
        assert torch.equal(sieve(model)(images), model(images))
        sieve(model, "papr(keep=0.5, significance=centre)")(images)

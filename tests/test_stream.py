"""The stream on every form of host: identity, what a trace tells, threads, compilation.

That methods equal the float64 reference is for `test_matrix.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from tests.reference.hosts import host_forms, host_images
from tokensieve import InputError, PaPr, RecipeError, ToMe, UnsupportedHost, sieve

FORMS = host_forms()
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())

IDENTITIES = ["", "papr(keep=1)", "tome(r=0)", "papr(keep=1) + tome(r=0)", "tome(r=4, layers=0:0)"]


def random_map(model: nn.Module, images: Tensor) -> Tensor:
    patches = sieve(model).host.embed(images).x.shape[1] - model.num_prefix_tokens
    return torch.rand(images.shape[0], patches, generator=torch.Generator().manual_seed(3))


def equal(a: object, b: object) -> bool:
    if isinstance(a, tuple):  # the distilled host returns both heads in training
        return all(equal(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b)


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_identity_settings_are_bit_equal_to_the_host(
    form: Callable[[], nn.Module], dtype: torch.dtype, training: bool
) -> None:
    model = form().to(dtype).train(training)
    images = host_images(model).to(dtype)
    for recipe in IDENTITIES:
        fast = sieve(model, recipe)
        torch.manual_seed(5)
        expected = model(images)
        torch.manual_seed(5)
        assert equal(fast(images), expected), recipe
        torch.manual_seed(5)
        expected = model.forward_features(images)
        torch.manual_seed(5)
        assert torch.equal(fast.forward_features(images), expected), recipe


def test_identity_in_training_draws_the_same_random_numbers() -> None:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=5,
        drop_rate=0.2, pos_drop_rate=0.1, proj_drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.3,
    ).train()  # fmt: skip
    images = torch.randn(4, 3, 32, 32)
    torch.manual_seed(1)
    expected = model(images)
    torch.manual_seed(1)
    assert torch.equal(sieve(model, "tome(r=0)")(images), expected)
    # and through the seam: the same draws in the same order
    torch.manual_seed(1)
    opened = through_the_seam(model, images)
    assert torch.allclose(opened, expected, atol=1e-5)


def through_the_seam(model: nn.Module, images: Tensor) -> Tensor:
    """The host with every block recomposed under a size bias of all ones."""
    host = sieve(model).host
    tokens = host.embed(images)
    dtype = torch.promote_types(tokens.x.dtype, torch.float32)
    tokens = replace(tokens, weight=torch.ones(tokens.x.shape[:2], dtype=dtype))
    for block in host.blocks:
        heads = replace(block.qkv(tokens), weight=tokens.weight)
        x = block.attention_out(heads.attend(), heads, tokens.x)
        tokens = replace(tokens, x=block.mlp(x))
    return host.head(host.features(tokens))


@every_form
@torch.no_grad()
def test_the_opened_block_equals_the_block_called_whole(form: Callable[[], nn.Module]) -> None:
    model = form()
    images = host_images(model)
    host = sieve(model).host
    tokens = host.embed(images)
    for block in host.blocks:
        whole = block(tokens)
        ones = replace(tokens, weight=torch.ones(tokens.x.shape[:2]))
        heads = replace(block.qkv(ones), weight=ones.weight)
        opened = block.mlp(block.attention_out(heads.attend(), heads, ones.x))
        assert (opened - whole).abs().max() <= 1e-6 * whole.abs().max().clamp(min=1)
        tokens = replace(tokens, x=whole)


@every_form
@torch.no_grad()
def test_single_precision_answers_as_double(form: Callable[[], nn.Module]) -> None:
    model = form()
    images = host_images(model)
    recipe = PaPr(keep=0.7, significance=random_map(model, images)) + ToMe(r=3)
    single = sieve(model, recipe)(images)
    double = sieve(copy.deepcopy(model).double(), recipe)(images.double())
    assert (single - double).abs().max() <= 1e-5 * double.abs().max().clamp(min=1)


@every_form
@torch.no_grad()
def test_patches_may_come_in_any_order_where_nothing_reads_it(form: Callable[[], nn.Module]) -> None:
    model = form().double()
    images = host_images(model).double()
    significance = random_map(model, images)
    raster = sieve(model, PaPr(keep=0.6, significance=significance)).trace(images)
    ranked = sieve(model, PaPr(keep=0.6, significance=significance, order="significance")).trace(images)
    assert torch.equal(raster.kept, ranked.kept.sort(1).values)
    if getattr(model, "global_pool", "") == "":  # tokens come out unpooled, so in their own order
        return
    assert (raster.output - ranked.output).abs().max() <= 1e-9


def small_vit(**settings: object) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
    return VisionTransformer(**{**sizes, **settings}).eval()


def test_the_host_is_shared_and_unchanged() -> None:
    model = small_vit()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(2, 3, 64, 64)
    dense = model(images)
    fast = sieve(
        model, "papr(keep=0.5, proposal=resnet18) + tome(r=4)", mean=[0.5] * 3, std=[0.5] * 3, pretrained=False
    )
    fast(images)
    assert fast.model is model
    assert torch.equal(model(images), dense)
    assert list(fast.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in fast.state_dict().items())
    assert fast.load_state_dict(before) == model.load_state_dict(before)
    with torch.no_grad():
        model.head.bias += 1
    assert torch.equal(fast.state_dict()["head.bias"], before["head.bias"] + 1)

    outer = nn.ModuleDict({"net": fast})
    assert set(outer.state_dict()) == {f"net.{key}" for key in before}
    outer.load_state_dict(outer.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*head\.bias"):
        fast.load_state_dict({key: value for key, value in before.items() if key != "head.bias"})

    fast.train()
    assert model.training
    assert not fast.significance.training
    fast.eval()
    assert not model.training


def test_trace_of_a_dense_run() -> None:
    model = small_vit()
    images = torch.randn(2, 3, 64, 64)
    trace = sieve(model).trace(images)
    assert trace.kept is None
    assert trace.significance is None
    assert trace.tokens_per_block == [65] * 4
    assert torch.equal(trace.source, torch.arange(1, 65).expand(2, -1))
    dense = model.forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
    assert torch.equal(trace.restore(), dense)


def test_restore_takes_features_with_and_without_prefix() -> None:
    model = small_vit(reg_tokens=2)
    images = torch.randn(2, 3, 64, 64)
    trace = sieve(model, "random(keep=0.5) + tome(r=4)").trace(images)
    tokens = trace.tokens.x
    assert torch.equal(trace.restore(tokens), trace.restore(tokens[:, 3:]))
    assert trace.restore(tokens, fill="zero").shape == (2, 32, 8, 8)
    zeros = (trace.restore(tokens, fill="zero") == 0).all(1).sum((1, 2))
    assert zeros.tolist() == [64 - int(67 * 0.5)] * 2
    with pytest.raises(InputError, match=r"\(B, 20, C\), or \(B, 17, C\)"):
        trace.restore(tokens[:, :5])


def test_gradients_reach_the_host_through_the_kept_tokens() -> None:
    model = small_vit().train()
    fast = sieve(model, "random(keep=0.5) + tome(r=4)")
    fast(torch.randn(2, 3, 64, 64)).sum().backward()
    assert model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert model.patch_embed.proj.weight.grad.abs().sum() > 0


@pytest.mark.versions
def test_eight_threads_share_one_model_bit_equal_to_serial() -> None:
    fast = sieve(
        small_vit(), "papr(keep=0.6, proposal=resnet18) + tome(r=4)", mean=[0.5] * 3, std=[0.5] * 3, pretrained=False
    )
    inputs = [torch.randn(1 + i % 3, 3, 64, 64) for i in range(24)]
    with torch.no_grad():
        serial = [fast(images) for images in inputs]

        def run(images: Tensor) -> Tensor:
            with torch.no_grad():
                return fast(images)

        with ThreadPoolExecutor(8) as pool:
            for got, expected in zip(pool.map(run, inputs * 3), serial * 3, strict=True):
                assert torch.equal(got, expected)


@pytest.mark.versions
@pytest.mark.parametrize(
    "recipe",
    [
        "papr(keep=0.6, proposal=resnet18)",
        "tome(r=4)",
        "papr(keep=0.6, proposal=mobileone_s0, order=significance) + tome(r=4, layers=2:)",
        "random(keep=0.5)",
        "papr(keep=0.5, significance=centre)",
    ],
)
def test_one_graph_for_every_batch_size(recipe: str) -> None:
    graphs = []

    def count(module: torch.fx.GraphModule, _inputs: object) -> Callable:
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    fast = sieve(small_vit(), recipe, mean=[0.5] * 3, std=[0.5] * 3, pretrained=False)
    compiled = torch.compile(fast, fullgraph=True, backend=count)
    with torch.no_grad():
        for batch in (4, 2, 7):
            images = torch.randn(batch, 3, 64, 64)
            torch._dynamo.mark_dynamic(images, 0)
            assert (compiled(images) - fast(images)).abs().max() <= 1e-5
    assert len(graphs) == 1


@pytest.mark.versions
def test_export_has_a_dynamic_batch() -> None:
    fast = sieve(
        small_vit(), "papr(keep=0.6, proposal=resnet18) + tome(r=4)", mean=[0.5] * 3, std=[0.5] * 3, pretrained=False
    )
    program = torch.export.export(
        fast, (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
    )
    images = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        assert (program.module()(images) - fast(images)).abs().max() <= 1e-5


def test_half_applied_is_refused() -> None:
    with pytest.raises(RecipeError, match="both drop patches before block 0"):
        sieve(small_vit(), "random(keep=0.5) + papr(keep=0.5)")


def test_two_methods_act_in_one_block_one_after_the_other() -> None:
    images = torch.randn(2, 3, 64, 64)
    trace = sieve(small_vit(), "tome(r=2, layers=0:3) + tome(r=4, layers=2:4)").trace(images)
    assert trace.tokens_per_block == [63, 61, 55, 51]


def test_native_normalisation_needs_the_hosts_statistics() -> None:
    with pytest.raises(RecipeError, match="mean="):
        sieve(small_vit(), "papr(keep=0.5, proposal=resnet18)", pretrained=False)


def test_blocks_without_a_seam_take_papr_and_refuse_merging() -> None:
    from timm.models.vision_transformer import ParallelScalingBlock

    model = small_vit(block_fn=ParallelScalingBlock)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(sieve(model)(images), model(images))
    assert sieve(model, "random(keep=0.5)").trace(images).tokens_per_block == [33] * 4
    with pytest.raises(UnsupportedHost, match="ParallelScalingBlock is not a block that can be stopped"):
        sieve(model, "tome(r=4)")


class OtherPool(AttentionPoolLatent):
    """May compute anything."""


def other_pool() -> nn.Module:
    model = small_vit(global_pool="map")
    model.attn_pool.__class__ = OtherPool
    return model


@pytest.mark.parametrize(
    ("make", "pool"),
    [
        (other_pool, "OtherPool"),
        pytest.param(
            partial(small_vit, global_pool="prr"),
            "AttentionPoolPrr",
            marks=pytest.mark.skipif(
                not hasattr(timm.layers, "AttentionPoolPrr"), reason=f"timm {timm.__version__} has no AttentionPoolPrr"
            ),
        ),
    ],
)
def test_a_pooling_that_cannot_weigh_refuses_merging(make: Callable[[], nn.Module], pool: str) -> None:
    model = make()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(sieve(model)(images), model(images))
    sieve(model, "random(keep=0.5)")(images)
    with pytest.raises(UnsupportedHost, match=f"{pool} cannot weigh"):
        sieve(model, "tome(r=4)")


def test_an_embedding_without_classifier_returns_pooled_features() -> None:
    model = small_vit(num_classes=0)
    assert sieve(model, "random(keep=0.5) + tome(r=4)")(torch.randn(2, 3, 64, 64)).shape == (2, 32)


def test_patch_dropout_in_training_is_refused_when_it_happens() -> None:
    model = small_vit(patch_drop_rate=0.5)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(sieve(model, "tome(r=0)")(images), model(images))
    with pytest.raises(UnsupportedHost, match="patch_drop_rate=0"):
        sieve(model.train(), "tome(r=2)")(images)


def test_images_of_another_rank_are_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(3, 64, 64\); VisionTransformer reads \(B, 3, H, W\)"):
        sieve(small_vit())(torch.randn(3, 64, 64))

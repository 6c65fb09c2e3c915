"""MACs, counted by hand and against printed tables."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tokensieve import InputError, prepack, sieve
from tokensieve.measure import macs


def by_hand(counts: list[tuple[int, int]], d: int, patches: int, classes: int, pixels: int) -> int:
    """The cost model of the papers: (tokens in attention, tokens in MLP) for each block, MLP ratio 4."""
    blocks = sum(4 * a * d * d + 2 * a * a * d + 8 * m * d * d for a, m in counts)
    return patches * 3 * pixels * d + blocks + d * classes


def vit(**settings: object) -> nn.Module:
    sizes = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    return VisionTransformer(**{**sizes, **settings}).eval()


@pytest.mark.parametrize(
    ("recipe", "counts"),
    [
        ("", [(65, 65)] * 3),
        ("random(keep=0.5)", [(33, 33)] * 3),
        ("tome(r=8)", [(65, 57), (57, 49), (49, 41)]),
        ("random(keep=0.5) + tome(r=20)", [(33, 17), (17, 9), (9, 5)]),
    ],
)
def test_counts_by_hand(recipe: str, counts: list[tuple[int, int]]) -> None:
    fast = sieve(vit(), recipe)
    assert macs(fast, (3, 64, 64)) == by_hand(counts, 32, 64, 5, 64)
    assert [(reads.keys, reads.mlp) for reads in fast.plan.reads(64)] == counts


def test_a_dense_model_needs_no_sieve() -> None:
    assert macs(vit(), (3, 64, 64)) == macs(sieve(vit()), (3, 64, 64))


def test_the_mean_over_images_is_the_count_of_one() -> None:
    fast = sieve(vit(), "tome(r=8)")
    assert macs(fast, images=torch.randn(3, 3, 64, 64)) == macs(fast, (3, 64, 64))


def test_the_proposal_can_be_left_out() -> None:
    fast = sieve(vit(), "papr(keep=0.5, proposal=resnet18)", mean=[0.5] * 3, std=[0.5] * 3, pretrained=False)
    without = macs(fast, (3, 64, 64), proposal=False)
    assert without == macs(sieve(vit(), "random(keep=0.5)"), (3, 64, 64))
    assert macs(fast, (3, 64, 64)) - without == macs(fast.significance.proposal, (3, 64, 64)) > 0


def test_selection_adds_the_similarity_scores() -> None:
    fast = sieve(vit(), "tome(r=8)")
    # cosines of the 32 even patch tokens with the 32 odd ones in the first block, of 28 with 28, of 24 with 24
    scores = sum(n * n * 16 for n in (32, 28, 24))
    assert macs(fast, (3, 64, 64), selection=True) - macs(fast, (3, 64, 64)) == scores


@pytest.mark.parametrize("significance", ["grad-cam", "cam", "mean"])
def test_maps_with_gradients_are_counted(significance: str) -> None:
    recipe = f"papr(keep=0.5, proposal=resnet18, significance={significance})"
    fast = sieve(vit(), recipe, mean=[0.5] * 3, std=[0.5] * 3, pretrained=False)
    assert macs(fast, (3, 64, 64)) > macs(fast, (3, 64, 64), proposal=False)


def test_compat_adds_the_papers_terms() -> None:
    norms = 2 * 3 * 65 * 32 + 65 * 32  # two in each block, one at the end
    assert macs(vit(), (3, 64, 64), fvcore_compat=True) - macs(vit(), (3, 64, 64)) == 5 * norms


def test_compat_leaves_out_channels_first_layer_norm_and_counts_batch_norm() -> None:
    from timm.layers import LayerNorm2d

    net = nn.Sequential(nn.Conv2d(3, 4, 1), LayerNorm2d(4), nn.BatchNorm2d(4), nn.UpsamplingBilinear2d(size=(6, 6)))
    extra = macs(net.eval(), (3, 5, 5), fvcore_compat=True) - macs(net, (3, 5, 5))
    assert extra == 2 * 4 * 25 + 4 * 4 * 36


@pytest.mark.parametrize(
    ("name", "recipe", "compat", "printed"),
    [
        ("vit_small_patch16_224", "", True, "4.608"),
        ("vit_small_patch16_224", "papr(keep=0.45)", True, "2.299"),
        ("vit_small_patch16_224", "tome(r=13)", False, "2.703"),
        ("deit_tiny_patch16_224", "tome(r=13)", False, "0.731"),
        ("vit_base_patch16_224", "papr(keep=0.5)", True, "8.989"),
        ("vit_base_patch16_224", "papr(keep=0.5, order=significance) + tome(r=16, layers=6:12)", True, "6.82"),
        ("convnext_base", "papr(keep=0.65)", True, "10.420"),
        ("convnext_base", "papr(keep=0.65, stages=(2,))", True, "11.740"),
        ("convnext_base", "dynamiccnn(keep=0.7)", True, "10.206"),
        ("convnext_tiny", "dynamiccnn(keep=0.7)", True, "3.59"),
        ("swin_base_patch4_window7_224", "papr(keep=0.65)", True, "12.254"),
        ("swin_tiny_patch4_window7_224", "dynamicswin(keep=0.7)", False, "4.04"),
    ],
)
def test_printed_tables(name: str, recipe: str, compat: bool, printed: str) -> None:
    count = macs(sieve(timm.create_model(name).eval(), recipe, pretrained=False), fvcore_compat=compat) / 1e9
    assert f"{count:.{len(printed.split('.')[1])}f}" == printed


def test_input_size_has_three_numbers() -> None:
    with pytest.raises(InputError, match=r"\(3, height, width\)"):
        macs(vit(), (64, 64))  # type: ignore[arg-type]


def test_packed_weights_count_as_the_plain_ones() -> None:
    assert macs(prepack(vit()), (3, 64, 64)) == macs(vit(), (3, 64, 64))


def test_a_host_that_pools_by_attention_is_counted_and_stays_as_it_was() -> None:
    model = timm.create_model("test_vit3").eval()
    size = model.pretrained_cfg["input_size"]
    dense = macs(model, size)
    assert macs(sieve(model, "tome(r=8)"), size) < dense
    assert all(parameter.requires_grad for parameter in model.parameters())

"""MACs, counted by hand and against printed tables."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.reference.cases import OF_IMAGES, Facts
from tests.reference.hosts import host_forms
from tokensieve import InputError, RecipeError, prepack, sieve, zoo
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


@pytest.mark.versions
@pytest.mark.parametrize("significance", ["mean", "cam", "grad-cam", "'grad-cam++'", "eigen-cam", "score-cam"])
def test_maps_of_all_kinds_are_counted(significance: str) -> None:
    recipe = f"papr(keep=0.5, proposal=resnet18, significance={significance})"
    fast = sieve(vit(), recipe, mean=[0.5] * 3, std=[0.5] * 3, pretrained=False)
    assert macs(fast, (3, 64, 64)) > macs(fast, (3, 64, 64), proposal=False)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_the_selection_of_every_method_is_made_of_operators_that_are_known(name: str) -> None:
    model = host_forms()["class-token"]()
    patches = repr(Facts(25, len(model.blocks)).nested(4))
    for case in OF_IMAGES[name]:
        fast = sieve(model, case.text.replace("{slimming}", patches), pretrained=False)
        assert macs(fast, selection=True) >= macs(fast) > 0
        images = torch.randn(2, 3, 40, 40)
        assert macs(fast, images=images, selection=True) >= macs(fast, images=images) > 0


def test_layers_of_a_methods_own_are_counted_once() -> None:
    fast = sieve(vit(), "dynamicvit(keep=0.7)", pretrained=False)  # which sorts, and multiplies nothing else
    assert macs(fast, selection=True) == macs(fast) > macs(fast.model) / 2


def test_an_empty_batch_has_no_mean() -> None:
    with pytest.raises(InputError, match="at least one image"):
        macs(vit(), images=torch.empty(0, 3, 64, 64))


def test_compat_adds_the_papers_terms() -> None:
    norms = 2 * 3 * 65 * 32 + 65 * 32  # two in each block, one at the end
    assert macs(vit(), (3, 64, 64), fvcore_compat=True) - macs(vit(), (3, 64, 64)) == 5 * norms


def test_compat_leaves_out_channels_first_layer_norm_and_counts_batch_norm() -> None:
    from timm.layers import LayerNorm2d

    net = nn.Sequential(nn.Conv2d(3, 4, 1), LayerNorm2d(4), nn.BatchNorm2d(4), nn.UpsamplingBilinear2d(size=(6, 6)))
    extra = macs(net.eval(), (3, 5, 5), fvcore_compat=True) - macs(net, (3, 5, 5))
    assert extra == 2 * 4 * 25 + 4 * 4 * 36


@pytest.mark.versions
@pytest.mark.parametrize(
    ("name", "recipe", "compat", "printed"),
    [
        ("deit_tiny_patch16_224", "", False, "1.254"),
        ("vit_base_patch16_224", "", False, "17.56"),
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


def test_a_side_and_a_height_and_width_are_of_the_models_channels() -> None:
    counted = macs(vit(), (3, 64, 64))
    assert macs(vit(), 64) == macs(vit(), (64, 64)) == macs(vit()) == counted
    stem = 64 * 64 * 32  # of every channel
    assert macs(vit(in_chans=4), 64) == counted + stem
    with pytest.raises(InputError, match="input_size is a side"):
        macs(vit(), (64,))


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize("recipe", ["", "tome(r=8)", "papr(keep=0.5, significance=centre)"])
def test_a_model_is_counted_at_its_own_size_and_channels(channels: int, recipe: str) -> None:
    model = vit(img_size=(40, 48), in_chans=channels)
    fast = sieve(model, recipe)
    assert macs(model) == by_hand([(31, 31)] * 3, 32, 30, 5, 64) + 30 * (channels - 3) * 64 * 32
    assert macs(fast) == macs(fast, (channels, 40, 48)) <= macs(model)


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224"])
@pytest.mark.versions
def test_hosts_with_stages_are_counted_at_their_own_channels(name: str, features_only: bool, channels: int) -> None:
    with zoo.without_memory():
        model, of_three = (timm.create_model(name, features_only=features_only, in_chans=n) for n in (channels, 3))
    stem = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
    more = (channels - 3) * stem.weight[:, 0].numel() * (224 // 4) ** 2
    assert macs(model.eval()) == macs(of_three.eval()) + more
    fast = sieve(model, "papr(keep=0.5, significance=centre)")
    assert macs(fast) == macs(fast, (channels, 224, 224)) < macs(model)


def test_models_for_larger_images_are_counted_at_those() -> None:
    with zoo.without_memory():
        large, at_518 = timm.create_model("vit_base_patch16_384"), timm.create_model("vit_small_patch14_dinov2")
    assert macs(large) == macs(large, (3, 384, 384)) == pytest.approx(55.48e9, rel=1e-3)
    assert macs(at_518) == 12 * (12 * 1370 * 384**2 + 2 * 1370**2 * 384) + 1369 * 3 * 14**2 * 384


def test_transformers_count_at_what_their_config_says() -> None:
    hf = pytest.importorskip("transformers")
    settings = {"image_size": 518, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = hf.Dinov2Model(hf.Dinov2Config(**settings)).eval()
    blocks = by_hand([(1370, 1370)] * 2, 32, 1369, 0, 14 * 14)
    assert macs(model) == macs(sieve(model)) == blocks


NAMED = "papr(keep=0.5, proposal=test_resnet)"


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_a_named_proposal_reads_three_channels(channels: int) -> None:
    fast = sieve(vit(in_chans=channels), NAMED, mean=(0.5,) * 3, std=(0.5,) * 3, pretrained=False)
    for call in (lambda: macs(fast), lambda: fast(torch.randn(1, channels, 64, 64))):
        with pytest.raises(InputError, match=r"the proposal test_resnet reads \(B, 3, H, W\)\. Give a network of your"):
            call()
    with pytest.raises(RecipeError, match=rf"test_resnet reads 3 channels, the host {channels} \(mean="):
        sieve(fast.model, NAMED, mean=(0.5,) * channels, std=(0.5,) * channels, pretrained=False)


def test_a_size_that_the_model_does_not_read_is_a_sentence() -> None:
    with pytest.raises(
        InputError, match=r"does not run on images of shape \(1, 3, 72, 72\): .* built for \(3, 64, 64\)"
    ):
        macs(vit(), 72)
    with pytest.raises(InputError, match=r"images of shape \(1, 4, 64, 64\)"):
        macs(sieve(vit(), "tome(r=8)"), (4, 64, 64))
    with pytest.raises(InputError, match=r"not uint8 of shape \(1, 3, 64, 64\)"):
        macs(vit(), images=torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(InputError, match="Sequential states no size of its images"):
        macs(nn.Sequential(nn.Conv2d(3, 4, 1)))


class Distances(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cdist(images.flatten(2), images.flatten(2)).mean(0) @ images[0, 0, :3].mT


def test_what_cannot_be_counted_is_said() -> None:
    words = "The MACs of Distances cannot be counted: it runs aten._cdist_forward, for which no formula is known"
    with pytest.raises(InputError, match=words):
        macs(Distances(), (3, 8, 3))


@pytest.mark.parametrize("recipe", ["", "papr(keep=0.5, significance=centre) + tome(r=8)"])
def test_what_is_around_a_model_changes_no_count(recipe: str) -> None:
    fast = sieve(vit(), recipe)
    assert macs(torch.compile(fast)) == macs(nn.DataParallel(fast)) == macs(fast)
    with torch.inference_mode():
        assert macs(fast) == macs(sieve(vit(), recipe))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert macs(fast) == macs(sieve(vit(), recipe))


def test_packed_weights_count_as_the_plain_ones() -> None:
    assert macs(prepack(vit()), (3, 64, 64)) == macs(vit(), (3, 64, 64))


def test_a_host_that_pools_by_attention_is_counted_and_stays_as_it_was() -> None:
    model = timm.create_model("test_vit3").eval()
    size = model.pretrained_cfg["input_size"]
    dense = macs(model, size)
    assert macs(sieve(model, "tome(r=8)"), size) < dense
    assert all(parameter.requires_grad for parameter in model.parameters())

"""The references themselves, checked against timm, PyTorch, numbers worked out by hand and slow simulations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from timm.models.eva import Eva, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn

from tests.reference.hosts import absent_forms, host_forms, host_images
from tests.reference.significance import (
    cam,
    eigen_cam,
    grad_cam,
    grad_cam_pp,
    patch_significance,
    score_cam,
)
from tests.reference.staged import absent_staged_forms, staged_forms
from tests.reference.vit import match, reference_forward, schedule, select

pytestmark = pytest.mark.versions  # references change seldom

FORMS = host_forms()
EXACT = {"rtol": 0, "atol": 1e-10}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices of 32 channels: threads cost more than they bring
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


def _double(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double()


def _patches(model: nn.Module, images: Tensor) -> int:
    h, w = model.patch_embed.dynamic_feat_size(images.shape[-2:])
    return h * w


def _significance(model: nn.Module, images: Tensor) -> Tensor:
    shape = (images.shape[0], _patches(model, images))
    return torch.rand(shape, generator=torch.Generator().manual_seed(5))


# --- the hosts -------------------------------------------------------------------------------------------------------


def test_hosts_are_reproducible_and_leave_the_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    for form in FORMS.values():
        first, second = form(), form()
        assert not first.training
        for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
        assert torch.equal(host_images(first), host_images(second))
    assert torch.equal(torch.rand(2), expected)


def test_forms_are_left_out_only_where_timm_does_not_know_their_settings() -> None:
    absent = absent_forms() | absent_staged_forms()
    assert not absent.keys() & (FORMS.keys() | staged_forms().keys())
    assert {"class-token", "registers", "siglip", "eva", "eva02"} <= FORMS.keys()
    if Version(timm.__version__) >= Version("1.0.31"):
        assert not absent
    elif absent:
        pytest.skip("not tried: " + "; ".join(f"{name} ({why})" for name, why in absent.items()))


@pytest.mark.parametrize("name", FORMS)
def test_every_parameter_of_a_host_matters(name: str) -> None:
    model = FORMS[name]()
    images = host_images(model)
    with torch.enable_grad():
        model(images).square().sum().backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not idle


# --- no reduction ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
def test_without_reduction_it_is_the_host(name: str) -> None:
    model = FORMS[name]()
    images = host_images(model)
    dense = _double(model)
    got = reference_forward(model, images)
    torch.testing.assert_close(got.output, dense(images.double()), **EXACT)
    torch.testing.assert_close(got.tokens, dense.forward_features(images.double()), **EXACT)
    patches, p = _patches(model, images), model.num_prefix_tokens
    assert got.kept is None
    assert got.tokens_per_block == [patches + p] * len(model.blocks)
    assert torch.equal(got.source, torch.arange(p, p + patches).expand(2, -1))
    assert torch.equal(got.sizes, torch.ones(2, patches + p, dtype=torch.float64))


@pytest.mark.parametrize("name", FORMS)
def test_identity_settings_change_nothing(name: str) -> None:
    model = FORMS[name]()
    images = host_images(model, batch=1)
    plain = reference_forward(model, images)
    for settings_ in (
        {"keep": 1.0, "significance": _significance(model, images)},
        {"keep": 1},
        {"r": 0},
        {"r": []},
        {"r": 5, "layers": slice(0, 0)},
    ):
        got = reference_forward(model, images, **settings_)
        assert torch.equal(got.output, plain.output)
        assert got.kept is None
        assert got.tokens_per_block == plain.tokens_per_block


# --- PaPr ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["raster", "significance"])
@pytest.mark.parametrize("name", FORMS)
def test_papr_is_the_host_that_cannot_see_the_dropped_patches(name: str, order: str) -> None:
    """Masking the dropped keys in timm's own forward leaves the kept tokens as they are, rotary rows included.

    The mask comes in below timm's forward, which takes none in older versions.
    """
    model = FORMS[name]()
    images = host_images(model)
    significance = _significance(model, images)
    got = reference_forward(model, images, keep=0.4, significance=significance, order=order)
    patches, p = _patches(model, images), model.num_prefix_tokens
    n_t = int((patches + p) * 0.4)
    assert got.kept.shape == (2, n_t)
    assert got.tokens_per_block == [n_t + p] * len(model.blocks)
    for b in range(2):
        best = set(significance[b].topk(n_t).indices.tolist())
        kept = got.kept[b].tolist()
        assert set(kept) == best
        expected = sorted(kept) if order == "raster" else sorted(kept, key=lambda j: -significance[b, j].item())
        assert kept == expected
        visible = [*range(p), *(p + j for j in kept)]
        mask = torch.full((patches + p, patches + p), float("-inf"), dtype=torch.float64)
        mask[:, visible] = 0
        attend = partial(_masked, F.scaled_dot_product_attention, mask)
        with mock.patch.object(F, "scaled_dot_product_attention", attend):
            dense = _double(model).forward_features(images[b : b + 1].double())
        torch.testing.assert_close(got.tokens[b], dense[0, visible], **EXACT)
        assert [got.source[b, j].item() for j in kept] == list(range(p, p + n_t))
        assert (got.source[b] == -1).sum() == patches - n_t


def _masked(attend: Callable[..., Tensor], mask: Tensor, *parts: Tensor, **words: object) -> Tensor:
    return attend(*parts, **{**words, "attn_mask": mask})


@pytest.mark.parametrize("name", FORMS)
def test_papr_pools_survivors_only(name: str) -> None:
    model = FORMS[name]()
    images = host_images(model)
    got = reference_forward(model, images, keep=0.5, significance=_significance(model, images))
    torch.testing.assert_close(got.output, _double(model).forward_head(got.tokens), **EXACT)


def test_selection_counts_and_ties() -> None:
    assert len(select([0.0] * 196, 0.5, 1)) == 98
    assert len(select([0.0] * 196, 0.55, 1)) == 108
    assert len(select([0.0] * 196, 0.999, 5)) == 196  # int(200.799) is more than there are patches
    assert len(select([0.0] * 256, 0.99, 5)) == 256  # int(258.39) too
    assert len(select([0.0] * 100, 0.29, 0)) == 28  # 28.999999999999996
    assert len(select([0.0] * 9, 0.01, 1)) == 1
    assert select([1.0, 2.0, 1.0, 2.0, 0.0, 1.0], 0.5, 2) == [0, 1, 2, 3]
    assert select([1.0, 2.0, 1.0, 2.0, 0.0, 1.0], 0.5, 2, "significance") == [1, 3, 0, 2]


# --- ToMe ------------------------------------------------------------------------------------------------------------

# even positions merge into odd ones: 0-1 .6, 0-3 .96, 2-1 .8, 2-3 -.28; length plays no part
FOUR = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0], [0.96, -0.28]], dtype=torch.float64)


def test_four_tokens_matched_by_hand() -> None:
    assert match(FOUR, 0, 0)[0] == [[0], [1], [2], [3]]
    groups, margin = match(FOUR, 0, 1)
    assert groups == [[2], [1], [3, 0]]
    assert margin == pytest.approx(0.96 - 0.8)  # 2 nearly went instead; 0-3 leads 0-1 by more
    groups, margin = match(FOUR, 0, 2)
    assert groups == [[1, 2], [3, 0]]
    assert margin == pytest.approx(0.96 - 0.6)
    assert match(FOUR, 0, 9)[0] == [[1, 2], [3, 0]]
    # a class token leads: row 0 is no source, 3 // 2 = 1 merge at most
    assert match(FOUR, 1, 1)[0] == [[0], [1, 2], [3]]
    assert match(FOUR, 1, 2)[0] == [[0], [1, 2], [3]]
    # class and distillation token: 1 is no destination, so 2 goes to 3 although it is unlike
    assert match(FOUR, 2, 5)[0] == [[0], [1], [3, 2]]
    assert match(FOUR, 3, 5)[0] == [[0], [1], [2], [3]]


@pytest.mark.parametrize("proportional", [True, False])
def test_four_tokens_through_two_blocks_by_hand(proportional: bool) -> None:
    """Keys and values are the tokens themselves, queries are 0, the MLP is nothing: all numbers fit on a napkin."""
    host = VisionTransformer(
        img_size=(2, 2), patch_size=1, in_chans=2, num_classes=0, global_pool="avg", embed_dim=2, depth=2, num_heads=1,
        qkv_bias=False, class_token=False, pos_embed="none", fc_norm=False, norm_layer=nn.Identity,
    )  # fmt: skip
    identity = torch.eye(2)
    host.patch_embed.proj.weight.copy_(identity[:, :, None, None])
    host.patch_embed.proj.bias.zero_()
    for i, block in enumerate(host.blocks):
        block.attn.qkv.weight.copy_(torch.cat([0 * identity, identity, identity]))
        block.attn.proj.weight.copy_(i * identity)  # block 0 only merges, block 1 also attends
        block.attn.proj.bias.zero_()
        block.mlp.fc2.weight.zero_()
        block.mlp.fc2.bias.zero_()
    got = reference_forward(host, FOUR.T.reshape(1, 2, 2, 2), r=[1], proportional=proportional)
    assert got.tokens_per_block == [3, 3]
    assert got.source.tolist() == [[2, 1, 0, 2]]
    assert got.sizes.tolist() == [[1, 1, 2]]
    # after block 0: (0, 2), (.6, .8) and (.98, -.14) of size 2; their mean by size is (2.56, 2.52) / 4
    seen = [0.64, 0.63] if proportional else [1.58 / 3, 2.66 / 3]
    expected = torch.tensor([[0.0, 2.0], [0.6, 0.8], [0.98, -0.14]], dtype=torch.float64) + torch.tensor(seen)
    torch.testing.assert_close(got.tokens[0], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        got.output[0], torch.tensor([0.64, 0.63]).double() + torch.tensor(seen), rtol=0, atol=1e-6
    )


def test_ties_go_to_the_lower_index() -> None:
    same = torch.ones(6, 3, dtype=torch.float64)
    groups, margin = match(same, 0, 2)
    assert groups == [[4], [1, 0, 2], [3], [5]]
    assert margin == 0
    assert match(same, 1, 2)[0] == [[0], [1, 2, 4], [3], [5]]


def test_unmerged_tokens_are_ranked_without_a_prefix_and_sorted_with_one() -> None:
    angles = torch.tensor([30.0, 0.0, 20.0, 180.0, 10.0, 180.0, 1.0, 180.0, 40.0, 180.0], dtype=torch.float64)
    metric = torch.stack([angles.deg2rad().cos(), angles.deg2rad().sin()], dim=1)
    assert match(metric, 0, 1)[0] == [[4], [2], [0], [8], [1, 6], [3], [5], [7], [9]]
    assert match(metric, 1, 1)[0] == [[0], [2], [4], [8], [1, 6], [3], [5], [7], [9]]


def test_schedules() -> None:
    assert schedule(3, 4) == [3, 3, 3, 3]
    assert schedule(None, 2) == [0, 0]
    assert schedule((8, -1), 5) == [16, 12, 8, 4, 0]
    assert schedule((8, 0), 3) == [8, 8, 8]
    assert schedule((8, 0.5), 3) == [4, 8, 12]
    assert schedule((8, 1), 1) == [0]
    assert schedule([5, 2], 4) == [5, 2, 0, 0]
    assert schedule((5, 2, 1), 4) == [5, 2, 1, 0]
    assert schedule(4, 6, slice(3, None)) == [0, 0, 0, 4, 4, 4]
    assert schedule([1, 2, 3, 4], 4, slice(None, None, 2)) == [1, 0, 3, 0]
    assert schedule(4, 4, slice(-1, None)) == [0, 0, 0, 4]


@pytest.mark.parametrize(("r", "depth", "last"), [(13, 12, 41), (16, 12, 11), (8, 24, 7)])
def test_published_token_counts(r: int, depth: int, last: int) -> None:
    model = VisionTransformer(img_size=224, patch_size=16, embed_dim=8, depth=depth, num_heads=1, num_classes=2)
    got = reference_forward(model.eval(), torch.randn(1, 3, 224, 224), r=r)
    assert got.tokens_per_block[-1] == last
    assert got.tokens_per_block[:2] == [197 - r, 197 - 2 * r]
    assert got.sizes.sum() == 197


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 15),
    prefix=st.integers(0, 4),
    r=st.integers(-1, 9),
    seed=st.integers(0, 10_000),
)
def test_match_is_a_partition_and_agrees_with_a_matrix_form(n: int, prefix: int, r: int, seed: int) -> None:
    n = max(n, prefix)
    metric = torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    groups, _ = match(metric, prefix, r)
    assert sorted(i for group in groups for i in group) == list(range(n))
    assert len(groups) == n - max(min(r, (n - prefix) // 2), 0)
    assert [group[0] for group in groups[:prefix]] == list(range(prefix))
    assert all(len(group) == 1 for group in groups[:prefix])
    if len(groups) < n:
        assert _partition(groups) == _partition(_match_by_matrix(metric, prefix, n - len(groups)))


def _match_by_matrix(metric: Tensor, prefix: int, r: int) -> list[list[int]]:
    unit = F.normalize(metric, dim=-1)
    scores = unit[::2] @ unit[1::2].T
    scores[: (prefix + 1) // 2] = float("-inf")
    scores[:, : prefix // 2] = float("-inf")
    value, column = scores.max(dim=1)
    sources = value.topk(r).indices.tolist()
    group = {i: [i] for i in range(len(metric)) if i % 2 or i // 2 not in sources}
    for a in sources:
        group[2 * column[a].item() + 1].append(2 * a)
    return list(group.values())


def _partition(groups: list[list[int]]) -> set[frozenset[int]]:
    return {frozenset(group) for group in groups}


def _groups(source: Tensor, prefix: int) -> list[list[int]]:
    """Groups of original positions, prefix included, from a row of `source`."""
    patches = [(source == n).nonzero()[:, 0] + prefix for n in range(prefix, int(source.max()) + 1)]
    return [[i] for i in range(prefix)] + [group.tolist() for group in patches]


def _expanded(model: nn.Module, image: Tensor, groups_of_block: dict[int, list[list[int]]]) -> tuple[Tensor, Tensor]:
    """ToMe without ever removing a token: a group's tokens all take its plain mean and its destination's place.

    Attention over s equal keys is what log s in the logit stands for, and a mean over s equal tokens is a mean
    weighted by s, so timm's own attention, blocks and head give the exact answer.
    """
    model = _double(model)
    p = model.num_prefix_tokens
    x, rope = model.patch_embed(image[None].double()), None
    if isinstance(model, Eva):
        x, rope = model._pos_embed(x)
    else:
        x = model._pos_embed(x)
    x = model.norm_pre(x) if hasattr(model, "norm_pre") else x  # which an older Eva does not have
    groups = [[n] for n in range(x.shape[1])]
    place = list(range(x.shape[1]))  # the original position whose rotary row each group uses
    for i, block in enumerate(model.blocks):
        table = {}
        if rope is not None:
            rows = [0] * x.shape[1]
            for group, row in zip(groups, place, strict=True):
                for n in group:
                    rows[n] = row - p
            table = {"rope": (rope[i] if getattr(model, "rope_mixed", False) else rope)[..., rows[p:], :]}
        if isinstance(block, ResPostBlock | EvaBlockPostNorm):
            x = x + block.norm1(block.attn(x, **table))
        elif isinstance(block, EvaBlock):
            branch = block.attn(block.norm1(x), **table)
            x = x + (branch if block.gamma_1 is None else block.gamma_1 * branch)
        else:
            x = x + block.ls1(block.attn(block.norm1(x)))
        new = groups_of_block.get(i, groups)
        for group in new:
            x[:, group] = x[:, group].mean(dim=1, keepdim=True)
        parts = [[k for k, old in enumerate(groups) if set(old) <= set(group)] for group in new]
        # exactly one part of a merged group stood at an odd position: the destination
        place = [place[k[0] if len(k) == 1 else next(n for n in k if n % 2)] for k in parts]
        assert all(len(k) == 1 or sum(n % 2 for n in k) == 1 for k in parts)
        groups = new
        if isinstance(block, ResPostBlock | EvaBlockPostNorm):
            x = x + block.norm2(block.mlp(x))
        elif isinstance(block, EvaBlock):
            branch = block.mlp(block.norm2(x))
            x = x + (branch if block.gamma_2 is None else block.gamma_2 * branch)
        else:
            x = x + block.ls2(block.mlp(block.norm2(x)))
    x = model.norm(x)
    return x[0], model.forward_head(x)[0]


@pytest.mark.parametrize("r", [[0, 6], [4, 3, 2, 5]])
@pytest.mark.parametrize("name", FORMS)
def test_merging_is_the_host_on_repeated_tokens(name: str, r: list[int]) -> None:
    model = FORMS[name]()
    images = host_images(model)
    runs = {i: reference_forward(model, images, r=r[: i + 1]) for i in range(min(len(r), len(model.blocks)))}
    got = runs[max(runs)]
    for b in range(2):
        groups = {i: _groups(run.source[b], model.num_prefix_tokens) for i, run in runs.items()}
        last = groups[max(runs)]
        assert sum(len(group) - 1 for group in last) == sum(r[: len(runs)])
        tokens, output = _expanded(model, images[b], groups)
        first = [group[0] for group in last]
        torch.testing.assert_close(got.tokens[b], tokens[first], **EXACT)
        assert got.sizes[b].tolist() == [len(group) for group in last]
        torch.testing.assert_close(got.output[b], output[first] if model.global_pool == "" else output, **EXACT)


@pytest.mark.parametrize("name", FORMS)
def test_merging_follows_the_keys_after_their_norm_and_before_rotary(name: str) -> None:
    model = FORMS[name]()
    images = host_images(model)
    keys: list[Tensor] = []
    dense = _double(model)
    attn = dense.blocks[0].attn
    if hasattr(attn, "k_norm"):
        attn.k_norm.register_forward_hook(lambda _module, _inputs, output: keys.append(output))
    else:  # EVA's attention in an older timm, whose keys have neither a norm nor a bias
        weight = attn.k_proj.weight if attn.qkv is None else attn.qkv.weight.chunk(3)[1]
        split = partial(torch.unflatten, dim=2, sizes=(attn.num_heads, -1))
        attn.register_forward_pre_hook(lambda _module, x: keys.append(split(x[0] @ weight.T).transpose(1, 2)))
    dense(images.double())
    got = reference_forward(model, images, r=5, layers=slice(0, 1))
    for b in range(2):
        expected = _match_by_matrix(keys[0][b].mean(dim=0), model.num_prefix_tokens, 5)
        assert _partition(_groups(got.source[b], model.num_prefix_tokens)) == _partition(expected)


@pytest.mark.parametrize("name", FORMS)
def test_sizes_and_sources_agree(name: str) -> None:
    model = FORMS[name]()
    images = host_images(model)
    significance = _significance(model, images)
    p = model.num_prefix_tokens
    for order in ("raster", "significance"):
        got = reference_forward(model, images, keep=0.8, significance=significance, order=order, r=3)
        n_t = got.kept.shape[1]
        assert got.tokens_per_block[0] == n_t + p - 3
        assert got.sizes.shape == got.tokens.shape[:2] == (2, got.tokens_per_block[-1])
        assert (got.sizes[:, :p] == 1).all()
        for b in range(2):
            counted = torch.bincount(got.source[b][got.source[b] >= 0], minlength=got.sizes.shape[1])
            assert torch.equal(counted[p:].double(), got.sizes[b, p:])
            assert ((got.source[b] >= 0).nonzero()[:, 0]).tolist() == sorted(got.kept[b].tolist())


def test_proportional_attention_can_be_left_out() -> None:
    model = FORMS["class-token"]()
    images = host_images(model)
    once = [reference_forward(model, images, r=4, layers=slice(3, 4), proportional=p) for p in (True, False)]
    assert torch.equal(once[0].output, once[1].output)  # no block comes after the merge
    more = [reference_forward(model, images, r=4, proportional=p) for p in (True, False)]
    assert (more[0].output - more[1].output).abs().max() > 1e-4


@pytest.mark.parametrize("name", FORMS)
def test_decisions_have_room_for_single_precision(name: str) -> None:
    """In fp32 a cosine of these keys is off by about 1e-6: no decision here may hang on that."""
    model = FORMS[name]()
    images = host_images(model)
    significance = _significance(model, images)
    for order in ("raster", "significance"):
        assert reference_forward(model, images, keep=0.7, significance=significance, order=order, r=3).margin > 5e-6
    assert reference_forward(model, images, r=4).margin > 5e-6


def test_what_it_does_not_know_it_refuses() -> None:
    model = FORMS["class-token"]()
    images = host_images(model)
    with pytest.raises(ValueError, match="significance"):
        reference_forward(model, images, keep=0.5)
    with pytest.raises(ValueError, match="order"):
        reference_forward(model, images, order="random")
    with pytest.raises(NotImplementedError, match="Sequential"):
        reference_forward(nn.Sequential(), images)


# --- significance ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("size", "grid"),
    [((7, 7), (14, 14)), ((4, 3), (5, 11)), ((8, 8), (8, 8)), ((9, 9), (4, 6)), ((1, 2), (3, 1)), ((3, 3), (1, 1))],
)
def test_bicubic_is_pytorchs(size: tuple[int, int], grid: tuple[int, int], align_corners: bool) -> None:
    features = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    mean = features.double().mean(dim=1, keepdim=True)
    expected = F.interpolate(mean, size=grid, mode="bicubic", align_corners=align_corners)
    got = patch_significance(features, grid, align_corners)
    torch.testing.assert_close(got, expected.flatten(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("size", "grid"), [((4, 5, 5), (8, 7, 7)), ((8, 3, 4), (8, 6, 5)), ((3, 2, 2), (1, 4, 3)), ((1, 3, 3), (2, 2, 2))]
)
def test_trilinear_is_pytorchs(size: tuple[int, ...], grid: tuple[int, ...], align_corners: bool) -> None:
    features = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    # all channels resized, then averaged: linear steps, so the order cannot matter
    expected = F.interpolate(features.double(), size=grid, mode="trilinear", align_corners=align_corners).mean(dim=1)
    got = patch_significance(features, grid, align_corners)
    torch.testing.assert_close(got, expected.flatten(1), rtol=0, atol=1e-12)


def test_features_and_grid_must_fit() -> None:
    with pytest.raises(ValueError, match="grid"):
        patch_significance(torch.zeros(1, 2, 3, 3), (2, 2, 2))


def _features_and_gradients() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(5, 3, 4, dtype=torch.float64, generator=generator).relu()
    return features, torch.randn(5, 3, 4, dtype=torch.float64, generator=generator)


def test_cam_with_uniform_weights_is_paprs_map() -> None:
    features, _ = _features_and_gradients()
    uniform = cam(features, torch.full((5,), 1 / 5))
    torch.testing.assert_close(uniform.flatten(), patch_significance(features[None], (3, 4))[0], rtol=0, atol=1e-7)


def test_grad_cam_of_pooled_features_is_rectified_cam() -> None:
    features, _ = _features_and_gradients()
    row = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    gradients = (row / 12)[:, None, None].expand(5, 3, 4)  # of row . mean_ij F
    torch.testing.assert_close(grad_cam(features, gradients), cam(features, row).relu() / 12, rtol=0, atol=1e-14)


def test_grad_cam_pp_in_matrix_form() -> None:
    features, gradients = _features_and_gradients()
    gradients[1, 2] = 0  # no denominator there
    total = features.sum(dim=(1, 2), keepdim=True)
    denominator = 2 * gradients**2 + total * gradients**3
    alpha = torch.where(denominator != 0, gradients**2 / torch.where(denominator != 0, denominator, 1), 0)
    weights = (alpha * gradients.relu()).sum(dim=(1, 2))
    expected = torch.einsum("k,kij->ij", weights, features).relu()
    torch.testing.assert_close(grad_cam_pp(features, gradients), expected, rtol=1e-12, atol=1e-12)
    zero = grad_cam_pp(features, torch.zeros_like(gradients))
    assert torch.equal(zero, torch.zeros(3, 4, dtype=torch.float64))


def test_score_cam_in_matrix_form() -> None:
    features, _ = _features_and_gradients()
    scores = torch.tensor([1.0, -2.0, 30.0, 29.0, 0.0])
    expected = torch.einsum("k,kij->ij", scores.double().softmax(0), features)
    torch.testing.assert_close(score_cam(features, scores), expected, rtol=0, atol=1e-12)


def test_eigen_cam_by_eigenvectors() -> None:
    features, _ = _features_and_gradients()
    matrix = features.flatten(1).T
    direction = torch.linalg.eigh(matrix.T @ matrix).eigenvectors[:, -1]
    expected = (matrix @ direction).reshape(3, 4)
    got = eigen_cam(features)
    assert got.sum() > 0
    torch.testing.assert_close(got, expected * expected.sum().sign(), rtol=0, atol=1e-10)
    torch.testing.assert_close(eigen_cam(-features), got, rtol=0, atol=1e-10)


def test_cam_by_hand() -> None:
    features = torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]])
    assert cam(features, torch.tensor([2.0, -1.0])).tolist() == [[-1.0, 4.0]]
    assert grad_cam(features, torch.tensor([[[1.0, 3.0]], [[-2.0, 0.0]]])).tolist() == [[0.0, 4.0]]

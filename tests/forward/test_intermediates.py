"""Features of chosen blocks: the host's own at identity settings, a slow reference's under methods."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference.hf_hosts import beit_forms, beit_images, hf_forms, hf_images
from tests.reference.hosts import host_forms, host_images
from tests.reference.vit import reference_forward
from tokensieve import InputError, sieve

TIMM = host_forms()
HF = hf_forms()
WAYS: list[dict[str, Any]] = [
    {},
    {"indices": 2},
    {"indices": [0, 2], "intermediates_only": True},
    {"indices": [1], "stop_early": True},
    {"norm": True, "output_fmt": "NLC"},
    {"return_prefix_tokens": True},
    {"return_prefix_tokens": True, "intermediates_only": True, "norm": True},
    {"indices": [-1]},
]
DICTIONARIES: list[dict[str, Any]] = [
    {"output_dict": True},
    {"output_dict": True, "return_prefix_tokens": True, "intermediates_only": True},
]


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert one.shape == other.shape
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        assert_same(list(one.values()), list(other.values()))
    else:
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)


def slow_grid(x: Tensor, members: list[list[int]], grid: tuple[int, int]) -> Tensor:
    """(d, h, w): each patch has the row of its token, or of the nearest patch that has one, ties to the lower."""
    row = {patch: x[n] for n, group in enumerate(members) for patch in group}
    out = torch.zeros(x.shape[1], *grid, dtype=x.dtype)
    for patch in range(grid[0] * grid[1]):
        i, j = divmod(patch, grid[1])
        nearest = min(sorted(row), key=lambda p: ((p // grid[1] - i) ** 2 + (p % grid[1] - j) ** 2, p))
        out[:, i, j] = row[nearest]
    return out


@pytest.mark.parametrize("form", TIMM)
@torch.no_grad()
def test_the_hosts_own_at_identity_settings(form: str) -> None:
    model = TIMM[form]()
    images = host_images(model)
    has_dictionary = "output_dict" in type(model).forward_intermediates.__code__.co_varnames
    for words in [*WAYS, *(DICTIONARIES if has_dictionary else [])]:
        if "return_prefix_tokens" in words and type(model).__name__ == "Eva" and not model.num_prefix_tokens:
            continue  # where timm's own fails
        for restored in (False, True):
            own = sieve(model).forward_intermediates(images, **words, restore=restored)
            assert_same(own, model.forward_intermediates(images, **words))


@pytest.mark.parametrize("form", beit_forms())
@torch.no_grad()
def test_beits_own_at_identity_settings(form: str) -> None:
    model, images = beit_forms()[form](), beit_images()
    for words in WAYS:
        assert_same(sieve(model).forward_intermediates(images, **words), model.forward_intermediates(images, **words))


@pytest.mark.parametrize("form", [form for form in HF if form != "mae"])  # which masks at random
@torch.no_grad()
def test_the_hidden_states_of_transformers_at_identity_settings(form: str) -> None:
    model = HF[form]()
    images = hf_images(model)
    own = model(images, output_hidden_states=True)
    assert_same(tuple(sieve(model)(images, output_hidden_states=True).hidden_states), tuple(own.hidden_states))
    features = sieve(model).forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
    prefix = sieve(model).host.prefix
    for mine, theirs in zip(features, own.hidden_states[1:], strict=True):
        assert torch.equal(mine, theirs[:, prefix:])


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("tome(r=5)", {"r": 5}),
        ("papr(keep=0.6, significance=centre) + tome(r=3)", {"keep": 0.6, "r": 3}),
        ("papr(keep=0.5, significance=centre, order=significance)", {"keep": 0.5, "order": "significance"}),
    ],
)
@pytest.mark.parametrize("form", ["class-token", "registers", "eva02", "siglip", "rectangular"])
@torch.no_grad()
def test_a_slow_reference_under_methods(form: str, recipe: str, settings: dict[str, Any]) -> None:
    model = copy.deepcopy(TIMM[form]()).double()
    images = host_images(model).double()
    fast = sieve(model, recipe)
    grid = fast.host.embed(images).grid
    significance = fast.trace(images).significance
    if significance is not None:
        settings = {**settings, "significance": significance.flatten(1)}
    expected = reference_forward(model, images, **settings)
    final, features = fast.forward_intermediates(images, restore=True, return_prefix_tokens=True)
    assert (final - expected.tokens).abs().max() <= 1e-9
    assert len(features) == len(expected.behind)
    for item, images_behind in zip(features, expected.behind, strict=True):
        on_grid, prefix = item if isinstance(item, tuple) else (item, None)
        for i, (x, members) in enumerate(images_behind):
            assert (on_grid[i] - slow_grid(x, members, grid)).abs().max() <= 1e-9
            if prefix is not None:
                assert (prefix[i] - x[: fast.host.prefix]).abs().max() <= 1e-9
    normed = fast.forward_intermediates(images, indices=1, norm=True, restore=True, intermediates_only=True)[0]
    assert torch.equal(normed, fast.trace(images).restore())
    as_they_are = fast.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
    for x, images_behind in zip(as_they_are, expected.behind, strict=True):
        assert (x[0] - images_behind[0][0][fast.host.prefix :]).abs().max() <= 1e-9


@torch.no_grad()
def test_hidden_states_under_methods_are_whole() -> None:
    model = HF["dinov2-registers"]().double()
    images = hf_images(model).double()
    fast = sieve(model, "tome(r=4)")
    hidden = fast(images, output_hidden_states=True).hidden_states
    every = fast.forward_intermediates(images, restore=True, output_fmt="NLC", intermediates_only=True)
    prefix = fast.host.prefix
    assert torch.equal(hidden[0], model(images, output_hidden_states=True).hidden_states[0])
    for mine, theirs in zip(hidden[1:], every, strict=True):
        assert torch.equal(mine[:, prefix:], theirs)
    assert fast(images).hidden_states is None
    model.config.output_hidden_states = True
    assert_same(fast(images).hidden_states, hidden)


def test_fewer_blocks_run_where_it_stops_early(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TIMM["class-token"]()
    seen = []
    model.blocks[2].norm1.register_forward_hook(lambda *_: seen.append(2))
    images = host_images(model)
    sieve(model, "tome(r=2)").forward_intermediates(images, indices=[1], stop_early=True, output_fmt="NLC")
    assert seen == []
    sieve(model, "tome(r=2)").forward_intermediates(images, indices=[1], output_fmt="NLC")
    assert seen == [2]


def test_gradients_flow_through_features() -> None:
    model = TIMM["class-token"]()
    features = sieve(model, "tome(r=4)").forward_intermediates(
        host_images(model), indices=[1], restore=True, intermediates_only=True
    )
    features[0].square().mean().backward()
    assert model.blocks[1].mlp.fc2.weight.grad.abs().max() > 0
    assert model.blocks[2].mlp.fc2.weight.grad is None


@torch.no_grad()
def test_no_images_have_features_too() -> None:
    model = TIMM["registers"]()
    final, features = sieve(model, "tome(r=4)").forward_intermediates(host_images(model)[:0], restore=True)
    assert [x.shape[0] for x in (final, *features)] == [0] * (1 + len(model.blocks))


def test_what_cannot_be_given_is_refused() -> None:
    model = TIMM["class-token"]()
    images = host_images(model)
    fast = sieve(model, "tome(r=4)")
    for words, sentence in (
        ({}, "do not form a grid: use restore=True"),
        ({"output_fmt": "NHWC"}, "output_fmt must be NCHW or NLC, not 'NHWC'"),
        ({"indices": [7]}, "must be of 4 blocks or stages, 0 to 3"),
        ({"restore": True, "fill": "far"}, 'fill must be "nearest" or "zero"'),
    ):
        with pytest.raises(InputError, match=sentence):
            fast.forward_intermediates(images, **words)


@torch.no_grad()
def test_maps_of_stages_have_timms_arguments_too() -> None:
    import timm

    model = timm.create_model("convnext_atto").eval()
    images = torch.randn(2, 3, 64, 64)
    fast = sieve(model)
    every = model.forward_intermediates(images, intermediates_only=True)[-4:]  # an older timm counts the stem too
    assert_same(fast.forward_intermediates(images), every)
    assert_same(fast.forward_intermediates(images, indices=2), every[-2:])
    assert_same(
        fast.forward_intermediates(images, indices=[0, 3], intermediates_only=False),
        (model.forward_features(images), [every[0], every[3]]),
    )
    seen: list[int] = []
    hook = model.stages[2].blocks[0].conv_dw.register_forward_hook(lambda *_: seen.append(2))
    final, (first, second) = fast.forward_intermediates(
        images, indices=[0, 1], stop_early=True, intermediates_only=False
    )
    hook.remove()
    assert_same([first, second, final], [every[0], every[1], every[1]])
    assert seen == []
    for words in ({"norm": True}, {"return_prefix_tokens": True}, {"output_dict": True}):
        with pytest.raises(InputError, match="are for hosts with tokens"):
            fast.forward_intermediates(images, **words)
    with pytest.raises(InputError, match="must be NCHW"):
        fast.forward_intermediates(images, output_fmt="NLC")


@pytest.mark.parametrize("form", ["class-token", "registers", "eva02"])
@torch.no_grad()
def test_grad_cam_of_another_library(form: str) -> None:
    """Its map of a ToMe'd ViT is the one that the formula gives by hand."""
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = TIMM[form]()
    images = host_images(model)[:1]
    fast = sieve(model, "tome(r=4)")
    block = len(model.blocks) - 1
    norm = model.blocks[block].norm1
    trace = fast.trace(images)
    cam = grad_cam.GradCAM(fast, [norm], reshape_transform=lambda x: trace.restore(x, block=block))
    with torch.enable_grad():
        found = torch.tensor(cam(images, [ClassifierOutputTarget(1)])[0], dtype=torch.float64)
        held: list[Tensor] = []
        hook = norm.register_forward_hook(lambda _module, _inputs, out: held.append(out))
        score = fast(images)[0, 1]
        hook.remove()
        (slope,) = torch.autograd.grad(score, held[0])
    features, slopes = (trace.restore(x.detach(), block=block)[0].double() for x in (held[0], slope))
    expected = (slopes.mean((1, 2))[:, None, None] * features).sum(0).clamp(min=0)
    from pytorch_grad_cam.utils.image import scale_cam_image

    for _ in range(2):  # of each layer, and of all together
        expected = torch.tensor(scale_cam_image(expected[None].numpy(), tuple(images.shape[:1:-1]))[0]).double()
    assert found.shape == images.shape[-2:]
    assert (found - expected).abs().max() <= 1e-4

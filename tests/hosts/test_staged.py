"""PaPr on hosts with stages beside a slow reference in float64: timm's ConvNeXt, ConvNeXt-V2, Swin and Swin-V2."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from tests.reference.hf_hosts import seeded
from tests.reference.staged import Staged, centre, choice_of, enlarged, significance, staged_forms, staged_reference
from tests.turns import forms
from tokensieve import PaPr, RecipeError, UnsupportedHost, sieve
from tokensieve.measure.budget import merge_to
from tokensieve.search.slimming import slim

FORMS = staged_forms()
CHOSEN = ("convnext", "convnext-conv", "convnext-v2", "swin", "swin-v2", "swin-v2-pretrained")
each = pytest.mark.parametrize("name", forms(FORMS, CHOSEN))
convnexts = pytest.mark.parametrize("name", [name for name in FORMS if name.startswith("convnext")])
TIGHT = {"atol": 1e-9, "rtol": 1e-9}


def made(name: str) -> nn.Module:
    """The host of that name in float64 and eval mode, every parameter random."""
    return seeded(FORMS[name].make, zlib.crc32(name.encode())).double()


def pictures(name: str, batch: int = 2) -> Tensor:
    noise = torch.randn(batch, 3, *FORMS[name].size, generator=torch.Generator().manual_seed(batch))
    return noise.double()


def stages_of(model: nn.Module) -> int:
    return len(model.stages if hasattr(model, "stages") else model.layers)


def intermediates(model: Any, images: Tensor) -> list[Tensor]:
    """The host's map behind each stage; timm 1.0.15's ConvNeXt has that of its stem in front of them."""
    return model.forward_intermediates(images, intermediates_only=True)[-stages_of(model) :]


def depths_of(model: nn.Module) -> list[int]:
    return [len(stage.blocks) for stage in (model.stages if hasattr(model, "stages") else model.layers)]


def maps(model: nn.Module, images: Tensor) -> Tensor:
    """Of what the host's grid covers of the images: see tests/significance/test_covered.py."""
    with torch.no_grad():
        return significance(sieve(model).covered(images))


def reference(model: nn.Module, images: Tensor, keep: Any, stages: Any = None, background: str | None = None) -> Staged:
    count = stages_of(model)
    choices = [choice_of(count, keep, stages, enlarged(map)) for map in maps(model, images)]
    return staged_reference(model, images, choices, background)


def assert_agrees(fast: Any, images: Tensor, slow: Staged) -> None:
    """Everything that a sieved host tells."""
    trace = fast.trace(images)
    for stage, kept in enumerate(slow.kept):
        if kept[0] is None:
            assert trace.kept[stage] is None
        else:
            assert trace.kept[stage].dtype == torch.int64
            assert trace.kept[stage].tolist() == kept
    assert len(trace.kept) == len(slow.kept)
    assert trace.tokens_per_block == slow.pixels
    channels_first = slow.features.shape == slow.maps[-1].shape
    features = slow.features if channels_first else slow.features.movedim(-1, 1)
    close = torch.testing.assert_close
    close(trace.restore(), features, **TIGHT)
    close(trace.output, slow.output, **TIGHT)
    close(fast(images), slow.output, **TIGHT)
    close(fast.forward_features(images), slow.features, **TIGHT)
    maps = fast.forward_intermediates(images)
    assert len(maps) == len(slow.maps)
    for one, other in zip(maps, slow.maps, strict=True):
        close(one, other, **TIGHT)


SETTINGS: dict[str, Callable[[int], dict[str, Any]]] = {
    "all": lambda stages: {"keep": 0.6},
    # the last two stages, the deeper one first, which is no order that a loop would come to by itself
    "some": lambda stages: {"keep": (0.3, 0.75), "stages": (stages - 1, stages - 2)},
    "shares": lambda stages: {"keep": (*(0.5 for _ in range(stages - 1)), 1.0)},
    "one": lambda stages: {"keep": 0.001, "stages": (0,)},
}


@each
@pytest.mark.parametrize("training", [False, True])
def test_identity_settings_are_the_host_bit_for_bit(name: str, training: bool) -> None:
    model, images = made(name).train(training), pictures(name)
    with torch.no_grad():
        whole, features = model(images), model.forward_features(images)
        maps = intermediates(model, images)
        sizes = [one.shape[2] * one.shape[3] for one in maps]
        pixels = [size for size, depth in zip(sizes, depths_of(model), strict=True) for _ in range(depth)]
        for recipe in ("", "papr(keep=1, significance=centre)"):
            fast = sieve(model, recipe)
            assert torch.equal(fast(images), whole)
            trace = fast.trace(images)
            assert torch.equal(trace.output, whole)
            assert trace.kept == [None] * len(maps)
            assert trace.tokens_per_block == pixels
            assert torch.equal(fast.forward_features(images), features)
            for one, other in zip(fast.forward_intermediates(images), maps, strict=True):
                assert torch.equal(one, other)


@each
def test_the_reference_without_a_choice_is_the_host(name: str) -> None:
    model, images = made(name), pictures(name)
    with torch.no_grad():
        slow = staged_reference(model, images, [lambda stage, grid: None] * 2)
        torch.testing.assert_close(slow.output, model(images), **TIGHT)
        torch.testing.assert_close(slow.features, model.forward_features(images), **TIGHT)


@each
@pytest.mark.parametrize(
    ("setting", "background"),
    [("all", "zero"), ("all", "keep"), ("some", "zero"), ("some", "keep"), ("shares", None), ("one", "zero")],
)
def test_it_is_the_reference(name: str, setting: str, background: str | None) -> None:
    model, images = made(name), pictures(name)
    settings = SETTINGS[setting](stages_of(model))
    fast = sieve(model, PaPr(**settings, significance=significance, background=background))
    published = "zero" if name.startswith("convnext") else "keep"
    with torch.no_grad():
        assert_agrees(fast, images, reference(model, images, **settings, background=background or published))


@each
@pytest.mark.parametrize("background", ["zero", "keep"])
def test_the_middle_of_the_image_by_text_with_all_its_ties(name: str, background: str) -> None:
    model, images = made(name), pictures(name)
    fast = sieve(model, f"papr(keep=0.65, significance=centre, background={background})")
    choices = [choice_of(stages_of(model), 0.65, None, centre)] * 2
    with torch.no_grad():
        assert_agrees(fast, images, staged_reference(model, images, choices, background))


@each
def test_training_keeps_the_residual_and_has_the_references_gradients(name: str) -> None:
    model, images = made(name).train(), pictures(name)
    fast = sieve(model, PaPr(keep=0.6, significance=significance, background="zero"))
    assert fast.training
    weights = dict(model.named_parameters())
    answers, slopes = [], []
    for forward in (fast, lambda images: reference(model, images, 0.6, background="zero").output):
        answers.append(forward(images))
        slopes.append(torch.autograd.grad(answers[-1].square().sum(), weights.values()))
    torch.testing.assert_close(*answers, **TIGHT)
    for weight, one, other in zip(weights, *slopes, strict=True):
        assert one.abs().sum() > 0, weight
        torch.testing.assert_close(one, other, atol=1e-9 * (1 + float(other.abs().max())), rtol=1e-9)
    with torch.no_grad():
        by_default = sieve(model, PaPr(keep=0.6, significance=significance))
        kept = by_default(images)
        torch.testing.assert_close(kept, answers[0], **TIGHT)
        # the same pixels stay in evaluation where they are asked to, and nowhere else
        model.eval()
        asked = sieve(model, PaPr(keep=0.6, significance=significance, background="keep"))
        torch.testing.assert_close(asked(images), kept, **TIGHT)
        assert (fast.eval()(images) - kept).abs().max() > 1e-4


@each
def test_gradients_in_eval_mode_are_the_references(name: str) -> None:
    model, images = made(name), pictures(name).requires_grad_()
    fast = sieve(model, PaPr(keep=0.6, significance=significance))
    slopes = []
    for forward in (fast, lambda images: reference(model, images, 0.6).output):
        slopes.append(torch.autograd.grad(forward(images).square().sum(), [images, *model.parameters()]))
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9 * (1 + float(other.abs().max())), rtol=1e-9)


@each
def test_the_reference_tells_settings_apart(name: str) -> None:
    """Otherwise agreement with it would say nothing."""
    model, images = made(name), pictures(name)
    last = stages_of(model) - 1
    with torch.no_grad():
        zero, keep = (reference(model, images, 0.6, background=ground) for ground in ("zero", "keep"))
        answers = {
            "host": model(images),
            "zero": zero.output,
            "keep": keep.output,
            "fewer": reference(model, images, 0.5, background="keep").output,
            "last": reference(model, images, 0.6, (last,), "keep").output,
            "last zero": reference(model, images, 0.6, (last,), "zero").output,
        }
    for one, other in itertools.combinations(answers, 2):
        assert (answers[one] - answers[other]).abs().max() > 1e-4, (one, other)


@each
@pytest.mark.parametrize("training", [False, True])
def test_an_image_alone_is_answered_as_in_a_batch(name: str, training: bool) -> None:
    model, images = made(name).train(training), pictures(name, 3)
    fast = sieve(model, PaPr(keep=0.5, significance=significance))
    with torch.no_grad():
        together = fast.trace(images)
        assert not torch.equal(together.kept[0][0], together.kept[0][1])
        for one in range(3):
            alone = fast.trace(images[one : one + 1])
            torch.testing.assert_close(alone.output, together.output[one : one + 1], **TIGHT)
            torch.testing.assert_close(alone.restore(), together.restore()[one : one + 1], **TIGHT)
            assert [kept[0].tolist() for kept in alone.kept] == [kept[one].tolist() for kept in together.kept]


@each
def test_the_state_is_the_hosts(name: str) -> None:
    model, images = made(name), pictures(name)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    fast = sieve(model, PaPr(keep=0.6, significance=significance))
    with torch.no_grad():
        whole = model(images)
        before = fast(images)
        assert torch.equal(model(images), whole)
    for held in (model.state_dict(), fast.state_dict()):
        assert list(held) == list(state)
        assert all(torch.equal(value, state[key]) for key, value in held.items())
    # and it is read from such a file, strictly
    other = {key: value + 0.1 if value.is_floating_point() else value for key, value in state.items()}
    fast.load_state_dict(other)
    with torch.no_grad():
        assert not torch.equal(fast(images), before)
    assert all(torch.equal(value, other[key]) for key, value in model.state_dict().items())


@each
def test_intermediates_are_whole_grids(name: str) -> None:
    model, images = made(name), pictures(name)
    fast = sieve(model, PaPr(keep=0.3, significance=significance))
    with torch.no_grad():
        maps = fast.forward_intermediates(images)
        whole = intermediates(model, images)
        last = fast.trace(images).restore()
    assert [one.shape for one in maps] == [one.shape for one in whole]
    assert not any(torch.equal(one, other) for one, other in zip(maps, whole, strict=True))
    final = model.norm_pre if name.startswith("convnext") else model.norm
    if isinstance(final, nn.Identity):
        assert torch.equal(maps[-1], last)


@convnexts
def test_a_zeroed_pixel_is_zero(name: str) -> None:
    """Seen without the reference: at the last stage's end the dropped pixels hold nothing, and the kept ones do."""
    model, images = made(name), pictures(name)
    fast = sieve(model, PaPr(keep=0.5, significance=significance))
    with torch.no_grad():
        last, kept = fast.forward_intermediates(images)[-1], fast.trace(images).kept[-1]
    for one, pixels in zip(last, kept.tolist(), strict=True):
        filled = one.flatten(1).abs().sum(dim=0) > 0
        assert filled.nonzero().flatten().tolist() == pixels


def test_a_tensor_is_a_map_too() -> None:
    name = "convnext"
    model, images = made(name), pictures(name)
    fast = sieve(model, PaPr(keep=0.6, significance=maps(model, images)))
    with torch.no_grad():
        assert_agrees(fast, images, reference(model, images, 0.6))


KINDS = pytest.mark.parametrize("name", ["convnext", "convnext-conv", "convnext-v2", "swin", "swin-v2"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext-v2", "swin-v2"])
def test_it_compiles_in_one_graph(name: str) -> None:
    model, images = made(name), pictures(name)
    fast = sieve(model, "papr(keep=0.6, significance=centre)")
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(fast, fullgraph=True, backend="eager")(images), fast(images))


@KINDS
@pytest.mark.parametrize("background", ["zero", "keep"])
def test_it_runs_under_autocast_as_the_host_does(name: str, background: str) -> None:
    model, images = made(name).float(), pictures(name).float()
    fast = sieve(model, f"papr(keep=0.6, significance=centre, background={background})")
    with torch.no_grad():
        single = fast(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half, whole = fast(images), model(images)
    assert half.dtype == whole.dtype
    assert (half.float() - single).norm() < 0.05 * single.norm()


@pytest.mark.parametrize("name", ["convnext", "convnext-conv", "swin", "swin-v2"])  # GRN mixes what is kept
def test_stochastic_depth_spares_the_same_images_as_in_the_host(name: str) -> None:
    """In the last stage's one block the kept pixels are what the host makes of them with the same random numbers."""
    form = FORMS[name].make
    depths = (1, 1, 1, 1) if name.startswith("convnext") else (1, 1)
    model = seeded(partial(form, drop_path_rate=0.5, depths=depths), 1).double().train()
    images, last = pictures(name, 8), len(depths) - 1
    fast = sieve(model, PaPr(keep=0.5, significance="centre", stages=(last,)))
    answers = []
    with torch.no_grad():
        kept = fast.trace(images).kept[-1]
        for forward in (fast.forward_intermediates, partial(model.forward_intermediates, intermediates_only=True)):
            torch.manual_seed(3)
            answers.append(forward(images)[-1].flatten(2))
        other = model.forward_intermediates(images, intermediates_only=True)[-1].flatten(2)
    assert (other - answers[1]).abs().max() > 1e-3
    torch.testing.assert_close(*(answer[:, :, kept[0]] for answer in answers), **TIGHT)


@pytest.mark.parametrize("name", ["convnext", "convnext-v2", "swin", "swin-v2"])
def test_what_makes_no_sense_is_refused(name: str) -> None:
    model = made(name)
    count = stages_of(model)
    with pytest.raises(UnsupportedHost, match=r"\w+ .+ \w+\.$"):
        sieve(model, "tome(r=2)")
    with pytest.raises(RecipeError, match=rf"stages=\(7,\) .* {count} stages"):
        sieve(model, PaPr(keep=0.5, significance="centre", stages=(7,)))
    with pytest.raises(RecipeError, match=rf"3 shares, .* {count} stages"):
        sieve(model, PaPr(keep=(0.5, 0.5, 0.5), significance="centre"))
    with pytest.raises(RecipeError, match=r"2 shares, .* 1 stages"):
        sieve(model, PaPr(keep=(0.5, 0.5), significance="centre", stages=(1,)))


@pytest.mark.parametrize("settings", ["stages=(1,)", "background=zero", "keep=(0.5, 0.6)"])
def test_a_host_without_stages_refuses_them(settings: str) -> None:
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5)
    share = "" if settings.startswith("keep") else "keep=0.5, "
    with pytest.raises(RecipeError, match="has no stages"):
        sieve(vit, f"papr({share}{settings}, significance=centre)")


@pytest.mark.parametrize("done", ["slimmed", "merged"])
def test_what_works_on_tokens_alone_says_so(done: str) -> None:
    model, images = ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 4, 8, 8)).eval(), torch.zeros(8, 3, 64, 64)
    calls = {
        "slimmed": lambda: slim(model, [images], saving=0.2),
        "merged": lambda: merge_to(model, 1e6, (3, 64, 64)),
    }
    with pytest.raises(UnsupportedHost, match=f"cannot be {done}: its maps keep their full size"):
        calls[done]()

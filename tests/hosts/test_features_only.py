"""timm's models made with `features_only=True`: lists and dictionaries of maps, and a detector on top of them."""

from __future__ import annotations

import itertools
import zlib
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from packaging.version import Version
from timm.models._features import FeatureDictNet, FeatureGetterNet, FeatureListNet
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from tests.reference.hf_hosts import seeded
from tests.reference.staged import choice_of, enlarged, significance, staged_reference
from tokensieve import InputError, PaPr, UnsupportedHost, measure, sieve

ROOT = Path(__file__).resolve().parents[2]
TIGHT = {"atol": 1e-9, "rtol": 1e-9}
SWIN = {"img_size": 64, "embed_dim": 8, "depths": (2, 2, 2), "num_heads": (1, 2, 2), "window_size": 4}
SWIN |= {"strict_img_size": False, "drop_path_rate": 0.0}
CONVNEXT = {"depths": (1, 2, 2, 1), "dims": (8, 16, 24, 32)}
MODELS: dict[str, Any] = {
    "convnext": partial(ConvNeXt, **CONVNEXT, ls_init_value=0.1),
    "convnext-overlap": partial(ConvNeXt, **CONVNEXT, stem_type="overlap_act", ls_init_value=0.1),
    "convnext-v2": partial(ConvNeXt, **CONVNEXT, use_grn=True, ls_init_value=None),
    "swin": partial(SwinTransformer, **SWIN),
    "swin-v2": partial(SwinTransformerV2, **SWIN),
}
flat = {"flatten_sequential": True}
FORMS: dict[str, Any] = {
    "list": lambda model, out: FeatureListNet(model, out, **flat),
    "dictionary": lambda model, out: FeatureDictNet(model, out, **flat),
    "named": lambda model, out: FeatureDictNet(model, out, [f"res{number}" for number in out], **flat),
    "getter": FeatureGetterNet,
    "getter-norm": lambda model, out: FeatureGetterNet(model, out, norm=True),
    "getter-whole": lambda model, out: FeatureGetterNet(model, out, prune=False),
}
STEM_COUNTS = Version(timm.__version__) < Version("1.0.16")
"""Whether timm's getters of ConvNeXt take the stem for the first map, as those of 1.0.15 do."""
each = pytest.mark.parametrize("name", MODELS)
forms = pytest.mark.parametrize("form", FORMS)


def whole_of(name: str) -> Any:
    """The model in float64 and eval mode, every parameter random."""
    return seeded(MODELS[name], zlib.crc32(name.encode())).double()


def stages_of(name: str) -> int:
    return 4 if name.startswith("convnext") else 3


def outs_of(name: str) -> list[tuple[int, ...]]:
    """All maps, some, fewer stages than the model has, and counted from the end in another order."""
    return [tuple(range(stages_of(name))), (0, 2), (1,), (-1, -2)]


def norm_fits(name: str, form: str, out: tuple[int, ...]) -> bool:
    """Whether the host itself runs: before 1.0.31 timm's Swin puts the norm of its last map on any that comes last."""
    last = max(number % stages_of(name) for number in out) == stages_of(name) - 1
    return (
        last or form != "getter-norm" or name.startswith("convnext") or Version(timm.__version__) >= Version("1.0.31")
    )


def sizes_of(name: str) -> list[tuple[int, int]]:
    return [(64, 64), (70, 94)] if name.startswith("convnext") else [(64, 64), (52, 76)]


def pictures(size: tuple[int, int]) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2)).double()


def assert_equal(ours: Any, whole: Any) -> None:
    """Types, names, order, and every bit, lying alike in memory."""
    assert type(ours) is type(whole)
    assert len(ours) == len(whole)
    if isinstance(whole, dict):
        assert list(ours) == list(whole)
        ours, whole = ours.values(), whole.values()
    for one, other in zip(ours, whole, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


@pytest.mark.versions
@each
@forms
@pytest.mark.parametrize("training", [False, True])
def test_identity_settings_are_the_host_bit_for_bit(name: str, form: str, training: bool) -> None:
    for out in outs_of(name)[: 1 if training else None]:
        if not norm_fits(name, form, out):
            continue
        model = FORMS[form](whole_of(name), out).train(training)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        for size in sizes_of(name)[0 if out == outs_of(name)[0] else 1 :]:
            with torch.no_grad():
                whole = model(pictures(size))
                for recipe in ("", "papr(keep=1, significance=centre)"):
                    fast = sieve(model, recipe)
                    assert_equal(fast(pictures(size)), whole)
                    assert_equal(fast.trace(pictures(size)).output, whole)
                    assert fast.trace(pictures(size)).masks == []
                sieve(model, "papr(keep=0.5, significance=centre)")(pictures(size))
                assert_equal(model(pictures(size)), whole)
        for held in (model.state_dict(), fast.state_dict()):
            assert list(held) == list(state)
            assert all(torch.equal(value, state[key]) for key, value in held.items())


@pytest.mark.versions
@each
@pytest.mark.parametrize(("background", "training"), [(None, False), ("zero", False), ("keep", False), (None, True)])
def test_it_is_the_reference(name: str, background: str | None, training: bool) -> None:
    images, stages = pictures(sizes_of(name)[1]), stages_of(name)
    with torch.no_grad():
        seen = sieve(whole_of(name)).covered(images)  # what the host's grid covers
    choices = [choice_of(stages, 0.5, None, enlarged(map)) for map in significance(seen)]
    with torch.no_grad():
        slow = staged_reference(whole_of(name).train(training), images, choices, background)
    final = slow.features if slow.features.shape == slow.maps[-1].shape else slow.features.movedim(-1, 1)
    for form, out in itertools.product(FORMS, outs_of(name)):
        if not norm_fits(name, form, out):
            continue
        model = FORMS[form](whole_of(name), out).train(training)
        fast = sieve(model, PaPr(keep=0.5, significance=significance, background=background))
        with torch.no_grad():
            trace, whole = fast.trace(images), model(images)
        output = trace.output
        assert type(output) is type(whole)
        if isinstance(whole, dict):
            assert list(output) == list(whole)
            output, whole = list(output.values()), list(whole.values())
        maps, behind = [*slow.maps[:-1], final] if form == "getter-norm" else slow.maps, 0
        if STEM_COUNTS and name.startswith("convnext") and form.startswith("getter"):
            maps, behind = [fast.host.embed(images), *slow.maps], 1
        taken = sorted(number % len(maps) for number in out)
        for one, dense, number in zip(output, whole, taken, strict=True):
            assert one.shape == dense.shape
            assert (one - dense).abs().max() > 1e-3 or number < behind
            first = one if form.startswith("getter") or name.startswith("convnext") else one.movedim(-1, 1)
            torch.testing.assert_close(first, maps[number], **TIGHT)
        held = stages if form == "getter-whole" else max(taken) + 1 - behind
        assert [mask.kept.tolist() for mask in trace.masks] == slow.kept[:held]
        assert [mask.grid for mask in trace.masks] == [tuple(x.shape[2:]) for x in slow.maps[:held]]
        assert trace.tokens_per_block == slow.pixels[: len(trace.reads)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes", "feature_cls"),
    [
        ("convnext_atto", CONVNEXT, "list"),
        ("convnext_atto", CONVNEXT, "dict"),
        ("convnextv2_atto", CONVNEXT, "list"),
        ("swin_tiny_patch4_window7_224", SWIN, "list"),
        ("swinv2_tiny_window8_256", SWIN, "list"),
        ("swinv2_tiny_window8_256", SWIN, "getter"),
    ],
)
def test_models_as_timm_creates_them(name: str, sizes: dict[str, Any], feature_cls: str) -> None:
    create = partial(timm.create_model, name, features_only=True, feature_cls=feature_cls, **sizes)
    model, images = seeded(partial(create, out_indices=(0, 2)), 3), pictures((64, 64)).float()
    dense = measure.macs(model, (3, 64, 64))
    with torch.no_grad():
        whole = model(images)
        assert_equal(sieve(model)(images), whole)
        fast = sieve(model, "papr(keep=0.65, significance=centre)")
        output = fast(images)
        torch.compiler.reset()  # each host is another graph of the same forward
        compiled = torch.compile(fast, fullgraph=True, backend="eager")(images)
    assert type(output) is type(compiled) is type(whole)
    answers = [list(x.values()) if isinstance(x, dict) else x for x in (output, compiled, whole)]
    for one, same, other in zip(*answers, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, same)
    assert measure.macs(sieve(model), (3, 64, 64)) == dense > measure.macs(fast, (3, 64, 64))


def test_gradients_reach_every_weight() -> None:
    model = FORMS["list"](seeded(MODELS["convnext"], 1), (0, 3)).train()
    maps = sieve(model, "papr(keep=0.5, significance=centre)")(pictures((64, 64)).float())
    sum(x.square().sum() for x in maps).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_what_cannot_be_opened_says_why() -> None:
    convnext = partial(timm.create_model, "convnext_atto", features_only=True, **CONVNEXT)
    for model, reason in (
        (timm.create_model("resnet18", features_only=True), "FeatureListNet cannot be sieved: features_only models"),
        (
            timm.create_model("xcit_nano_12_p16_224", features_only=True, out_indices=1, feature_cls="getter"),
            "FeatureGetterNet cannot be sieved: .*it holds Xcit",
        ),
        (convnext(feature_cls="hook"), "FeatureHookNet cannot be sieved: .*feature_cls='list'"),
    ):
        with pytest.raises(UnsupportedHost, match=reason):
            sieve(model)
    with pytest.raises(UnsupportedHost, match="FeatureListNet cannot take tome"):
        sieve(convnext(), "tome(r=2)")
    model = convnext()
    model.stages_1.blocks[0].__class__ = type("Mine", (type(model.stages_1.blocks[0]),), {})
    with pytest.raises(UnsupportedHost, match="FeatureListNet cannot be sieved: its block is Mine"):
        sieve(model)
    with pytest.raises(InputError, match="FeatureListNet is called with images"):
        sieve(convnext())(pixel_values=torch.zeros(1, 3, 64, 64))


def detector_of_the_docs(recipe: str) -> dict[str, Any]:
    """What the page's example leaves behind, run as it is printed with this recipe in the place of its own."""
    blocks = (ROOT / "docs" / "stages.md").read_text().split("```python\n")[1:]
    (code,) = (block.split("```")[0] for block in blocks if "FasterRCNN" in block)
    printed = '"papr(keep=0.65, significance=centre)"'
    assert code.count(printed) == 1
    made: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(code.replace(printed, repr(recipe)), made)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["1", "0.65"])
def test_the_detector_of_the_docs(keep: str) -> None:
    made = detector_of_the_docs(f"papr(keep={keep}, significance=centre)")
    detector, body, before, after = (made[name] for name in ("detector", "body", "before", "after"))
    assert isinstance(body, FeatureListNet)
    assert detector.backbone.body.model is body
    images = torch.randn(2, 3, 192, 288, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, dense = (
            detector.backbone(images),
            detector.backbone.pyramid(OrderedDict((str(level), x) for level, x in enumerate(body(images)))),
        )
    assert list(ours) == list(dense) == ["0", "1", "2", "3"]
    assert [x.shape for x in ours.values()] == [x.shape for x in dense.values()]
    alike = [torch.equal(one, other) for one, other in zip(ours.values(), dense.values(), strict=True)]
    if keep == "1":
        assert all(alike)
        assert all(torch.equal(one[key], other[key]) for one, other in zip(after, before, strict=True) for key in one)
    else:
        assert not any(alike)
    # and it is trained as the dense one is
    detector.train()
    targets = [{"boxes": torch.tensor([[20.0, 20, 90, 80]]), "labels": torch.tensor([1])} for _ in images]
    losses = detector(list(images.sigmoid()), targets)
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    sum(losses.values()).backward()
    assert all(isinstance(parameter, nn.Parameter) and parameter.grad is not None for parameter in body.parameters())

"""transformers' hosts with stages: models, classifiers and backbones of ConvNeXt and Swin, in both versions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.reference.hf_hosts import seeded
from tests.reference.hf_staged import CONVNEXT, SWIN, as_timm, base_of, hf_staged_forms
from tests.reference.staged import Staged, choice_of, enlarged, significance, staged_reference
from tests.turns import forms
from tokensieve import InputError, PaPr, UnsupportedHost, measure, sieve
from tokensieve.hosts import open_host
from tokensieve.measure import SlicingLimit

pytest.importorskip("transformers")

FORMS = hf_staged_forms()
KINDS = ("ConvNext", "ConvNextV2", "Swin", "Swinv2")
CHOSEN = ("ConvNextModel", "ConvNextForImageClassification", "ConvNextBackbone", "ConvNextV2Model", "SwinModel")
CHOSEN += ("Swinv2Model", "Swinv2ForImageClassification", "Swinv2Backbone", "SwinBackbone some")
each = pytest.mark.parametrize("name", forms(FORMS, CHOSEN))
TIGHT = {"atol": 1e-9, "rtol": 1e-9}


def sizes_of(name: str) -> list[tuple[int, int]]:
    """A size that the host was made for, one that fills no windows and no patches, and a wide one."""
    if "absolute" in name or "small" in name:
        return [(24, 40) if "SwinModel" not in name else (64, 64)]
    return [(64, 64), (50, 70), (67, 131)]


def pictures(size: tuple[int, int], batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(batch)).double()


def assert_equal(ours: Any, whole: Any) -> None:
    """Types, fields and every bit."""
    assert type(ours) is type(whole)
    if isinstance(whole, Tensor):
        assert torch.equal(ours, whole)
    elif isinstance(whole, dict):
        assert list(ours) == list(whole)
        assert_equal(tuple(ours.values()), tuple(whole.values()))
    else:
        assert len(ours) == len(whole)
        for one, other in zip(ours, whole, strict=True):
            assert_equal(one, other)


@each
@pytest.mark.parametrize("training", [False, True])
def test_identity_settings_are_the_host_bit_for_bit(name: str, training: bool) -> None:
    for size in sizes_of(name):
        model, images = FORMS[name]().train(training), pictures(size).float()
        with torch.no_grad():
            for words in ({}, {"output_hidden_states": True}, {"return_dict": False, "output_hidden_states": True}):
                whole = model(images, **words)
                for recipe in ("", "papr(keep=1, significance=centre)"):
                    assert_equal(sieve(model, recipe)(images, **words), whole)
            assert_equal(sieve(model).trace(images).output, model(images))
            assert sieve(model).trace(images).masks == []


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_and_stochastic_depth_fall_where_they_fall_in_the_host(kind: str) -> None:
    import transformers as hf

    sizes = {**SWIN, "hidden_dropout_prob": 0.2} if kind.startswith("Swin") else CONVNEXT
    config = getattr(hf, f"{kind}Config")(**{**sizes, "drop_path_rate": 0.4})
    model = seeded(lambda: getattr(hf, f"{kind}Model")(config), 1).train()
    images, answers = pictures((50, 70), 4).float(), []
    for forward in (model, sieve(model), model):
        torch.manual_seed(len(answers) // 2)
        answers.append(forward(images))
    assert_equal(answers[1], answers[0])
    assert not torch.equal(answers[2].pooler_output, answers[0].pooler_output)


def expected(model: Any, images: Tensor, slow: Staged) -> dict[str, Any]:
    """What the host says of these maps, composed by hand; maps are (B, C, H, W)."""
    kind, base, last = type(model).__name__, base_of(model), slow.maps[-1]
    convnext = kind.startswith("ConvNext")
    if kind.endswith("Backbone"):
        stem = base.embeddings(images) if convnext else base.embeddings(images)[0]
        if not convnext:
            height, width = (-(-side // 4) for side in images.shape[2:])
            stem = stem.transpose(1, 2).unflatten(2, (height, width))
        maps = dict(zip(["stem", *(f"stage{1 + i}" for i in range(len(slow.maps)))], [stem, *slow.maps], strict=True))
        taken = {name: x for name, x in maps.items() if name in model.out_features}
        if kind != "Swinv2Backbone":
            norms = model.hidden_states_norms
            taken = {name: over_channels(norms[name], x) for name, x in taken.items()}
        return {"feature_maps": tuple(taken.values())}
    if convnext:
        pooled = base.layernorm(last.flatten(2).mean(2))
        fields = {"last_hidden_state": last, "pooler_output": pooled}
    else:
        tokens = over_channels(base.layernorm, last).flatten(2).transpose(1, 2)
        pooled = tokens.mean(1)
        fields = {"last_hidden_state": tokens, **({} if base.pooler is None else {"pooler_output": pooled})}
    return {"logits": model.classifier(pooled)} if hasattr(model, "classifier") else fields


def over_channels(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    flat = centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt()
    return flat * norm.weight[:, None, None] + norm.bias[:, None, None]


def assert_close(ours: Any, slow: Any) -> None:
    if isinstance(slow, tuple):
        assert len(ours) == len(slow)
        for one, other in zip(ours, slow, strict=True):
            torch.testing.assert_close(one, other, **TIGHT)
    else:
        torch.testing.assert_close(ours, slow, **TIGHT)


@each
@pytest.mark.parametrize(("background", "training"), [(None, False), ("zero", False), ("keep", False), (None, True)])
def test_it_is_the_reference(name: str, background: str | None, training: bool) -> None:
    model = FORMS[name]().double().train(training)
    images = pictures(sizes_of(name)[-1] if len(sizes_of(name)) == 1 else (50, 70))
    fast = sieve(model, PaPr(keep=0.5, significance=significance, background=background))
    with torch.no_grad():
        view = as_timm(model)
        stages = len(view.stages if hasattr(view, "stages") else view.layers)
        choices = [choice_of(stages, 0.5, None, enlarged(map)) for map in significance(fast.covered(images))]
        slow = staged_reference(view, images, choices, background)
        trace, output = fast.trace(images), fast(images)
        outputs = expected(model, images, slow)
        assert list(output) == list(outputs)
        for field, value in outputs.items():
            assert_close(output[field], value)
            assert_close(trace.output[field], value)
        for one, other in zip(fast.forward_intermediates(images), slow.maps, strict=True):
            torch.testing.assert_close(one, other, **TIGHT)
        whole = model(images)
    assert trace.tokens_per_block == slow.pixels
    assert [mask.kept.tolist() for mask in trace.masks] == slow.kept
    assert [mask.grid for mask in trace.masks] == [tuple(x.shape[2:]) for x in slow.maps]
    field = next(iter(outputs))
    ours, theirs = (value[field] if isinstance(value[field], Tensor) else value[field][-1] for value in (output, whole))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("name", [name for name in FORMS if " " not in name])
def test_hidden_states_are_whole_grids(name: str) -> None:
    model, images = FORMS[name](), pictures((50, 70)).float()
    fast = sieve(model, PaPr(keep=0.5, significance=significance))
    with torch.no_grad():
        whole, output = (forward(images, output_hidden_states=True) for forward in (model, fast))
        assert type(output) is type(whole)
        assert list(output) == list(whole)
        for field in set(whole) & {"hidden_states", "reshaped_hidden_states", "feature_maps"}:
            assert [x.shape for x in output[field]] == [x.shape for x in whole[field]]
            assert torch.equal(output[field][0], whole[field][0])
        maps = fast.forward_intermediates(images)
        if name.startswith("ConvNext") or name == "SwinBackbone":
            for one, other in zip(output.hidden_states[1:], maps, strict=True):
                assert torch.equal(one, other)
        elif name != "Swinv2Backbone":
            assert torch.equal(output.reshaped_hidden_states[-1], maps[-1])
        model.config.output_hidden_states = True
        assert list(fast(images)) == list(output)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_called_as_the_host_is(kind: str) -> None:
    model = FORMS[f"{kind}ForImageClassification"]()
    images, labels = pictures((50, 70)).float(), torch.tensor([1, 5])
    fast = sieve(model, "papr(keep=0.5, significance=centre)")
    with torch.no_grad():
        whole = fast(images)
        assert torch.equal(fast(pixel_values=images).logits, whole.logits)
        assert torch.equal(fast(images, return_dict=False)[0], whole.logits)
        loss = fast(pixel_values=images, labels=labels).loss
        torch.testing.assert_close(loss, nn.functional.cross_entropy(whole.logits, labels))
        assert torch.equal(fast(images, labels=labels, return_dict=False)[0], loss)
        if kind.startswith("Swin"):
            assert torch.equal(fast(images, interpolate_pos_encoding=True).logits, whole.logits)
    for words, reason in (
        ({"output_attentions": True}, "A sieved model cannot return output_attentions, since its blocks"),
        ({"output_hidden_states": [1]}, "output_hidden_states must be True or False"),
        ({"pixel_values": images}, "images once"),
        ({"bool_masked_pos": labels}, r"takes no bool_masked_pos= once it is sieved.*return_dict and labels\.$"),
        *([({"interpolate_pos_encoding": True}, "takes no interp")] if kind.startswith("Conv") else []),
    ):
        with pytest.raises(InputError, match=reason):
            fast(images, **words)
    with pytest.raises(InputError, match=r"reads \(B, 3, H, W\)"):
        fast(images[0])
    with pytest.raises(InputError, match="takes no labels="):
        sieve(FORMS[f"{kind}Model"]())(images, labels=labels)
    if kind == "Swin":
        model.set_attn_implementation("eager")
    model.config.output_attentions = True
    with pytest.raises(InputError, match="cannot return output_attentions"):
        fast(images)


def test_absolute_positions_are_interpolated_where_it_is_asked_for() -> None:
    model = FORMS["SwinModel absolute"]()
    with torch.no_grad():
        for size in ((64, 80), (96, 64)):
            images = pictures(size).float()
            assert_equal(
                sieve(model)(images, interpolate_pos_encoding=True), model(images, interpolate_pos_encoding=True)
            )
            with pytest.raises(InputError, match=rf"{size[0]} x {size[1]} pixels, SwinModel reads 64 x 64: resize"):
                sieve(model)(images)
        images = pictures((62, 63)).float()  # filled up to the same grid
        assert_equal(sieve(model)(images), model(images))


def test_maps_smaller_than_windows_are_refused_where_the_host_fails() -> None:
    images = pictures((40, 64)).float()
    with pytest.raises(RuntimeError), torch.no_grad():
        FORMS["SwinModel"]()(images)
    model = FORMS["SwinModel"]()
    for recipe in ("", "papr(keep=0.5, significance=centre)"):
        with pytest.raises(InputError, match="map of 3 x 4 is smaller than the windows of 4 x 4"), torch.no_grad():
            sieve(model, recipe)(images)
    assert [layer.window_size for stage in model.encoder.layers for layer in stage.blocks] == [4] * 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ConvNextV2ForImageClassification", "SwinModel", "Swinv2Backbone"])
def test_it_compiles_in_one_graph(name: str) -> None:
    model, images = FORMS[name](), pictures((50, 70)).float()
    fast = sieve(model, "papr(keep=0.6, significance=centre)")
    with torch.no_grad():
        whole, compiled = fast(images), torch.compile(fast, fullgraph=True, backend="eager")(images)
    assert type(compiled) is type(whole)
    for field in whole:
        torch.testing.assert_close(compiled[field], whole[field])


@each
def test_the_state_is_the_hosts(name: str) -> None:
    model, images = FORMS[name](), pictures(sizes_of(name)[0]).float()
    with torch.no_grad():
        whole = model(images)
        state, own = {key: value.clone() for key, value in model.state_dict().items()}, set(model.__dict__)
        fast = sieve(model, PaPr(keep=0.6, significance=significance))
        fast(images)
        assert_equal(model(images), whole)
    assert set(model.__dict__) == own
    for held in (model.state_dict(), fast.state_dict()):
        assert list(held) == list(state)
        assert all(torch.equal(value, state[key]) for key, value in held.items())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_first_layer(kind: str) -> None:
    model = FORMS[f"{kind}ForImageClassification"]()
    fast = sieve(model, "papr(keep=0.5, significance=centre)").train()
    fast(pictures((50, 70)).float(), labels=torch.tensor([0, 1])).loss.backward()
    slopes = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, slope in slopes.items() if slope is None or slope.abs().sum() == 0] == []


@pytest.mark.parametrize("name", [name for name in FORMS if " " not in name])
def test_what_it_costs_is_counted(name: str) -> None:
    model, size = FORMS[name](), (3, 64, 64)
    dense = measure.macs(model, size)
    assert measure.macs(sieve(model), size) == dense
    fast = sieve(model, "papr(keep=0.5, significance=centre)")
    assert measure.macs(fast, size) < 0.85 * dense
    images = pictures((64, 64)).float()
    with torch.no_grad():
        assert type(SlicingLimit(fast)(images)) is type(model(images))


def test_what_is_known_of_a_host() -> None:
    facts = {name: (host.family, host.widths, host.background) for name in FORMS for host in [open_host(FORMS[name]())]}
    for name, fact in facts.items():
        assert fact == (("ConvNeXt", [8, 16, 24, 32], "zero") if "Conv" in name else ("Swin", [8, 16, 32], "keep"))


@pytest.mark.parametrize("kind", KINDS)
def test_others_are_not_guessed(kind: str) -> None:
    model = FORMS[f"{kind}Model"]()
    mine = type("Mine", (type(model),), {})
    with pytest.raises(UnsupportedHost, match="Mine cannot be sieved"):
        sieve(mine(model.config))
    stage = (model.encoder.stages if kind.startswith("Conv") else model.encoder.layers)[1]
    layer = (stage.layers if kind.startswith("Conv") else stage.blocks)[1]
    for part in (*([] if kind.startswith("Conv") else [layer.attention]), layer, stage, model.encoder):
        own, part.__class__ = type(part), type("Mine", (type(part),), {})
        with pytest.raises(UnsupportedHost, match=f"{kind}Model holds a Mine, for which no opener is written"):
            sieve(model)
        part.__class__ = own
    with pytest.raises(UnsupportedHost, match=f"{kind}Model cannot take tome: its feature maps keep their full size"):
        sieve(model, "tome(r=2)")


def test_a_new_classifier_is_used_at_once() -> None:
    model = FORMS["SwinForImageClassification"]()
    fast = sieve(model, "papr(keep=0.5, significance=centre)")
    model.classifier = nn.Linear(32, 3)
    assert fast(pictures((64, 64)).float()).logits.shape == (2, 3)

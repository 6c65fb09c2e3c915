"""transformers' models for dense prediction: their own heads, on states put back on the grid."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from tests.reference.hf_dense import backbone_forms, dense_forms, dense_images
from tests.reference.hf_hosts import assert_asking_agrees
from tests.reference.hf_vit import dense_output
from tokensieve import InputError, UnsupportedHost, measure, sieve
from tokensieve.hosts import open_host

BACKBONES, HEADS = backbone_forms(), dense_forms()
FORMS = {**BACKBONES, **{f"{name}-model": form for name, form in HEADS.items()}}
STAGED = ("uper-convnext-model", "uper-swin-model")
TOKENS = [name for name in FORMS if name not in STAGED]
EOMT = [name for name in FORMS if name.startswith("eomt")]
each = pytest.mark.parametrize("name", FORMS)
with_tokens = pytest.mark.parametrize("name", TOKENS)


def parts(output: Any) -> dict[str, Tensor]:
    """The tensors of an output, those in its tuples each by itself."""
    found = {}
    for field in output:
        values = output[field] if isinstance(output[field], tuple | list) else [output[field]]
        found |= {f"{field} {n}": value for n, value in enumerate(values)}
    return found


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    assert list(one) == list(other)
    left, right = parts(one), parts(other)
    assert list(left) == list(right)
    assert all(torch.equal(left[name], right[name]) for name in left)


def assert_near(one: Any, other: Any) -> None:
    left, right = parts(one), parts(other)
    assert list(left) == list(right)
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=1e-9, rtol=1e-9, msg=name)


@torch.no_grad()
def call(model: nn.Module, images: Tensor, **words: Any) -> Any:
    return model(images, **words)


@each
def test_identity_settings_are_the_model_bit_for_bit_and_change_nothing(name: str) -> None:
    model = FORMS[name]()
    images, state, own = dense_images(model), {k: v.clone() for k, v in model.state_dict().items()}, set(model.__dict__)
    whole = call(model, images)
    for recipe in ("", "papr(keep=1)") if name in STAGED else ("", "papr(keep=1)", "tome(r=0)"):
        assert_same(call(sieve(model, recipe), images), whole)
    acting = "papr(keep=0.5, significance=centre)" if name in STAGED else "tome(r=2)"
    changed = call(sieve(model, acting), images)
    assert any(not torch.equal(x, y) for x, y in zip(parts(changed).values(), parts(whole).values(), strict=True))
    assert [x.shape for x in parts(changed).values()] == [x.shape for x in parts(whole).values()]
    assert_same(call(model, images), whole)
    assert set(model.__dict__) == own
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", [name for name in FORMS if name not in EOMT])
def test_hidden_states_are_those_of_the_whole_grid(name: str) -> None:
    model = FORMS[name]()
    images = dense_images(model)
    whole = call(model, images, output_hidden_states=True)
    assert whole.hidden_states is not None
    assert_same(call(sieve(model), images, output_hidden_states=True), whole)
    if name not in STAGED:
        few = call(sieve(model, "tome(r=3)"), images, output_hidden_states=True)
        assert [x.shape for x in few.hidden_states] == [x.shape for x in whole.hidden_states]
    model.config.output_hidden_states = True
    assert call(sieve(model), images).hidden_states is not None
    assert call(sieve(model), images, output_hidden_states=False).get("hidden_states") is None


@with_tokens
def test_merged_patches_are_those_of_the_slow_reference_at_every_level(name: str) -> None:
    model = FORMS[name]().double()
    images = dense_images(model).double()
    expected, margin = dense_output(model, images, r=3)
    assert margin > 1e-9
    assert_near(call(sieve(model, "tome(r=3)"), images), expected)


@with_tokens
@pytest.mark.parametrize("fill", ["nearest", "zero"])
def test_dropped_patches_show_the_nearest_or_nothing(name: str, fill: str) -> None:
    model = FORMS[name]().double()
    images = dense_images(model).double()
    fast = sieve(model, "papr(keep=0.6, significance=centre)")
    kept = fast.trace(images).kept.tolist()
    expected, _ = dense_output(model, images, kept=kept, zero=fill == "zero")
    assert_near(call(fast, images, fill=fill), expected)


@with_tokens
def test_the_verbs_compose_to_the_block_and_only_some_may_ask(name: str) -> None:
    model = FORMS[name]().double()
    host = open_host(model)
    with torch.no_grad():
        tokens = host.embed(dense_images(model).double())
        few = tokens.select(torch.tensor([[0, 3, 4, 9, 11], [1, 2, 5, 7, 20]]))
        for block in host.blocks:
            assert block.closed is None
            for some in (tokens, few):
                read = block.enter(some)
                heads = block.qkv(read)
                opened = block.mlp(block.attention_out(heads.attend(), heads, read.x))
                torch.testing.assert_close(opened, block(read), atol=1e-10, rtol=1e-10)
            assert_asking_agrees(block, few)


@with_tokens
@pytest.mark.parametrize("recipe", ["random(keep=0.5) + tome(r=2)", "guarded(r=3)", "evit(keep=0.7)", "ats(tokens=12)"])
def test_one_image_is_what_it_is_in_a_batch(name: str, recipe: str) -> None:
    model = FORMS[name]().double()
    images = dense_images(model, 3).double()
    fast = sieve(model, recipe)
    batch = parts(call(fast, images))
    for n in range(3):
        for field, alone in parts(call(fast, images[n : n + 1])).items():
            torch.testing.assert_close(alone[0], batch[field][n], atol=1e-8, rtol=1e-8, msg=field)


@each
def test_empty_batches_have_empty_answers(name: str) -> None:
    model = FORMS[name]()
    images = dense_images(model)
    fast = sieve(model, "random(keep=0.5)")
    assert all(len(x) == 0 for x in parts(call(fast, images[:0])).values())
    shapes = [x.shape[1:] for x in parts(call(fast, images)).values()]
    assert [x.shape[1:] for x in parts(call(fast, images[:0])).values()] == shapes


@pytest.mark.parametrize("name", ["dinov2", "beit", "depth-anything-model", "uper-dinov3-model", "yolos-model"])
def test_a_sieved_model_takes_every_size_that_its_own_does(name: str) -> None:
    model = FORMS[name]()
    images = torch.randn(2, 3, 48, 64)
    assert_same(call(sieve(model), images), call(model, images))
    whole = parts(call(model, images))
    assert [x.shape for x in parts(call(sieve(model, "tome(r=4)"), images)).values()] == [
        x.shape for x in whole.values()
    ]


def test_a_backbone_can_be_sieved_in_its_place() -> None:
    for name in ("depth-anything", "dpt-depth-backbone", "uper-dinov2", "uper-beit", "zoe"):
        model = HEADS[name]()
        images = dense_images(model)
        around = call(sieve(model, "tome(r=3)"), images)
        model.backbone = sieve(model.backbone, "tome(r=3)")
        assert_same(call(model, images), around)


def test_labels_and_other_words_are_passed_on() -> None:
    for name in ("uper-dinov2", "dpt-classes", "beit-classes"):
        model = HEADS[name]()
        images = dense_images(model)
        labels = torch.randint(7, (2, *images.shape[2:]))
        whole = call(model, images, labels=labels)
        assert whole.loss is not None
        assert_same(call(sieve(model), images, labels=labels), whole)
        assert not torch.equal(call(sieve(model, "tome(r=4)"), images, labels=labels).loss, whole.loss)
    model = HEADS["prompt-depth-anything"]()
    images, prompt = dense_images(model), torch.rand(2, 1, 20, 20)
    assert_same(call(sieve(model), images, prompt_depth=prompt), call(model, images, prompt_depth=prompt))


def test_a_plain_tuple_is_had_as_of_the_model() -> None:
    for name in ("depth-anything", "uper-dinov2", "dpt-depth", "yolos"):
        model = HEADS[name]()
        images = dense_images(model)
        told, whole = call(sieve(model), images, return_dict=False), call(model, images, return_dict=False)
        assert type(told) is type(whole) is tuple
        assert torch.equal(told[0], whole[0])


def test_gradients_flow_through_the_head_to_the_embeddings() -> None:
    for name in ("depth-anything", "eomt", "yolos"):
        model = HEADS[name]()
        output = sieve(model, "tome(r=3)")(dense_images(model))
        sum(x.sum() for x in parts(output).values()).backward()
        found = [
            p.grad.abs().sum() > 0
            for n, p in model.named_parameters()
            if "patch_embeddings" in n and p.grad is not None
        ]
        assert found
        assert all(found)


def test_labelled_masks_of_eomt_give_its_own_loss() -> None:
    pytest.importorskip("scipy")
    model = HEADS["eomt"]()
    images = dense_images(model)
    side = images.shape[-1]
    words = {
        "mask_labels": [(torch.rand(2, side, side) > 0.5).float() for _ in images],
        "class_labels": [torch.tensor([1, 3]) for _ in images],
    }
    losses = []
    for module in (model, sieve(model)):
        torch.manual_seed(0)  # its loss draws points
        losses.append(call(module, images, **words).loss)
    assert torch.equal(*losses)


def test_words_that_cannot_be_had_are_refused() -> None:
    model = HEADS["eomt"]()
    images = dense_images(model)
    with pytest.raises(InputError, match="cannot return output_hidden_states"):
        sieve(model)(images, output_hidden_states=True)
    with pytest.raises(InputError, match=r"reads \(B, 3, 40, 40\)"):
        sieve(model)(torch.randn(1, 3, 48, 48))
    model = HEADS["depth-anything"]()
    with pytest.raises(InputError, match="cannot return output_attentions"):
        sieve(model)(dense_images(model), output_attentions=True)
    with pytest.raises(InputError, match="takes no mask= once it is sieved"):
        sieve(model)(dense_images(model), mask=1)
    with pytest.raises(InputError, match=r'fill must be "nearest" or "zero"'):
        sieve(model, "random(keep=0.5)")(dense_images(model), fill="mean")
    with pytest.raises(InputError, match="takes no fill= once it is sieved"):
        sieve(HEADS["uper-swin"]())(torch.randn(1, 3, 64, 64), fill="zero")


def test_what_cannot_be_opened_says_why() -> None:
    import transformers as hf

    def refused(model: nn.Module, reason: str) -> None:
        with pytest.raises(UnsupportedHost, match=reason):
            open_host(model)

    for kind, reason in (
        ("SegformerForSemanticSegmentation", "its keys come from maps that strided convolutions shrink"),
        ("VitDetBackbone", "its windows or strides need the whole grid"),
        (
            "Mask2FormerForUniversalSegmentation",
            r"sieve its backbone instead: .*pixel_level_module\.encoder = sieve",
        ),
        ("BeitModel", "timm's Beit"),
        ("YolosModel", "sieve the YolosForObjectDetection around it"),
        ("DPTModel", "sieve the DPTForDepthEstimation or DPTForSemanticSegmentation around it"),
    ):
        model = getattr(hf, kind)
        with torch.device("meta"):
            refused(model(model.config_class()), f"{kind} cannot be sieved.*{reason}")
    eomt = HEADS["eomt"]()
    eomt.config.num_blocks = 4
    refused(eomt, "reads its queries from the first layer on")
    upernet = HEADS["uper-dinov2"]()
    upernet.backbone.__class__ = type("Mine", (type(upernet.backbone),), {})
    refused(upernet, "UperNetForSemanticSegmentation holds a Mine")
    with pytest.raises(UnsupportedHost, match="UperNetForSemanticSegmentation cannot take tome"):
        sieve(HEADS["uper-swin"](), "tome(r=2)")
    dpt = HEADS["dpt-depth"]()
    dpt.config.is_hybrid = True
    refused(dpt, "is a hybrid, whose head also reads maps of its convolutional stem")


def test_the_signature_says_what_may_be_given() -> None:
    assert list(inspect.signature(sieve(HEADS["depth-anything"]()).forward).parameters)[:2] == [
        "images",
        "pixel_values",
    ]


@with_tokens
def test_the_limit_and_the_trace_know_the_head(name: str) -> None:
    model = FORMS[name]()
    images = dense_images(model)
    size = tuple(images.shape[1:])
    fast = sieve(model, "tome(r=4)")
    dense, sieved = measure.macs(model, size), measure.macs(fast, size)
    assert 0 < sieved < dense
    assert measure.macs(sieve(model), size) == dense
    with torch.no_grad():
        trace = fast.trace(images)
    assert_same(trace.output, call(fast, images))
    assert len(trace.tokens_per_block) == len(open_host(model).blocks)
    assert trace.restore().shape[2:] == trace.tokens.grid

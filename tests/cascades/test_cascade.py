"""A cascade beside members that read every image by itself and from its beginning."""

from __future__ import annotations

import copy
import warnings

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.cascades.small import HALF, KEPT, THIRD, classifier, pictures
from tests.reference import cascades as reference
from tokensieve import InputError, RecipeError, UnsupportedHost, sieve
from tokensieve.cascade_recipe import CascadeRecipe
from tokensieve.cascades import Cascade, DriftWarning, sureness
from tokensieve.errors import DenseOnly
from tokensieve.measure import SlicingLimit, macs
from tokensieve.measure.macs import count, reading_macs


def split(model: nn.Module, recipes: tuple[str, ...], score: str = "margin") -> tuple[float, ...]:
    """Thresholds at which each member sends half of its images on: between two images, as rounding moves each."""
    with torch.no_grad():
        outputs = [sieve(model, recipe)(pictures().double()) for recipe in recipes[:-1]]
    return tuple(between(output, score) for output in outputs)


def between(output: Tensor, score: str = "margin") -> float:
    """A threshold in the middle."""
    half = len(output) // 2
    return float(sureness(output, score).sort().values[half - 1 : half + 1].mean())


@pytest.mark.parametrize(
    ("recipes", "score"),
    [
        ((HALF, ""), "margin"),
        ((HALF, ""), "probability"),
        ((THIRD, HALF, ""), "entropy"),
        ((HALF, THIRD, "readout()"), "margin"),
        ((KEPT, HALF, ""), "margin"),
        ((KEPT, "papr(keep=0.8, significance=centre)"), "margin"),
    ],
    ids=["two blocks", "probability", "one, then two, entropy", "the least of them", "the embedding", "no dense"],
)
@torch.no_grad()
def test_answers_are_those_of_members_alone_in_order(recipes: tuple[str, ...], score: str) -> None:
    model, images = classifier().double(), pictures().double()
    thresholds = split(model, recipes, score)
    cascade = sieve(model, CascadeRecipe(recipes, thresholds, score))
    expected, who = reference.answer([sieve(model, recipe) for recipe in recipes], thresholds, score, images)
    assert set(who) == set(range(len(recipes))), "every member answers some"
    torch.testing.assert_close(cascade(images), expected, rtol=0, atol=1e-10)
    trace = cascade.trace(images)
    assert trace.member.tolist() == who
    assert torch.equal(trace.output, cascade(images))
    assert trace.shares == tuple(sum(w >= i for w in who) / len(who) for i in range(len(recipes)))
    for index in range(len(recipes) - 1):
        asked = trace.member >= index
        assert trace.scores[~asked, index].isnan().all()
        sure = trace.scores[asked, index] >= thresholds[index]
        assert torch.equal(sure, trace.member[asked] == index)


@torch.no_grad()
def test_the_embedding_and_untouched_blocks_are_computed_once() -> None:
    model, images = classifier(), pictures()
    calls: dict[str, int] = {}

    def counting(name: str) -> None:
        part = model.get_submodule(name)
        part.register_forward_hook(lambda *_: calls.__setitem__(name, calls.get(name, 0) + 1))

    for name in ("patch_embed", "blocks.0.mlp", "blocks.1.mlp", "blocks.2.mlp", "blocks.3.mlp"):
        counting(name)
    (threshold,) = split(model.double(), (HALF, ""))
    model.float()
    calls.clear()
    sieve(model, CascadeRecipe((HALF, ""), (threshold,)))(images)
    assert calls == {"patch_embed": 1, "blocks.0.mlp": 1, "blocks.1.mlp": 1, "blocks.2.mlp": 2, "blocks.3.mlp": 2}


@torch.no_grad()
def test_thresholds_at_both_ends_leave_readings_out() -> None:
    model, images = classifier(), pictures(5)
    first, dense = sieve(model, HALF)(images), model(images)
    assert torch.equal(sieve(model, CascadeRecipe((HALF, ""), (0.0,)))(images), first)
    everything = sieve(model, CascadeRecipe((HALF, ""), (1.0,)))
    assert torch.equal(everything(images), dense)
    assert [reading.member for reading in everything.trace(images).readings] == [1]
    assert everything.trace(images).shares == (0, 1)
    assert everything(images[:0]).shape == (0, 7)


@torch.no_grad()
def test_macs_are_the_mean_of_what_each_image_is_read_by() -> None:
    model, images = classifier(), pictures()
    recipes = (THIRD, HALF, "")
    thresholds = split(model.double(), recipes)
    model.float()
    cascade = sieve(model, CascadeRecipe(recipes, thresholds))
    assert cascade.depths(16) == [1, 2, 0]
    one, dense = images[:1], macs(model)
    embedding = count(model, lambda: sieve(model).host.embed(one))
    block = (dense - embedding - 24 * 7) / 4
    alone = [macs(sieve(model, recipe)) for recipe in recipes]
    # The second begins behind one block that both leave alone, the last behind two.
    second, last = alone[1] - embedding - block, alone[2] - embedding - 2 * block
    _, second_share, last_share = cascade.trace(images).shares
    expected = alone[0] + second_share * second + last_share * last
    assert macs(cascade, images=images) == pytest.approx(expected, rel=1e-12)
    assert reading_macs(cascade) == pytest.approx((alone[0], second, last), rel=1e-12)
    with pytest.raises(InputError, match="depends on its images"):
        macs(cascade)
    # each image by itself: nothing but the mean
    assert sum(macs(cascade, images=image) for image in images.split(1)) / 40 == pytest.approx(expected, rel=1e-12)


@torch.no_grad()
def test_members_of_two_hosts_read_by_themselves() -> None:
    model, other, images = classifier().double(), classifier(depth=3).double(), pictures().double()
    members = [sieve(other, "tome(r=4)"), model]
    thresholds = (between(members[0](images)),)
    cascade = Cascade(members, CascadeRecipe(("tome(r=4)", ""), thresholds))
    expected, who = reference.answer(members, thresholds, "margin", images)
    assert 0 < sum(who) < 40
    torch.testing.assert_close(cascade(images), expected, rtol=0, atol=1e-12)
    assert not cascade.one_host
    per_image = macs(members[0]) + macs(model) * sum(who) / 40
    assert macs(cascade, images=images) == pytest.approx(per_image, rel=1e-12)
    cascade.float()
    assert {p.dtype for p in (*model.parameters(), *other.parameters())} == {torch.float32}


@torch.no_grad()
def test_hosts_of_transformers_are_read_as_they_are() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=48, image_size=32, patch_size=8,
        num_labels=5,
    )  # fmt: skip
    model, images = transformers.ViTForImageClassification(config).eval().double(), pictures(12).double()
    recipes = ("tome(r=(0, 4, 2))", "")
    threshold = between(sieve(model, recipes[0])(pixel_values=images).logits)
    cascade = sieve(model, CascadeRecipe(recipes, (threshold,)))
    expected, who = reference.answer(
        [sieve(model, recipe) for recipe in recipes],
        (threshold,),
        "margin",
        images,
        lambda m, x: m(pixel_values=x).logits,
    )
    assert 0 < sum(who) < 12
    torch.testing.assert_close(cascade(pixel_values=images).logits, expected, rtol=0, atol=1e-12)
    for words in ({"labels": torch.zeros(12, dtype=torch.int64)}, {"output_hidden_states": True}):
        with pytest.raises(InputError, match=f"leave out {next(iter(words))}="):
            cascade(pixel_values=images, **words)
    with pytest.raises(UnsupportedHost, match="no logits"):
        sieve(transformers.ViTModel(config).eval(), CascadeRecipe(recipes, (0.5,)))(images.float())


def test_gradients_reach_the_weights_through_every_member() -> None:
    model = classifier()
    (threshold,) = split(model.double(), (HALF, ""))
    model.float()
    cascade = sieve(model, CascadeRecipe((HALF, ""), (threshold,)))
    cascade(pictures()).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@torch.no_grad()
def test_a_cascade_stands_for_its_host() -> None:
    model, images = classifier(), pictures(6)
    cascade = sieve(model, CascadeRecipe((HALF, ""), (0.3,)))
    assert list(cascade.state_dict()) == list(model.state_dict())
    assert cascade.num_classes == 7
    assert cascade.dense is model
    assert not cascade.training
    assert cascade.train().training
    assert model.eval() is model
    twin = copy.deepcopy(cascade)
    assert torch.equal(twin(images), cascade(images))
    assert twin.members[0].model is twin.members[1].model is not model
    for call in (cascade.forward_features, cascade.forward_intermediates, cascade.reads, cascade.map_call):
        with pytest.raises(UnsupportedHost, match=r"use one of them, cascade.members\[0\]"):
            call(images)
    with pytest.raises(UnsupportedHost, match="plan"):
        _ = cascade.plan
    with pytest.raises(InputError, match="no slicing limit"):
        SlicingLimit(cascade)
    with pytest.raises(InputError, match="attention"):
        cascade.trace(images, attention=[0])
    with pytest.raises(DenseOnly):
        cascade.get_intermediate_layers(images)


def test_what_can_be_no_member() -> None:
    model = classifier()
    cascade = sieve(model, CascadeRecipe((HALF, ""), (0.3,)))
    with pytest.raises(RecipeError, match="cannot be a member of a cascade"):
        Cascade([cascade, model], CascadeRecipe((HALF, ""), (0.3,)))
    with pytest.raises(RecipeError, match="2 recipes needs as many members, not 1"):
        Cascade([model], CascadeRecipe((HALF, ""), (0.3,)))
    features = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=0
    )
    with pytest.raises(UnsupportedHost, match="a model with a classifier, or pass as score="):
        sieve(features.eval(), CascadeRecipe(("tome(r=2)", ""), (0.3,)))(pictures(2))


@torch.no_grad()
def test_use_is_watched_where_the_share_is_known() -> None:
    model, images = classifier(), pictures(400)
    (threshold,) = split(model.double(), (HALF, ""))
    model.float()
    known = CascadeRecipe((HALF, ""), (threshold,), images=500, shares=(1.0, 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sieve(model, known)(images)
        sieve(model, CascadeRecipe((HALF, ""), (threshold,)))(images)  # not known: not watched
    other = sieve(model, CascadeRecipe((HALF, ""), (threshold,), images=500, shares=(1.0, 0.1)))
    other.trace(images)  # telling is not using
    assert other.watch.seen == 0
    with pytest.warns(DriftWarning, match="Of the last 400 images"):
        other(images)
    assert other.watch.shares == other.trace(images).shares

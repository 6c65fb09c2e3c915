"""DToP: the rule, and segmenters that tokens leave early."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.reference import dtop as slow
from tokensieve import RecipeError, UnsupportedHost, segmentation, sieve
from tokensieve.errors import DenseOnly
from tokensieve.measure import SlicingLimit, macs
from tokensieve.methods.dtop import exits, least_certain

CLASSES = 5


def vit(**more: object) -> VisionTransformer:
    sizes = {"img_size": (40, 56), "patch_size": 8, "embed_dim": 32, "num_heads": 2, "num_classes": 3, "depth": 6}
    return VisionTransformer(**{**sizes, "mlp_ratio": 2.0, **more})


def seeded(model: nn.Module) -> nn.Module:
    """Random weights that make unlike tokens."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        value.data = torch.randn(value.shape, generator=generator) * (0.3 if value.ndim > 1 else 0.2)
        if "norm" in name and name.endswith("weight"):
            value.data += 1
    for name, value in model.named_buffers():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return model.double().eval()


FORMS = {
    "segvit": lambda: segmentation.segvit(vit(), CLASSES, exits=(1, 3, 5), width=16, heads=2, layers=2),
    "segvit, class token": lambda: segmentation.segvit(
        vit(reg_tokens=2), CLASSES, exits=(1, 4), width=16, heads=2, layers=1, class_token=True, final_norm=True
    ),
    "setr": lambda: segmentation.setr(vit(), CLASSES, form="naive", levels=(1, 3, 5), channels=16),
}


def images_of(batch: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    plain = torch.randn(batch, 3, 40, 56, generator=generator, dtype=torch.float64)
    return plain * torch.linspace(0.2, 2, batch, dtype=torch.float64)[:, None, None, None]


def middle(model: nn.Module, images: Tensor) -> tuple[float, ...]:
    """Thresholds that about a third of the tokens pass."""
    levels = model.features(images)
    predictions = [model.predict(b, t.x, None) for b, t in zip(model.levels, levels, strict=True)]
    return tuple(float(each.probability.amax(1).quantile(0.6)) for each in predictions[:-1])


@pytest.mark.parametrize("class_probability", ["last", "stage"])
@pytest.mark.parametrize("name", FORMS)
@torch.no_grad()
def test_a_batch_is_the_published_loop_over_its_images(name: str, class_probability: str) -> None:
    model, images = seeded(FORMS[name]()), images_of()
    thresholds = middle(model, images)
    layers = model.exits[:-1]
    recipe = f"dtop(threshold={thresholds}, keep_per_class=2, class_probability={class_probability})"
    fast = sieve(model, recipe)
    trace = fast.trace(images)
    prefix = fast.host.prefix
    own_counts = set()
    for image in range(len(images)):
        tokens = model.embed(images[image : image + 1])
        heads = {block: told(model, block) for block in model.exits}
        canvas, own, word, reads, left = slow.forward(tokens.x[0], model.backbone.blocks, heads, thresholds, 2, prefix)
        if name == "setr":
            maps = F.interpolate(canvas.view(1, CLASSES, 5, 7), scale_factor=4, mode="bilinear")
        else:
            chosen = own if class_probability == "stage" else word[:, None] * canvas.sigmoid()
            maps = chosen.view(1, CLASSES, 5, 7)
        expected = F.interpolate(maps, size=(40, 56), mode="bilinear", align_corners=False)
        torch.testing.assert_close(trace.output[image : image + 1], expected, rtol=1e-9, atol=1e-9)
        assert [int(lengths[image]) for lengths in trace.lengths] == reads[: len(trace.lengths)]
        assert trace.left_behind[image].flatten().tolist() == left
        own_counts.add(tuple(reads))
    assert len(own_counts) > 2
    assert len(layers) == len(thresholds)
    alone = torch.cat([fast(image[None]) for image in images])
    torch.testing.assert_close(fast(images), alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(trace.output, alone, rtol=1e-5, atol=1e-5)


def told(model: nn.Module, block: int):
    """A head's answers for one image, from its modules alone."""
    head = model.heads[model.exits.index(block)]

    def answer(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if model.final_norm and block == len(model.backbone.blocks) - 1:
            x = model.backbone.norm(x)
        if hasattr(head, "decoder"):
            said = head(x[None])
            presence = said.classes.softmax(-1)[0, :, 0]
            return presence[:, None] * said.masks[0].sigmoid(), said.masks[0], presence
        logits = head.predict(x[None])[0]
        return logits.softmax(0), logits, logits[:, 0]

    return answer


@torch.no_grad()
def test_windows_are_read_by_the_sieved_model() -> None:
    model, images = seeded(FORMS["segvit"]()), images_of(2)
    large = torch.cat([images, images.flip(3)], dim=3)
    fast = sieve(model, "dtop(threshold=0.4, keep_per_class=1)")
    slid = fast.slide(large, (40, 56), (40, 56))
    torch.testing.assert_close(slid[..., :56], fast(large[..., :56]), rtol=1e-5, atol=1e-5)
    assert not torch.equal(slid, model.slide(large, (40, 56), (40, 56)))
    with pytest.raises(DenseOnly, match="stages"):
        fast.stages(images)


@pytest.mark.parametrize("name", FORMS)
@torch.no_grad()
def test_threshold_one_is_the_segmenter_bit_for_bit(name: str) -> None:
    model = seeded(FORMS[name]()).float()
    images = images_of(3).float()
    dense = model(images)
    for recipe in ("", "dtop(threshold=1)", "dtop(threshold=1.0) + tome(r=0)"):
        assert torch.equal(sieve(model, recipe)(images), dense)
    assert sieve(model, "dtop(threshold=1)").plan.methods == []


@torch.no_grad()
def test_macs_are_those_of_each_image_with_all_heads() -> None:
    model, images = seeded(FORMS["segvit"]()), images_of(3)
    fast = sieve(model, f"dtop(threshold={middle(model, images)}, keep_per_class=1)")
    alone = [macs(fast, images=image[None]) for image in images]
    assert macs(fast, images=images) == pytest.approx(sum(alone) / 3, rel=1e-12)
    assert len(set(alone)) > 1
    nobody = sieve(model, "dtop(threshold=(0.999999, 0.999999))")
    both = [model.heads[i] for i in (0, 1)]
    paid = sum(macs_of_head(head, model, images) for head in both)
    assert macs(nobody, images=images) == pytest.approx(macs(model, images=images) + paid, rel=1e-9)
    assert SlicingLimit.on(fast, images[:1])(images[:1]).shape == (1, CLASSES, 40, 56)


def macs_of_head(head: nn.Module, model: nn.Module, images: Tensor) -> float:
    from tokensieve.measure.macs import count

    tokens = model.features(images[:1])[0].x
    return count(head, lambda: head(tokens))


@pytest.mark.parametrize("recipe", ["tome(r=3)", "evit(keep=0.7, layers=(2,))", "guarded(r=2, drop=1)"])
@torch.no_grad()
def test_exits_go_together_with_other_methods(recipe: str) -> None:
    form = "segvit, class token" if "tome" not in recipe else "segvit"
    model, images = seeded(FORMS[form]()), images_of(4)
    fast = sieve(model, f"dtop(threshold={middle(model, images)}, keep_per_class=1) + {recipe}")
    trace = fast.trace(images)
    alone = [fast.trace(image[None]) for image in images]
    torch.testing.assert_close(trace.output, torch.cat([one.output for one in alone]), rtol=1e-5, atol=1e-5)
    assert torch.equal(trace.left_behind, torch.cat([one.left_behind for one in alone]))
    assert int(trace.lengths[-1].max()) < int(trace.lengths[0].min())
    restored = sieve(model, recipe)(images)
    assert restored.shape == trace.output.shape


@torch.no_grad()
def test_a_static_budget_keeps_one_count() -> None:
    model, images = seeded(FORMS["segvit"]()), images_of(4)
    fast = sieve(model, "dtop(budget=(0.6, 0.3), keep_per_class=1)")
    trace = fast.trace(images)
    assert [reads.keys for reads in trace.reads] == [35, 35, 21, 21, 10, 10]
    assert fast.reads(images) == trace.reads
    torch.testing.assert_close(trace.output, torch.cat([fast(image[None]) for image in images]), rtol=1e-9, atol=1e-9)


@given(
    seed=st.integers(0, 1000),
    classes=st.integers(1, 4),
    count=st.integers(1, 12),
    threshold=st.floats(0.05, 0.95),
    keep=st.integers(0, 3),
)
@settings(deadline=None, max_examples=80)
def test_the_rule_is_the_slow_one(seed: int, classes: int, count: int, threshold: float, keep: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.rand(3, classes, count, generator=generator, dtype=torch.float64)
    prediction = (prediction * 8).round() / 8  # ties
    exited = torch.rand(3, count, generator=generator) < 0.3
    noisy = prediction.masked_fill(exited[:, None], torch.nan)
    after = exits(noisy, exited, threshold, keep)
    for image in range(3):
        assert torch.equal(after[image], slow.exits(prediction[image], exited[image], threshold, keep))
    assert bool((after >= exited).all())
    stays = ~after
    assert bool((stays.any(1) | exited.all(1)).all())
    leaving, own = after & ~exited, prediction.argmax(1)
    if keep:
        for image in range(3):
            for each in own[image][leaving[image]].tolist():
                assert bool((stays[image] & (own[image] == each)).any())


def test_the_budget_keeps_context_first() -> None:
    prediction = torch.tensor([[[0.9, 0.8, 0.1, 0.4, 0.2], [0.1, 0.1, 0.6, 0.5, 0.3]]])
    assert least_certain(prediction, 3, 1).tolist() == [[0, 2, 4]]
    assert least_certain(prediction, 1, 0).tolist() == [[4]]


def test_what_makes_no_sense_is_refused() -> None:
    model = FORMS["segvit"]()
    with pytest.raises(UnsupportedHost, match="has no heads between its blocks"):
        sieve(vit(), "dtop()")
    with pytest.raises(UnsupportedHost, match="has no heads between its blocks"):
        sieve(segmentation.linear(vit(), CLASSES), "dtop()")
    with pytest.raises(RecipeError, match="there is no head after block 2"):
        sieve(model, "dtop(layers=(2,))")
    with pytest.raises(RecipeError, match="3 values, but tokens exit after 2"):
        sieve(model, "dtop(threshold=(0.9, 0.9, 0.9))")
    for wrong in ("threshold=1.5", "threshold=0", "keep_per_class=-1", "class_probability=first", "budget=2"):
        with pytest.raises(RecipeError, match="dtop"):
            sieve(model, f"dtop({wrong})")

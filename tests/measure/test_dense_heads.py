"""Depth Anything, UperNet, EoMT and others under every measure: their outputs are known, alone and by a backbone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

pytest.importorskip("transformers")

from tests.reference.hf_dense import backbone_forms, dense_forms, dense_images
from tokensieve import measure, segmentation, sieve, tune
from tokensieve.measure.outputs import class_map

HEADS = dense_forms()
KINDS = {
    "depth-anything": "depth",
    "dpt-depth": "depth",
    "zoe": "depth",
    "dpt-classes": "class-map",
    "beit-classes": "class-map",
    "uper-dinov3": "class-map",
    "eomt": "class-map",
    "eomt-dinov3": "class-map",
    "yolos": "tokens",
}


@pytest.mark.parametrize("name", KINDS)
def test_every_head_is_compared_by_its_kind(name: str) -> None:
    model = HEADS[name]()
    images = dense_images(model, 4)
    alike = measure.fidelity(sieve(model), model, [images])
    apart = measure.fidelity(sieve(model, "tome(r=5)"), model, [images])
    assert alike.kind == apart.kind == KINDS[name]
    # yolos has no agreement: there is no answer to a token
    assert alike.agreement in (100, None)
    assert alike.cosine == pytest.approx(1, abs=1e-6)
    assert apart.cosine < alike.cosine


def test_maps_of_a_backbone_are_features() -> None:
    model = backbone_forms()["dinov2"]()
    images = dense_images(model, 3)
    found = measure.fidelity(sieve(model, "tome(r=5)"), model, [images])
    assert found.kind == "feature-map"
    with torch.no_grad():
        one, other = (module(images).feature_maps[-1] for module in (sieve(model, "tome(r=5)"), model))
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(one, other, dim=1).mean()), abs=1e-5)


def test_depth_and_classes_are_scored_against_labels() -> None:
    model = HEADS["depth-anything-metric"]()
    images = dense_images(model, 3)
    with torch.no_grad():
        depth = model(images).predicted_depth
    told = measure.score(model, [(images, depth)])
    assert told.figures["abs_rel"] == pytest.approx(0, abs=1e-6)
    assert measure.score(sieve(model, "tome(r=5)"), [(images, depth)]).figures["abs_rel"] > 0
    model = HEADS["eomt"]()
    images = dense_images(model, 3)
    with torch.no_grad():
        output = model(images)
    labels = _by_hand(output.masks_queries_logits, output.class_queries_logits).argmax(1)
    assert measure.score(model, [(images, labels)]).figures["pixel_accuracy"] == pytest.approx(100)


def test_a_map_of_classes_is_the_sum_over_the_queries() -> None:
    masks, classes = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 6)
    torch.testing.assert_close(class_map(masks, classes).double(), _by_hand(masks, classes), atol=1e-5, rtol=1e-5)


def _by_hand(masks: Tensor, classes: Tensor) -> Tensor:
    batch, queries, height, width = masks.shape
    told = torch.zeros(batch, classes.shape[2] - 1, height, width, dtype=torch.float64)
    for b in range(batch):
        for q in range(queries):
            powers = [math.exp(float(score)) for score in classes[b, q]]
            for k in range(classes.shape[2] - 1):
                told[b, k] += powers[k] / sum(powers) / (1 + torch.exp(-masks[b, q].double()))
    return told.log()


@pytest.mark.parametrize("form", ["segvit", "segvit_v2", "setr"])
def test_scores_that_are_probabilities_are_compared_as_such(form: str) -> None:
    torch.manual_seed(0)
    backbone = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0)
    if form == "setr":
        model: Any = segmentation.setr(backbone, 3, form="naive", levels=(1,), channels=8).eval()
    else:
        model = getattr(segmentation, form)(backbone, 3, (0, 1), width=8, heads=2, layers=1).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.6)
    images, fast = torch.randn(2, 3, 32, 32), sieve(model, "random(keep=0.5)")
    with torch.no_grad():
        p, q = model(images).double(), fast(images).double()
    if form == "setr":
        p, q = p.softmax(1), q.softmax(1)
    else:
        p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    found = measure.fidelity(fast, model, [images])
    assert found.kl == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-5)
    assert found.kl > 1e-4
    assert found.agreement == pytest.approx(100 * float((p.argmax(1) == q.argmax(1)).double().mean()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [("depth-anything", {}), ("uper-beit", {"backbone": "backbone"})],
)
def test_a_recipe_is_found_without_labels(
    name: str, words: dict[str, Any], brief_timing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    brief_timing(monkeypatch)
    model = HEADS[name]()
    size = tuple(dense_images(model).shape[1:])
    images = torch.randn(12, *size)
    front = tune(model, images, macs=1.1, proposals=(), trials=0, **words)
    best = sieve(model, front.best.recipe)
    assert measure.macs(model, size) / measure.macs(best, size) >= 1.1 * 0.99
    assert front.objective


def test_bench_measures_the_model_beside_its_limit() -> None:
    model = HEADS["depth-anything"]()
    told = measure.speed(sieve(model, "tome(r=5)"), model, dense_images(model), seconds=0, min_rounds=2)
    assert told.ratio > 0
    assert told.limit > 0

"""`tune()` on models whose outputs are maps, and on models around a host."""

from __future__ import annotations

import json

import pytest
import torch
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.reference import comparison as reference
from tokensieve import InputError, UnsupportedHost, sieve, tune
from tokensieve.measure import fidelity, macs
from tokensieve.search.evaluator import Evaluator
from tokensieve.search.wrapped import WrappedBackbone
from tokensieve.show.tune_view import tune_view
from tokensieve.stream import Sieved

pytestmark = pytest.mark.slow

SIZE, CLASSES = (3, 64, 64), 5


def noisy(model, seed=0):
    torch.manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15 if parameter.ndim > 1 else 0.5)
    return model.eval()


def convnext(**settings):
    return ConvNeXt(
        depths=(1, 1, 2, 1), dims=(16, 24, 32, 48), **{"num_classes": CLASSES, "global_pool": "", **settings}
    )


class Segmenter(nn.Module):
    """A head on the patches of a vision transformer, put back on the grid where it is sieved."""

    def __init__(self, channels=CLASSES):
        super().__init__()
        self.body = nn.ModuleDict({"vit": VisionTransformer(64, 8, embed_dim=32, depth=3, num_heads=2, num_classes=0)})
        self.head = nn.Conv2d(32, channels, 3, padding=1)

    def features(self, images):
        vit = self.body["vit"]
        if isinstance(vit, Sieved):
            return vit.trace(images).restore()
        return vit.forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, (8, 8))

    def forward(self, images):
        return self.head(self.features(images))


class DepthEstimator(Segmenter):
    def __init__(self):
        super().__init__(1)

    def forward(self, images):
        return super().forward(images)[:, 0].abs() + 0.1


@pytest.fixture(scope="module")
def images():
    return torch.randn(14, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _quick(brief_timing, monkeypatch):
    brief_timing(monkeypatch)


def search(model, images, **settings):
    return tune(model, images, **{"macs": 1.3, "proposals": (), "trials": 6, "batch": 4, **settings})


def whole(front, name):
    """A figure over all images, those of the search and those held out."""
    parts = front.best.search, front.best.heldout
    return sum(getattr(part, name) * part.images for part in parts) / sum(part.images for part in parts)


def test_class_maps_by_the_kl_of_each_pixel(images, tmp_path):
    model = noisy(convnext())
    front = search(model, images)
    assert front.objective == "kl per pixel"
    assert front.best.ratio >= 1.3
    fast = sieve(model, front.best.recipe)
    with torch.no_grad():
        dense, sieved = model(images).numpy(), fast(images).numpy()
    pairs = list(zip(dense, sieved, strict=True))
    divergence = sum(reference.of_pixels(reference.kl, a, b) for a, b in pairs) / len(pairs)
    same = sum(reference.of_pixels(reference.same_class, a, b) for a, b in pairs) / len(pairs)
    assert whole(front, "divergence") == pytest.approx(divergence, rel=1e-4)
    assert whole(front, "agreement") == pytest.approx(100 * same)
    assert front.best.kl == front.best.divergence > 0
    assert "of the held-out pixels keep their class" in front.summary
    assert "KL per pixel of" in front.summary
    record = json.loads((front.save(tmp_path / "front") / "front.json").read_text())
    best = record["best"]["heldout"]
    assert (best["kind"], "interval" in best) == ("class-map", False)
    assert best["agreement_low"] <= best["agreement"] <= best["agreement_high"]


def test_maps_of_features_by_their_cosine(images):
    front = search(noisy(convnext(num_classes=0)), images)
    assert front.objective == "1 - cosine per pixel"
    assert (front.best.kl, front.best.agreement) == (None, None)
    assert front.best.divergence > 0


def test_a_segmenter_around_its_backbone(images):
    model = noisy(Segmenter())
    front = search(model, images, backbone="body.vit", families=("scheduled-guarded", "tome"), macs=1.4)
    dense = macs(model, SIZE)
    assert front.dense_macs == round(dense)
    fast = noisy(Segmenter())
    fast.body["vit"] = sieve(fast.body["vit"], front.best.recipe)
    backbone = macs(model.body["vit"], SIZE) - macs(fast.body["vit"], SIZE)
    assert front.best.macs == pytest.approx(dense - backbone)
    assert front.best.ratio == pytest.approx(dense / front.best.macs)
    assert front.best.ratio >= 1.4
    assert "readout" not in str(front.best.recipe)
    found = fidelity(fast, model, [images])
    assert whole(front, "divergence") == pytest.approx(found.kl, rel=1e-4)
    assert whole(front, "agreement") == pytest.approx(found.agreement)
    assert not isinstance(model.body["vit"], Sieved), "the model stays as it is"


def test_a_proposal_inside_a_segmenter(images):
    torch.manual_seed(0)
    norm = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "pretrained": False}
    front = search(
        noisy(Segmenter()), images, backbone="body.vit", families=("papr",), proposals=("test_resnet",), macs=1.1,
        include_proposal=False, trials=0, **norm,
    )  # fmt: skip
    assert front.best.proposal == "test_resnet"
    assert front.best.divergence > 0


def test_depths_by_their_relative_error(images):
    model = noisy(DepthEstimator())
    settings = {"backbone": "body.vit", "families": ("tome",), "trials": 0}
    front = search(model, images, kind="depth", **settings)
    assert (front.objective, front.best.kl) == ("relative error", None)
    assert "held-out pixels keep their depth within a factor of 1.25" in front.summary
    with pytest.raises(InputError, match='kind="depth"'):
        search(model, images, **settings)


def labelled(model, images):
    """The dense model's own answers, with some pixels ignored."""
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[:, 0] = 255
    return list(zip(images.split(5), labels.split(5), strict=True))


def test_labels_of_pixels_give_the_mean_iou(images):
    model = noisy(Segmenter())
    settings = {"backbone": "body.vit", "families": ("tome",), "trials": 0}
    front = search(model, labelled(model, images), **settings)
    assert front.dense_accuracy == {"search": 100.0, "heldout": 100.0}
    assert 0 < front.best.search.accuracy < 100
    none = search(model, [(images, torch.zeros(len(images), dtype=torch.int64))], **settings)
    assert none.best.search.accuracy is None, "classes of images say nothing about pixels"


def test_transformers_segmenters(images):
    from transformers import ConvNextConfig, UperNetConfig, UperNetForSemanticSegmentation

    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ConvNextConfig(depths=[1, 1, 2, 1], hidden_sizes=[8, 16, 24, 32], out_features=stages)
    config = UperNetConfig(backbone_config=backbone, hidden_size=8, num_labels=CLASSES, use_auxiliary_head=False)
    model = noisy(UperNetForSemanticSegmentation(config))
    front = search(model, images, backbone="backbone", macs=1.05)
    assert front.objective == "kl per pixel"
    model.backbone = sieve(model.backbone, front.best.recipe)
    fast, model = model, noisy(UperNetForSemanticSegmentation(config))
    found = fidelity(fast, model, [images])
    assert found.kind == "class-map"
    assert whole(front, "divergence") == pytest.approx(found.kl, rel=1e-4)
    assert found.kl > 0


class Normalising(Segmenter):
    def forward(self, images):
        return super().forward(images * 2)


class Opening(Segmenter):
    def features(self, images):
        vit = self.body["vit"]
        x = vit._pos_embed(vit.patch_embed(images))
        for block in vit.blocks:
            x = block(x)
        return x[:, 1:].transpose(1, 2).unflatten(2, (8, 8))


@pytest.mark.parametrize(
    ("kind", "backbone", "words"),
    [
        (Normalising, "body.vit", "changes the images before its body.vit reads them"),
        (Opening, "body.vit", "GMAC in the sub-module and 0 in the whole model"),
        (Segmenter, "head", "Conv2d cannot be sieved"),
    ],
)
def test_models_that_would_not_run_what_was_found(kind, backbone, words, images):
    with pytest.raises(UnsupportedHost, match=words):
        search(noisy(kind()), images, backbone=backbone)


def test_sub_modules_that_are_not_there(images):
    with pytest.raises(InputError, match=r"no sub-module 'body.vitt'; the nearest (is|are) body.vit"):
        search(noisy(Segmenter()), images, backbone="body.vitt")


def test_a_forward_of_the_instance_is_refused(images):
    model = noisy(Segmenter())
    model.forward = model.forward
    with pytest.raises(UnsupportedHost, match="set on the instance"):
        search(model, images, backbone="body.vit")


def test_another_part_leaves_the_model_alone(images):
    from tokensieve import InputSpec

    model = noisy(Segmenter())
    wrapped = WrappedBackbone(model, "body.vit", InputSpec(SIZE))
    before = model(images)
    other = wrapped.with_backbone(sieve(model.body["vit"], "tome(r=9)"))
    assert not torch.equal(other(images), before)
    assert torch.equal(model(images), before)
    assert other.head is model.head


def test_outputs_that_would_not_fit_are_refused(images, monkeypatch):
    model = noisy(convnext(num_classes=400))
    monkeypatch.setattr("tokensieve.search.evaluator._free_memory", lambda: 1.5 * images.nbytes)
    words = {"holdout": 0.3, "seed": 0, "batch": 4, "mean": None, "std": None, "pretrained": False}
    Evaluator(noisy(convnext()), images, check=lambda: None, **words)
    with pytest.raises(InputError, match="and the model's outputs"):
        Evaluator(model, images[:, :, :, :].repeat(1, 1, 2, 2)[:4], check=lambda: None, **{**words, "holdout": 0})


def test_what_the_command_prints_of_maps(images):
    front = search(noisy(convnext()), images, trials=0)
    from rich.console import Console

    record = {
        "front": front.record(), "out": None, "input_size": list(SIZE), "weights": None, "pretrained": False,
        "model": "segmenter", "recipe": "", "machine": "m", "device": "cpu", "dtype": "fp32", "threads": 1,
        "versions": {"torch": "2"}, "macs": {"dense": 2e9, "sieved": 1e9, "proposal": 0, "ratio": 2.0},
        "tokens": {"dense": 65, "per_block": [65, 33]}, "stages": None,
    }  # fmt: skip
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(tune_view(record))
    text = console.export_text()
    assert "KL per pixel" in text
    assert "same class" in text

"""What all segmenters share: which blocks run, sizes of images, backbones, refusals."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tokensieve import InputError, UnsupportedHost, segmentation
from tokensieve.hosts import open_host

CLASSES = 3
SMALL: dict[str, Any] = {"width": 12, "heads": 3, "layers": 1}
BUILD = {
    "segvit": lambda backbone, **words: segmentation.segvit(backbone, CLASSES, (1, 2), **SMALL, **words),
    "segvit_v1": lambda backbone, **words: segmentation.segvit_v1(backbone, CLASSES, (1, 2), **SMALL, **words),
    "segvit_v2": lambda backbone, **words: segmentation.segvit_v2(backbone, CLASSES, (1, 2), **SMALL, **words),
    "naive": lambda backbone, **words: segmentation.setr(backbone, CLASSES, "naive", (1, 2), 8, **words),
    "pup": lambda backbone, **words: segmentation.setr(backbone, CLASSES, "pup", (1, 2), 8, **words),
    "mla": lambda backbone, **words: segmentation.setr(backbone, CLASSES, "mla", (1, 2), 8, **words),
    "linear": lambda backbone, **words: segmentation.linear(backbone, CLASSES, (1, 2), **words),
}
every = pytest.mark.parametrize("name", BUILD)


def vit(**settings: Any) -> nn.Module:
    shape: dict[str, Any] = {"img_size": 24, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2}
    return VisionTransformer(**{**shape, "num_classes": 5, **settings}).eval()


@every
def test_what_stands_behind_the_last_level_is_not_run(name: str) -> None:
    model = vit()
    segmenter, images = BUILD[name](model).eval(), torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        before = segmenter(images)
        for part in (model.blocks[3], model.norm, model.head):
            for weight in part.parameters():
                weight.fill_(float("nan"))
        assert torch.equal(segmenter(images), before)
    assert segmenter.backbone is model


@every
@pytest.mark.parametrize("size", [(24, 24), (16, 40), (21, 33), (8, 8), (7, 50)])
def test_any_size_where_the_backbone_takes_any(name: str, size: tuple[int, int]) -> None:
    segmenter = BUILD[name](vit(dynamic_img_size=True)).eval()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        scores = segmenter(images)
        assert scores.shape == (2, CLASSES, *size)
        assert scores.isfinite().all()
        torch.testing.assert_close(segmenter(images[1:])[0], scores[1], rtol=1e-5, atol=1e-5)


@every
def test_an_empty_batch(name: str) -> None:
    assert BUILD[name](vit()).eval()(torch.zeros(0, 3, 24, 24)).shape == (0, CLASSES, 24, 24)


def test_images_are_filled_up_to_whole_patches() -> None:
    segmenter = BUILD["segvit"](vit(dynamic_img_size=True)).eval()
    images = torch.randn(1, 3, 21, 33)
    filled = torch.zeros(1, 3, 24, 40)
    filled[:, :, :21, :33] = images
    with torch.no_grad():
        assert torch.equal(segmenter(images), segmenter(filled)[:, :, :21, :33])


def test_a_backbone_of_one_size_says_what_would_work() -> None:
    segmenter = BUILD["segvit"](vit())
    with pytest.raises(InputError, match=r"does not read images of shape \(1, 3, 32, 32\).*img_size=.*slide"):
        segmenter(torch.randn(1, 3, 32, 32))
    with pytest.raises(InputError, match="Images must be one tensor"):
        segmenter([torch.randn(3, 24, 24)])


@every
def test_class_token_and_registers(name: str) -> None:
    """The class token is dropped behind the position embedding; registers stay."""
    model, images = vit(reg_tokens=2), torch.randn(1, 3, 24, 24)
    without, kept = BUILD[name](model, class_token=False), BUILD[name](model, class_token=True)
    embedded = open_host(model).embed(images)
    tokens = without.embed(images)
    assert (kept.embed(images).prefix, tokens.prefix) == (3, 2)
    assert torch.equal(tokens.x, embedded.x[:, 1:])
    with torch.no_grad():
        assert without.eval()(images).shape == kept.eval()(images).shape == (1, CLASSES, 24, 24)


def test_final_norm_is_the_backbones() -> None:
    model, images = vit(depth=3), torch.randn(1, 3, 24, 24)
    tokens = segmentation.segvit(model, CLASSES, (1, 2), **SMALL, class_token=True, final_norm=True).features(images)
    assert torch.equal(tokens[1].x, model.forward_features(images))
    plain = segmentation.segvit(model, CLASSES, (1, 2), **SMALL, class_token=True).features(images)
    assert torch.equal(model.norm(plain[1].x), tokens[1].x)
    assert torch.equal(plain[0].x, tokens[0].x)


def test_backbones_of_other_libraries() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    torchvision = timm.create_model("beit_base_patch16_224", embed_dim=16, depth=3, num_heads=2, img_size=32)
    for model, size in ((transformers.Dinov2Model(config), (28, 42)), (torchvision, (32, 32))):
        with torch.no_grad():
            scores = segmentation.linear(model.eval(), CLASSES).eval()(torch.randn(1, 3, *size))
        assert scores.shape == (1, CLASSES, *size)


def test_backbones_that_are_refused() -> None:
    stages = timm.create_model("convnext_atto", features_only=True)
    with pytest.raises(UnsupportedHost, match="cannot be the backbone of a segmenter: it has stages"):
        segmentation.linear(stages, CLASSES)
    with pytest.raises(UnsupportedHost, match="no opener is written"):
        segmentation.linear(nn.Conv2d(3, 8, 1), CLASSES)
    rotary = Eva(img_size=24, patch_size=8, embed_dim=16, depth=2, num_heads=2, use_rot_pos_emb=True)
    with pytest.raises(UnsupportedHost, match=r"rotary embedding\. Build the segmenter with class_token=True"):
        segmentation.linear(rotary, CLASSES, class_token=False)(torch.randn(1, 3, 24, 24))
    beit = timm.create_model("beit_base_patch16_224", embed_dim=16, depth=2, num_heads=2, img_size=32)
    with pytest.raises(UnsupportedHost, match="a bias to pairs of tokens, the class token among them"):
        segmentation.linear(beit, CLASSES, class_token=False)(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda m: segmentation.segvit(m, 3), r"levels=\(5, 7, 11\) must be indices of 4 blocks, 0 to 3 or -4 to -1"),
        (lambda m: segmentation.segvit(m, 3, (2, 1)), "in rising order"),
        (lambda m: segmentation.segvit(m, 3, (1, 1)), "each once"),
        (lambda m: segmentation.segvit(m, 3, ()), "must be block indices"),
        (lambda m: segmentation.segvit(m, 3, 1), "must be block indices"),
        (lambda m: segmentation.segvit(m, 3, (1,), width=10, heads=3), "must be a multiple of its heads"),
        (lambda m: segmentation.segvit_v1(m, 3, (1,), layers=0), "heads and layers at least 1"),
        (lambda m: segmentation.segvit(m, 0, (1,)), "at least one class, not 0"),
        (lambda m: segmentation.setr(m, 3, "fcn"), 'form must be "naive", "mla" or "pup"'),
        (lambda m: segmentation.setr(m, 3, "mla", convs=2), "leave convs out"),
        (lambda m: segmentation.setr(m, 3, "pup", convs=0), "must be at least 1"),
    ],
)
def test_settings_that_make_no_sense(build: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        build(vit())


@every
def test_copies_stand_on_their_own(name: str) -> None:
    segmenter, images = BUILD[name](vit()).eval(), torch.randn(1, 3, 24, 24)
    for twin in (copy.deepcopy(segmenter), pickle.loads(pickle.dumps(segmenter))):
        with torch.no_grad():
            before = twin(images)
            assert torch.equal(before, segmenter(images))
            twin.backbone.patch_embed.proj.weight.normal_()
            assert not torch.equal(twin(images), before)
            assert torch.equal(segmenter(images), before)


def test_checkpointing_switched_on_later_is_minded() -> None:
    segmenter = BUILD["segvit"](vit())
    segmenter.backbone.set_grad_checkpointing()
    assert all(block.checkpoints for block in segmenter.host.blocks)


@every
def test_half_precision(name: str) -> None:
    segmenter = BUILD[name](vit()).eval().bfloat16()
    with torch.no_grad():
        scores = segmenter(torch.randn(1, 3, 24, 24).bfloat16())
    assert scores.dtype == torch.bfloat16
    assert scores.isfinite().all()


@pytest.mark.slow
@every
def test_exported(name: str) -> None:
    segmenter, images = BUILD[name](vit()).eval(), torch.randn(2, 3, 24, 24)
    batch = torch.export.Dim("batch", min=1, max=8)
    with torch.no_grad():
        program = torch.export.export(segmenter, (images,), dynamic_shapes=({0: batch},), strict=False)
        for some in (images, images[:1], torch.randn(5, 3, 24, 24)):
            torch.testing.assert_close(program.module()(some), segmenter(some), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@every
def test_compiled_whole(name: str) -> None:
    segmenter, images = BUILD[name](vit()).eval(), torch.randn(2, 3, 24, 24)
    compiled = torch.compile(segmenter, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), segmenter(images), rtol=1e-4, atol=1e-5)

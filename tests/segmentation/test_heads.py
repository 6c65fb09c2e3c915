"""Each segmenter against the float64 reference, through published names; heads on some of the tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.reference import segmentation as slow
from tests.segmentation import published
from tokensieve import UnsupportedHost, segmentation
from tokensieve.segmentation.atm import AtmCascade, AtmHead

SIZE, PATCH, GRID, WIDTH, DEPTH, HEADS, CLASSES = (16, 24), 4, (4, 6), 16, 4, 2, 5
LEVELS = (1, 2, 3)
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def vit(**settings: Any) -> nn.Module:
    shape: dict[str, Any] = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH}
    return VisionTransformer(**{**shape, "num_heads": HEADS, "num_classes": 7, **settings}).double().eval()


def images(count: int = 2, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(count, 3, *size, dtype=torch.float64)


def backbone(**settings: Any) -> published.Shapes:
    return published.backbone(DEPTH, WIDTH, GRID[0] * GRID[1], PATCH, **settings)


def loaded(segmenter: Any, *shapes: published.Shapes) -> tuple[Any, dict[str, Tensor]]:
    """The segmenter with random weights, and the same weights under their published names."""
    weights = published.weights(*shapes)
    with pytest.warns(UserWarning, match="num_batches_tracked") if _counts(weights) else _nothing():
        segmenter = segmentation.load_mmseg(segmenter.double().eval(), weights)
    return segmenter, weights


def _counts(weights: dict[str, Tensor]) -> bool:
    return any("num_batches_tracked" in name for name in weights)


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def levels_of(weights: dict[str, Tensor], image: Tensor, levels: tuple[int, ...], **settings: Any) -> list[Tensor]:
    return slow.backbone(weights, image, levels, patch=PATCH, heads=HEADS, **settings)


def compare(segmenter: Any, one: Callable[[Tensor], Tensor]) -> None:
    """Scores of a batch, beside those of each image alone."""
    batch = images()
    with torch.no_grad():
        found = segmenter(batch)
    assert found.shape == (2, CLASSES, *SIZE)
    torch.testing.assert_close(found, torch.stack([one(image) for image in batch]), **CLOSE)


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("final_norm", [False, True])
def test_segvit(class_token: bool, final_norm: bool) -> None:
    words = {"class_token": class_token, "final_norm": final_norm}
    segmenter, weights = loaded(
        segmentation.segvit(vit(), CLASSES, LEVELS, width=12, heads=3, layers=2, **words),
        backbone(final_norm=final_norm),
        *(
            published.atm(head, WIDTH, CLASSES, 2, 12, 2, 1)
            for head in ("auxiliary_head.0", "auxiliary_head.1", "decode_head")
        ),
    )

    def heads(image: Tensor) -> list[tuple[Tensor, Tensor]]:
        levels = levels_of(weights, image, LEVELS, **words)
        names = ["auxiliary_head.0", "auxiliary_head.1", "decode_head"]
        return [slow.atm_head(weights, name, tokens, 3) for name, tokens in zip(names, levels, strict=True)]

    def one(image: Tensor) -> Tensor:
        patches = slow.probability(*heads(image)[-1])[:, int(class_token) :]
        return slow.resize(patches.reshape(CLASSES, *GRID), SIZE)

    compare(segmenter, one)
    (image,) = batch = images(1)
    with torch.no_grad():
        stages = segmenter.stages(batch)
    for found, (classes, masks) in zip(stages, heads(image), strict=True):
        torch.testing.assert_close(found.classes[0], classes, **CLOSE)
        expected = masks[:, int(class_token) :].reshape(CLASSES, *GRID)
        torch.testing.assert_close(found.masks[0], expected, **CLOSE)
        torch.testing.assert_close(found.probability[0], slow.probability(classes, expected), **CLOSE)


@pytest.mark.parametrize("form", ["v1", "v2"])
def test_the_cascades(form: str) -> None:
    build = segmentation.segvit_v1 if form == "v1" else segmentation.segvit_v2
    outputs = CLASSES + 1 if form == "v1" else 2
    segmenter, weights = loaded(
        build(vit(), CLASSES, LEVELS, heads=2, layers=2),
        backbone(),
        published.atm("decode_head", WIDTH, CLASSES, outputs, WIDTH // 2, 2, 3, mixes=form == "v1"),
    )

    def stages(image: Tensor) -> list[tuple[Tensor, Tensor]]:
        return slow.cascade(weights, levels_of(weights, image, LEVELS, class_token=False), 2, form == "v1")

    def one(image: Tensor) -> Tensor:
        classes, masks = stages(image)[-1]
        masks = slow.resize(masks.reshape(CLASSES, *GRID), SIZE)
        return slow.contracted(classes, masks) if form == "v1" else slow.probability(classes, masks)

    compare(segmenter, one)
    (image,) = batch = images(1)
    with torch.no_grad():
        found = segmenter.stages(batch)
    for prediction, (classes, masks) in zip(found, stages(image), strict=True):
        torch.testing.assert_close(prediction.classes[0], classes, **CLOSE)
        torch.testing.assert_close(prediction.masks[0], masks.reshape(CLASSES, *GRID), **CLOSE)


@pytest.mark.parametrize(
    ("form", "convs", "auxiliary"), [("naive", 1, 1), ("naive", 2, 2), ("pup", 4, 1), ("pup", 4, 2)]
)
def test_setr_with_upsampling(form: Any, convs: int, auxiliary: int) -> None:
    side, scale = (1, 4) if form == "naive" else (3, 2)
    words = {"convs": convs} if form == "naive" else {"auxiliary_convs": auxiliary}
    segmenter, weights = loaded(
        segmentation.setr(vit(), CLASSES, form, LEVELS, channels=6, final_norm=True, **words),
        backbone(final_norm=True),
        published.upsampling("decode_head", WIDTH, CLASSES, 6, convs, side),
        *(published.upsampling(f"auxiliary_head.{i}", WIDTH, CLASSES, 6, auxiliary, side) for i in (0, 1)),
    )

    def heads(image: Tensor) -> list[Tensor]:
        levels = levels_of(weights, image, LEVELS, class_token=True, final_norm=True)
        names = [("auxiliary_head.0", 4), ("auxiliary_head.1", 4), ("decode_head", scale)]
        return [
            slow.upsampling_head(weights, name, tokens[1:], GRID, times)
            for (name, times), tokens in zip(names, levels, strict=True)
        ]

    compare(segmenter, lambda image: slow.resize(heads(image)[-1], SIZE))
    (image,) = batch = images(1)
    with torch.no_grad():
        stages = segmenter.stages(batch)
    for found, expected in zip(stages, heads(image), strict=True):
        torch.testing.assert_close(found[0], expected, **CLOSE)


@pytest.mark.parametrize("class_token", [False, True])
def test_setr_mla(class_token: bool) -> None:
    levels = (0, 1, 2, 3)
    segmenter, weights = loaded(
        segmentation.setr(vit(), CLASSES, "mla", channels=6, class_token=class_token),
        backbone(),
        published.mla(WIDTH, CLASSES, 6, 4),
    )
    assert segmenter.levels == levels

    def heads(image: Tensor) -> tuple[Tensor, list[Tensor]]:
        patches = [each[int(class_token) :] for each in levels_of(weights, image, levels, class_token=class_token)]
        return slow.mla(weights, patches, GRID)

    compare(segmenter, lambda image: slow.resize(heads(image)[0], SIZE))
    (image,) = batch = images(1)
    with torch.no_grad():
        *auxiliary, last = segmenter.stages(batch)
    expected, expected_auxiliary = heads(image)
    torch.testing.assert_close(last[0], expected, **CLOSE)
    for found, each in zip(auxiliary, expected_auxiliary, strict=True):
        torch.testing.assert_close(found[0], each, **CLOSE)


@pytest.mark.parametrize("final_norm", [False, True])
def test_linear(final_norm: bool) -> None:
    """Its weights have no published layout: the reference takes them from the modules."""
    model = vit()
    segmenter = segmentation.linear(model, CLASSES, (1, -1), final_norm=final_norm).double().eval()
    norm, classifier = segmenter.decode_head.norm, segmenter.decode_head.classifier
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)

    def one(image: Tensor) -> Tensor:
        x = model._pos_embed(model.patch_embed(image[None]))
        kept = []
        for index, block in enumerate(model.blocks):
            x = block(x)
            if index in (1, 3):
                kept.append((model.norm(x) if final_norm else x)[0, 1:])
        tokens = torch.cat(kept, dim=1)
        tokens = (tokens - norm.running_mean) / torch.sqrt(norm.running_var + 1e-5) * norm.weight + norm.bias
        logits = tokens @ classifier.weight[:, :, 0, 0].T + classifier.bias
        return slow.resize(slow.on_grid(logits, GRID), SIZE)

    with torch.no_grad():
        compare(segmenter, one)


def test_an_atm_head_reads_any_tokens_and_no_padding() -> None:
    head = AtmHead(WIDTH, CLASSES, 12, 3, 2).double().eval()
    cascade = AtmCascade(WIDTH, CLASSES, 2, 12, 3, 2, 2, True).double().eval()
    few, more = torch.randn(1, 5, WIDTH).double(), torch.randn(1, 9, WIDTH).double()
    batch = torch.cat([torch.cat([few, torch.full((1, 4, WIDTH), 50.0).double()], dim=1), more])
    real = torch.ones(2, 9, dtype=torch.bool)
    real[0, 5:] = False
    with torch.no_grad():
        for answer in (head, lambda x, *words: cascade([x, x], *words)):
            together = answer(batch, real)
            for index, alone in enumerate((few, more)):
                expected = answer(alone)
                count = alone.shape[1]
                torch.testing.assert_close(together.classes[index], expected.classes[0], **CLOSE)
                torch.testing.assert_close(together.masks[index, :, :count], expected.masks[0], **CLOSE)
                probability = together.probability[index, :, :count]
                torch.testing.assert_close(probability, expected.probability[0], **CLOSE)
            assert not torch.allclose(answer(batch).classes[0], together.classes[0])


def test_naive_heads_judge_tokens_one_by_one() -> None:
    """With one convolution the upsampled logits are those of the patches, upsampled."""
    segmenter = segmentation.setr(vit(), CLASSES, "naive", LEVELS, channels=6).double().eval()
    head, x = segmenter.decode_head, torch.randn(2, 24, WIDTH).double()
    with torch.no_grad():
        patches = head.predict(x)
        torch.testing.assert_close(head.predict(x[:, 3:9]), patches[:, :, 3:9], **CLOSE)
        maps = head(x, GRID)
        expected = torch.stack([slow.larger(each.reshape(CLASSES, *GRID), 4) for each in patches])
        torch.testing.assert_close(maps, expected, **CLOSE)
        linear = segmentation.linear(vit(), CLASSES).double().eval().decode_head
        torch.testing.assert_close(linear.predict(x).unflatten(2, GRID), linear(x, GRID), **CLOSE)


def test_pup_heads_do_not() -> None:
    head = segmentation.setr(vit(), CLASSES, "pup", LEVELS, channels=6).decode_head
    with pytest.raises(UnsupportedHost, match='3x3 patches and cannot classify single tokens: use form="naive"'):
        head.predict(torch.randn(1, 4, WIDTH))


@pytest.mark.parametrize("name", ["segvit", "segvit_v1", "segvit_v2", "setr", "linear"])
def test_training_reaches_every_head_and_the_backbone(name: str) -> None:
    words: dict[str, Any] = {"levels": LEVELS} if name == "setr" else {}
    if name.startswith("segvit"):
        words = {"exits" if name == "segvit" else "levels": LEVELS, "width": 12, "heads": 3, "layers": 1}
    segmenter = getattr(segmentation, name)(vit(num_classes=0), CLASSES, **words).double().train()
    stages = segmenter.stages(images())
    assert len(stages) == (1 if name == "linear" else 3)
    outputs = [each if isinstance(each, Tensor) else each.probability for each in stages]
    sum(each.square().sum() for each in outputs).backward()
    still = [key for key, value in segmenter.named_parameters() if value.grad is None]
    # the final norm is no part of a segmenter, the class token of none that drops it
    assert {key for key in still if not key.startswith("backbone.norm.")} <= {"backbone.cls_token"}

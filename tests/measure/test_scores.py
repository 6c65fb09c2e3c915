import numpy as np
import pytest
import torch
from torch import nn

from tests.reference import comparison as reference
from tokensieve.errors import InputError
from tokensieve.measure import Accuracy, MapScore, score
from tokensieve.measure.scores import DepthErrors, PixelClasses, TopK

CLASSES, IGNORED = 5, 255


class Same(nn.Module):
    """Gives its input back: the 'images' are the outputs themselves."""

    def forward(self, images):
        return images


def class_maps(count=8, seed=0, size=(6, 7)):
    """Scores that are mostly right, and labels with ignored pixels and one class that never occurs."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES - 1, (count, *size), generator=generator)
    right = nn.functional.one_hot(labels, CLASSES).movedim(3, 1)
    scores = 2 * right + torch.randn(count, CLASSES, *size, generator=generator)
    scores[:, CLASSES - 1] = -9
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = IGNORED
    labels[:, 0, 0] = -1
    return scores, labels


def scored(scores, labels, ignore_index=IGNORED):
    counter = PixelClasses(ignore_index)
    for some, truth in zip(scores.split(3), labels.split(3), strict=True):
        counter.update(some, truth)
    return counter


def test_mean_iou_against_the_reference():
    scores, labels = class_maps()
    result = scored(scores, labels).result()
    miou, iou, right = reference.mean_iou(scores.argmax(1).numpy(), labels.numpy(), CLASSES, IGNORED)
    assert result.figures == pytest.approx({"miou": miou, "pixel_accuracy": right})
    assert result.iou[-1] is iou[-1] is None, "a class that never occurs is no part of the mean"
    assert result.iou[:-1] == pytest.approx(iou[:-1])
    assert result.count == 8
    for name, (low, high) in result.figure_intervals.items():
        assert 0 < low < result.figures[name] < high < 100


def test_mean_iou_is_that_of_torchmetrics():
    from torchmetrics.classification import MulticlassJaccardIndex

    scores, labels = class_maps()
    labels[labels < 0] = IGNORED
    theirs = MulticlassJaccardIndex(CLASSES, ignore_index=IGNORED)(scores, labels)
    assert scored(scores, labels).result().figures["miou"] == pytest.approx(100 * float(theirs), rel=1e-5)


def test_the_bootstrap_is_of_images():
    scores, labels = class_maps()
    told = scores.argmax(1).numpy()
    draws = np.random.default_rng(7).integers(8, size=(400, 8))
    drawn = [reference.mean_iou(told[rows], labels.numpy()[rows], CLASSES, IGNORED)[0] for rows in draws]
    ends = scored(scores, labels).result().figure_intervals["miou"]
    assert tuple(ends) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=1.0)


def test_changes_are_paired():
    scores, labels = class_maps()
    worse = scores.clone()
    worse[:, :, 0] = worse[:, :, 0].roll(1, 1)
    before, after = scored(scores, labels), scored(worse, labels)
    change = after.result().figures["miou"] - before.result().figures["miou"]
    ends = after.change_intervals(before)["miou"]
    assert ends.low < change < ends.high < 0
    assert tuple(before.change_intervals(before)["miou"]) == (0, 0)
    draws = np.random.default_rng(7).integers(8, size=(400, 8))
    told = [each.argmax(1).numpy() for each in (worse, scores)]
    drawn = [
        [reference.mean_iou(each[rows], labels.numpy()[rows], CLASSES, IGNORED)[0] for rows in draws] for each in told
    ]
    assert tuple(ends) == pytest.approx(np.percentile(np.subtract(*drawn), [2.5, 97.5]), abs=1.0)


def test_maps_are_resized_to_the_labels():
    scores, labels = class_maps(count=2)
    small = scores[:, :, ::2, ::2]
    resized = np.stack([reference.bilinear(each, *labels.shape[1:]) for each in small.numpy()])
    miou, _, _ = reference.mean_iou(resized.argmax(1), labels.numpy(), CLASSES, IGNORED)
    assert scored(small, labels).result().figures["miou"] == pytest.approx(miou)


def test_images_without_a_labelled_pixel_count_nowhere():
    scores, labels = class_maps()
    labels[3] = IGNORED
    assert scored(scores, labels).result().count == 7
    with pytest.raises(InputError, match="No pixel is labelled"):
        scored(scores, torch.full_like(labels, IGNORED)).result()


def test_another_ignored_label_and_none():
    scores, labels = class_maps()
    labels[labels == IGNORED] = 0
    for ignored in (0, None):
        miou, _, _ = reference.mean_iou(scores.argmax(1).numpy(), labels.numpy(), CLASSES, ignored)
        assert scored(scores, labels, ignored).result().figures["miou"] == pytest.approx(miou)


def test_depth_errors_against_the_reference():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(6, 4, 5, generator=generator) * 5 + 0.5
    depth = truth * (1 + 0.2 * torch.randn(truth.shape, generator=generator))
    depth[0, 0, 0] = -1.0
    truth[:, 1, :2], truth[:, 2, 0] = 0, torch.inf
    counter = DepthErrors()
    for some, labels in zip(depth.split(4), truth.split(4), strict=True):
        counter.update(some, labels)
    result = counter.result()
    each = [reference.depth_errors(a, b) for a, b in zip(depth.double().numpy(), truth.double().numpy(), strict=True)]
    means = dict(zip(("abs_rel", "rmse", "delta1"), np.mean(each, axis=0), strict=True))
    assert result.figures == pytest.approx(means, rel=1e-6)
    assert all(low < result.figures[name] < high for name, (low, high) in result.figure_intervals.items())
    with pytest.raises(InputError, match="No pixel is labelled"):
        DepthErrors().result()


def test_the_kind_of_output_decides():
    scores, labels = class_maps()
    assert isinstance(score(Same(), [(scores[:, :, 0, 0], torch.zeros(8, dtype=torch.int64))], k=1), Accuracy)
    segmented = score(Same(), [(scores[:5], labels[:5]), (scores[5:], labels[5:])])
    assert isinstance(segmented, MapScore)
    assert segmented == scored(scores, labels).result()
    depths = torch.rand(3, 1, 4, 4) + 1
    assert score(Same(), [(depths, depths)]).figures == pytest.approx({"abs_rel": 0, "rmse": 0, "delta1": 100})
    assert score(Same(), [(depths[:, 0], depths[:, 0])], kind="depth").figures["delta1"] == 100


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, "there are no labels"),
        (torch.zeros(8, dtype=torch.int64), r"there are labels of shape \(8,\)"),
        (torch.full((8, 6, 7), CLASSES), "Label 5 is beyond the 5 classes"),
        (torch.zeros(8, 6, 7), "whole numbers"),
    ],
)
def test_labels_that_do_not_fit(labels, words):
    with pytest.raises(InputError, match=words):
        PixelClasses().update(class_maps()[0], labels)


def test_classes_of_images_need_one_label_each():
    with pytest.raises(InputError, match=r"Labels of shape \(3, 4, 4\)"):
        TopK(1).update(torch.zeros(3, 5), torch.zeros(3, 4, 4, dtype=torch.int64))
    with pytest.raises(InputError, match="no images"):
        score(Same(), [])

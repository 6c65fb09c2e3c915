import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.reference import significance as reference
from tests.significance.conftest import Tiny
from tokensieve.errors import RecipeError
from tokensieve.significance import REDUCTIONS, cam
from tokensieve.significance.proposal import Proposal, module_proposal, named_proposal

GRADIENTS = ("grad-cam", "grad-cam++")


@pytest.fixture
def proposal():
    return module_proposal(Tiny(channels=6, classes=5).double(), "act")


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 20, dtype=torch.float64)


@pytest.fixture
def features(proposal, images):
    return proposal(images)


def _gradients(proposal, features, classes):
    """One image at a time, one backward each."""
    rows = []
    for row, label in zip(features, classes, strict=True):
        leaf = row[None].clone().requires_grad_()
        proposal.head(leaf)[0, label].backward()
        rows.append(leaf.grad[0])
    return rows


def _expected(name, proposal, features, images, classes):
    if name == "mean":
        return [row.mean(0) for row in features]
    if name == "eigen-cam":
        return [reference.eigen_cam(row) for row in features]
    if name == "cam":
        weights = next(layer for layer in proposal.head.modules() if isinstance(layer, nn.Linear)).weight
        return [reference.cam(row, weights[label]) for row, label in zip(features, classes, strict=True)]
    if name in GRADIENTS:
        function = reference.grad_cam if name == "grad-cam" else reference.grad_cam_pp
        return [function(*pair) for pair in zip(features, _gradients(proposal, features, classes), strict=True)]
    maps = []
    for image, row, label in zip(images, features, classes, strict=True):
        scores = []
        for channel in row:
            span = channel.max() - channel.min()
            mask = (channel - channel.min()) / span if span > 0 else torch.zeros_like(channel)
            mask = F.interpolate(mask[None, None], size=image.shape[1:], mode="bilinear", align_corners=False)[0]
            with torch.no_grad():
                scores.append(proposal.head(proposal.features((image * mask)[None]))[0, label])
        maps.append(reference.score_cam(row, torch.stack(scores)))
    return maps


@pytest.mark.parametrize("target", [None, 3, torch.tensor([4, 0, 2])])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_against_the_loops(name, target, proposal, features, images, monkeypatch):
    monkeypatch.setattr(cam, "SCORE_CAM_CHUNK", 4)  # six channels: a full chunk and a rest
    features[0, 2] = 0  # a channel without contrast
    if target is None:
        classes = proposal.head(features).argmax(1).tolist()
    else:
        classes = torch.as_tensor(target).expand(3).tolist()
    result = REDUCTIONS[name](features, proposal, images, target=target)
    expected = torch.stack(_expected(name, proposal, features, images, classes))
    torch.testing.assert_close(result.detach(), expected.detach(), rtol=1e-9, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_eigen_cam_either_way_round(channels, height, width, seed):
    """More places than channels or fewer: the small Gram matrix is another one."""
    features = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(seed)).double()
    result = REDUCTIONS["eigen-cam"](features)
    singular = torch.linalg.svdvals(features.flatten(2))[:, 0]
    torch.testing.assert_close(result.flatten(1).norm(dim=1), singular)
    assert (result.sum((1, 2)) >= -1e-9).all()
    expected = torch.stack([reference.eigen_cam(row) for row in features])
    sign = torch.where(expected.sum((1, 2), keepdim=True).abs() < 1e-9, (expected * result).sum((1, 2), True).sign(), 1)
    torch.testing.assert_close(result, sign * expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["resnet18", "mobileone_s0", "mobilenetv2_100"])
def test_after_global_pooling_grad_cam_is_cam_without_its_negative_part(name, images):
    proposal = named_proposal(name, pretrained=False)
    images = images.float().repeat(1, 1, 4, 4)
    features = proposal(images)
    places = features.shape[2] * features.shape[3]
    expected = REDUCTIONS["cam"](features, proposal, images, target=7).relu() / places
    result = REDUCTIONS["grad-cam"](features, proposal, images, target=7)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-6 * float(expected.max()))


def test_with_uniform_class_weights_cam_is_the_mean(proposal, features, images):
    classifier = next(layer for layer in proposal.head.modules() if isinstance(layer, nn.Linear))
    nn.init.constant_(classifier.weight, 1 / features.shape[1])
    result = REDUCTIONS["cam"](features, proposal, images)
    torch.testing.assert_close(result.detach(), REDUCTIONS["mean"](features))


def test_cam_of_a_convolutional_classifier():
    proposal = named_proposal("squeezenet1_1", pretrained=False)
    images = torch.randn(2, 3, 96, 96)
    features = proposal(images)
    weights = next(layer for layer in proposal.head.modules() if isinstance(layer, nn.Conv2d)).weight[:, :, 0, 0]
    expected = torch.einsum("bkhw,k->bhw", features, weights[3])
    torch.testing.assert_close(REDUCTIONS["cam"](features, proposal, images, target=3), expected)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_batch_around_an_image_does_not_matter(name, proposal, features, images):
    reduce = REDUCTIONS[name]
    alone = torch.cat([reduce(features[i : i + 1], proposal, images[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(reduce(features, proposal, images), alone)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_without_and_with_grad_mode(name, proposal, features, images):
    reduce, before = REDUCTIONS[name], features.clone()
    with torch.no_grad():
        quiet = reduce(features, proposal, images)
        assert not torch.is_grad_enabled()
    assert torch.equal(quiet, reduce(features, proposal, images))
    assert torch.equal(features, before)
    assert all(parameter.grad is None for parameter in proposal.parameters())
    with torch.inference_mode(), pytest.raises(RecipeError, match=r"use torch.no_grad\(\)"):
        reduce(features, proposal, images)


@pytest.mark.parametrize("name", cam.CLASS_BASED)
def test_without_a_classifier(name, features, images):
    proposal = module_proposal(nn.Identity())
    with pytest.raises(RecipeError, match="no known classifier"):
        REDUCTIONS[name](features, proposal, images)


def test_cam_is_not_defined_for_a_head_of_several_layers(images):
    proposal = named_proposal("mobilenetv3_small_100", pretrained=False)
    images = images.float().repeat(1, 1, 4, 4)
    with pytest.raises(RecipeError, match=r"more than one linear layer on 576 channels.*use grad-cam"):
        REDUCTIONS["cam"](proposal(images), proposal, images)
    assert REDUCTIONS["grad-cam"](proposal(images), proposal, images).shape == (3, 2, 3)


def test_half_precision_features_are_reduced_in_float32(images):
    proposal = named_proposal("test_resnet", pretrained=False, dtype=torch.bfloat16)
    features = proposal(images)
    for name in ("mean", "cam", "grad-cam", "grad-cam++", "eigen-cam"):
        assert REDUCTIONS[name](features, proposal, images).dtype == torch.float32


def test_score_cam_memory_is_bounded(images):
    """However many channels, no batch is larger than the chunk."""
    sizes = []

    def features(x):
        sizes.append(len(x))
        return F.avg_pool2d(x, 4).repeat(1, 30, 1, 1)

    proposal = Proposal(module_proposal(features).features, "wide", head=_Pool())
    REDUCTIONS["score-cam"](proposal(images), proposal, images)
    assert max(sizes[1:]) == cam.SCORE_CAM_CHUNK


class _Pool(nn.Module):
    def forward(self, features):
        return features.mean((2, 3))

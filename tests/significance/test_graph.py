import copy

import pytest
import timm
import torch
from timm.layers import Conv2dSame, StdConv2d
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn.modules.batchnorm import _BatchNorm

from tests.significance.conftest import shake
from tokensieve.errors import RecipeError
from tokensieve.significance.fold import ConvReLU, fold
from tokensieve.significance.graph import split
from tokensieve.significance.proposal import named_proposal
from tokensieve.zoo.slowonly import SlowOnlyFeatures
from tokensieve.zoo.x3d import X3DFeatures

NETWORKS = [
    ("mobileone_s0", 1024),
    ("mobileone_s4", 2048),
    ("resnet18", 512),
    ("mobilenetv2_100", 1280),
    ("efficientnet_b0", 1280),
    ("convnext_atto", 320),
    ("squeezenet1_1", 512),
    ("mobilenet_v3_small", 576),
]


def _close(a, b, tolerance=1e-4):
    assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize(("name", "channels"), NETWORKS)
@pytest.mark.versions
def test_made_ready_a_network_answers_as_before(shaken, images, name, channels):
    model = shaken(name)
    proposal = named_proposal(name)
    with torch.no_grad():
        logits = model(images)
        features = proposal(images)
        _close(proposal.logits(features), logits)
        if hasattr(model, "forward_features"):
            _close(features, model.forward_features(images))
        else:
            _close(features, model.features(images))
    assert proposal.channels == features.shape[1] == channels
    assert not any(isinstance(module, _BatchNorm) for module in proposal.modules())
    assert not any(parameter.requires_grad for parameter in proposal.parameters())


def test_same_padding_folds_too(shaken, images):
    args = {"pad_type": "same"}
    model = shaken("mobilenetv2_100", args=args)
    proposal = named_proposal("mobilenetv2_100", args=args)
    assert any(isinstance(module, Conv2dSame) for module in proposal.modules())
    assert not any(isinstance(module, _BatchNorm) for module in proposal.modules())
    with torch.no_grad():
        _close(proposal(images), model.forward_features(images))


@pytest.mark.parametrize("name", ["densenet121", "resnetv2_50"])
def test_a_batch_norm_before_its_convolution_stays_and_is_right(images, name):
    args = {"resnetv2_50": {"layers": (1, 1, 1, 1), "norm_layer": timm.layers.BatchNormAct2d}}
    model = shake(timm.create_model(name, **args.get(name, {})))
    parts = split(model, name, None, images[:1])
    with torch.no_grad():
        before = model(images)
        for part in (parts.features, parts.head):
            fold(part)
        _close(parts.head(parts.features(images)), before)


class Awkward(nn.Module):
    """Everything that must not be folded: a convolution of another kind, one read twice, one used twice, one BatchNorm
    for two."""

    def __init__(self):
        super().__init__()
        self.standardised, self.bn1 = StdConv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.read_twice, self.bn2 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.used_twice, self.bn3 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.a, self.b, self.shared = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.stacked, self.bn4, self.bn5 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(4, 7)

    def forward(self, x):
        x = self.relu(self.bn1(self.standardised(x)))
        y = self.read_twice(x)
        x = self.bn2(y) + y
        x = self.relu(self.bn3(self.used_twice(x)))
        x = self.used_twice(x)
        x = self.shared(self.a(x)) + self.shared(self.b(x))
        x = self.relu(self.bn5(self.bn4(self.stacked(x))))
        return self.fc(x.mean((2, 3)))


def test_what_cannot_be_folded_is_left_alone(images):
    model = shake(Awkward())
    before = copy.deepcopy(model.state_dict())
    parts = split(model, "awkward", "relu", images[:1])
    with torch.no_grad():
        expected = model(images)
        fold(parts.features)
        _close(parts.head(parts.features(images)), expected, 1e-5)
    kept = {name for name, module in parts.features.named_modules() if isinstance(module, _BatchNorm)}
    assert kept == {"bn1", "bn2", "bn3", "shared"}
    assert isinstance(parts.features.stacked, ConvReLU)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert type(model.stacked) is nn.Conv2d


@pytest.mark.parametrize("features", [X3DFeatures(1.0), SlowOnlyFeatures((1, 1, 1, 1))], ids=["X3D", "SlowOnly"])
def test_networks_that_read_video_fold_too(features):
    """By what folding claims, on clips: no BatchNorm is left, and the features are the same."""
    model = shake(features).eval()
    graph = torch.fx.symbolic_trace(copy.deepcopy(model))
    fold(graph)
    assert any(isinstance(module, _BatchNorm) for module in model.modules())
    assert not any(isinstance(module, _BatchNorm) for module in graph.modules())
    clips = torch.randn(1, 3, 4, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        _close(graph(clips), model(clips))


class CalledTwice(nn.Module):
    """One convolution before two BatchNorms."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn2(self.conv(self.bn1(self.conv(x))))


def test_a_convolution_before_two_batch_norms_is_where_torch_fuses_wrongly(images):
    """Why folding is not left to torch. Should this fail some day, it can be."""
    model = shake(CalledTwice()).eval()
    graph = torch.fx.symbolic_trace(copy.deepcopy(model))
    fold(graph)
    with torch.no_grad():
        expected = model(images)
        _close(graph(images), expected)
        assert (fuse(model)(images) - expected).abs().max() > 0.01 * expected.abs().max()


def test_a_batch_norm_beyond_the_cut_is_not_folded_into_the_features(images):
    model = shake(timm.create_model("resnet18"))
    parts = split(model, "resnet18", "conv1", images[:1])
    fold(parts.features)
    fold(parts.head)
    with torch.no_grad():
        features = parts.features(images)
        _close(features, model.conv1(images))
        untouched = features.clone()
        _close(parts.head(features), model(images))
    assert torch.equal(features, untouched)  # ResNet's ReLU works in place


def test_the_head_leaves_the_features_alone(tiny, images):
    parts = split(tiny, "tiny", "conv", images[:1])
    with torch.no_grad():
        features = parts.features(images)
        untouched = features.clone()
        torch.testing.assert_close(parts.head(features), tiny(images))
    assert torch.equal(features, untouched)
    assert tiny.act.inplace


def test_a_cut_inside_a_residual_has_no_head(images):
    model = shake(timm.create_model("resnet18"))
    parts = split(model, "resnet18", "layer3.0.bn1", images[:1])
    assert parts.head is None
    with torch.no_grad():
        assert parts.features(images).shape == (2, 256, 6, 6)


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("resnet18", -1, (512, 3, 3)),
        ("resnet18", -2, (256, 6, 6)),
        ("resnet18", 1, (64, 24, 24)),
        ("resnet18", "layer2.1", (128, 12, 12)),
        ("mobilenetv2_100", -1, (320, 3, 3)),
        ("squeezenet1_1", -1, (512, 5, 5)),
        ("squeezenet1_1", 5, (128, 11, 11)),
        ("squeezenet1_1", "classifier.1", (1000, 5, 5)),
        ("mobilenet_v3_small", "features.3", (24, 12, 12)),
    ],
)
def test_layers_by_number_and_by_name(images, name, layer, shape):
    assert named_proposal(name, layer=layer, pretrained=False)(images[:1]).shape[1:] == shape


@pytest.mark.parametrize(
    ("name", "layer", "says"),
    [
        ("resnet18", 9, "resnet18 has no stage 9; its stages are 0 act1, 1 layer1, 2 layer2, 3 layer3, 4 layer4"),
        ("resnet18", -6, "resnet18 has no stage -6"),
        ("resnet18", "layer5", "no layer 'layer5' that returns a feature map; the nearest are layer"),
        ("resnet18", "zzz", "no layer 'zzz' that returns a feature map; its stages are act1, layer1"),
        ("resnet18", "fc", r"output of fc of resnet18 has shape \(1, 1000\).*layers that do: act1, layer1"),
        ("squeezenet1_1", 13, "no stage 13; its stages are 0 features.0,"),
    ],
)
def test_a_layer_that_is_not_there(name, layer, says):
    with pytest.raises(RecipeError, match=says):
        named_proposal(name, layer=layer, pretrained=False)


def test_transformers_are_no_proposals():
    with pytest.raises(RecipeError, match=r"test_vit has shape \(1, 101, 64\), not that of a ConvNet's feature map"):
        named_proposal("test_vit", pretrained=False)


def test_channels_last_features_are_refused():
    with pytest.raises(RecipeError, match=r"has shape \(1, .*not that of a ConvNet's feature map \(B, K, h, w\)"):
        named_proposal("swin_tiny_patch4_window7_224", pretrained=False, args={"depths": (1, 1, 1, 1)})


class Branching(nn.Module):
    def forward(self, images):
        return images if images.sum() > 0 else -images


def test_a_network_that_cannot_be_traced(images):
    with pytest.raises(RecipeError, match=r"mine cannot be traced .*pass a module that maps images to features"):
        split(Branching(), "mine", None, images[:1])


class SideEffect(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, stride=2), nn.Linear(4, 5)

    def forward(self, images):
        x = self.conv(images).mean((2, 3))
        x.mul_(2)  # the graph does not say that this result is used
        return self.fc(x)


def test_a_cut_that_would_change_the_answer_is_refused(images):
    with pytest.raises(RecipeError, match="mine cannot be cut at conv: it changes tensors in place"):
        split(SideEffect().eval(), "mine", "conv", images[:1])

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from tests.significance.conftest import Tiny
from tokensieve.errors import RecipeError
from tokensieve.significance import proposal as proposals
from tokensieve.significance.proposal import module_proposal, named_proposal


@pytest.fixture
def named():
    return named_proposal("test_resnet", pretrained=False)


def _layers(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def test_it_stays_in_eval_mode_and_float32_whatever_happens_around_it(named):
    outer = nn.Sequential(nn.BatchNorm2d(3), named)
    before = {key: value.clone() for key, value in named.state_dict().items()}
    for change in (
        lambda: outer.train(),
        lambda: outer.to(torch.bfloat16),
        lambda: outer.half(),
        lambda: outer.double(),
    ):
        change()
        assert not any(module.training for module in named.modules())
        # Not even rounded and widened again.
        assert all(torch.equal(value, before[key]) for key, value in named.state_dict().items())
        assert all(value.dtype == torch.float32 for value in named.state_dict().values())
    assert outer[0].weight.dtype == torch.float64
    assert outer[0].training


def test_it_follows_the_device(named):
    nn.ModuleList([named]).to("meta", torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in named.parameters()} == {("meta", torch.float32)}


def test_weights_lie_channels_last(named, images):
    layouts = [layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in _layers(named.features)]
    assert layouts
    assert all(layouts)
    assert named(images).is_contiguous(memory_format=torch.channels_last)


def test_no_gradients_and_no_autocast(named, images):
    plain = named(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(named(images.requires_grad_()), plain)
    assert not plain.requires_grad


def test_precision_on_request(images):
    proposal = named_proposal("test_resnet", pretrained=False, dtype=torch.bfloat16)
    assert proposal(images).dtype == torch.bfloat16
    assert {parameter.dtype for parameter in proposal.parameters()} == {torch.bfloat16}


def test_a_half_precision_image_is_widened(named, images):
    assert torch.equal(named(images.bfloat16()), named(images.bfloat16().float()))


def test_large_batches_run_in_pieces_with_the_same_result(named, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(proposals, "IMAGES_PER_THREAD", 2)
    images, sizes = torch.randn(7, 3, 320, 320), []
    with torch.no_grad():
        whole = named.features(images)
    named.features.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    torch.testing.assert_close(named(images), whole, rtol=1e-5, atol=1e-6)
    assert sizes == [2, 2, 2, 1]  # 6 x 224 x 224 pixels are nearly 3 of these images


def test_copies_and_threads_agree(named, images):
    expected = named(images)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(named, [images] * 8))
    assert all(torch.equal(result, expected) for result in results)
    assert torch.equal(copy.deepcopy(named)(images), expected)


@pytest.mark.slow
def test_export_and_compile(named, images):
    expected = named(images)
    program = torch.export.export(named, (images,))
    torch.testing.assert_close(program.module()(images), expected)
    compiled = torch.compile(named, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), expected, rtol=1e-4, atol=1e-5)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, images):
        return self.norm(self.conv(images))


def test_a_module_is_used_as_it_is(images):
    module = Scaled().train()
    proposal = module_proposal(module)
    assert proposal.features is module
    assert not module.training
    assert isinstance(module.norm, nn.BatchNorm2d)
    assert proposal.mean is None
    assert proposal.name == "Scaled"
    assert torch.equal(proposal(images), module(images))
    assert module.conv.weight.requires_grad
    module.double()
    assert proposal(images).dtype == torch.float64


def test_a_bound_method_and_a_function(named, images):
    proposal = module_proposal(named.forward)
    assert torch.equal(proposal(images), named(images))
    assert proposal.features.owner is named
    assert torch.equal(module_proposal(lambda x: x[:, :2])(images), images[:, :2])


def test_a_module_is_cut_where_the_user_says(tiny, images):
    proposal = module_proposal(tiny, "act")
    assert {id(p) for p in proposal.parameters()} == {id(p) for p in tiny.parameters()}
    with torch.no_grad():
        torch.testing.assert_close(proposal.logits(proposal(images)), tiny(images))
    with pytest.raises(RecipeError, match=r"Tiny has no layer 'acts' .*nearest (is|are) act"):
        module_proposal(tiny, "acts")
    with pytest.raises(RecipeError, match="the proposal is a function: pass the module"):
        module_proposal(lambda x: x, "act")


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (Tiny(), r"Tiny returns logits of shape \(2, 5\).*pass its forward_features, its name, or layer="),
        (lambda x: x.flatten(2), r"returns a tensor of shape \(2, 3, 9216\), not features \(B, K, h, w\)"),
        (lambda x: (x, x), "returns tuple, not a tensor of features"),
    ],
)
def test_what_is_no_feature_map(images, module, says):
    with pytest.raises(RecipeError, match=says):
        module_proposal(module)(images)


def test_without_a_head_there_are_no_logits(images):
    proposal = module_proposal(lambda x: x)
    with pytest.raises(RecipeError, match="no known classifier"):
        proposal.logits(images)


def test_a_video_network_of_the_users():
    video = torch.randn(1, 3, 4, 8, 8)
    assert module_proposal(nn.Conv3d(3, 5, 3))(video).shape == (1, 5, 2, 6, 6)

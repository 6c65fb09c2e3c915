from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tokensieve.errors import InputError, RecipeError
from tokensieve.significance import REDUCTIONS, build, patch_significance
from tokensieve.significance.controls import centre_map, random_map

GRID = (6, 6)
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SMALL = {"proposal": "test_resnet", "proposal_args": {"pretrained_cfg_overlay": IMAGENET}, "pretrained": False}


class Seen(nn.Module):
    """Features that are the image as the proposal got it."""

    def forward(self, images):
        return images


@pytest.fixture
def net(shaken):
    return shaken("test_resnet")


def test_the_default_in_one_piece(net, images):
    result = build(**SMALL, **IMAGENET)(images, GRID)
    with torch.no_grad():
        expected = patch_significance(net.forward_features(images), GRID)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    assert result.shape == (2, 36)
    assert result.dtype == torch.float32


def test_native_renormalises_as_written_out(net, images):
    pixels = images * 0.5 + 0.5
    own = torch.stack([(pixels[:, c] - IMAGENET["mean"][c]) / IMAGENET["std"][c] for c in range(3)], 1)
    with torch.no_grad():
        expected = patch_significance(net.forward_features(own), GRID)
        shared = patch_significance(net.forward_features(images), GRID)
    torch.testing.assert_close(build(**SMALL, **HALF)(images, GRID), expected, rtol=1e-4, atol=1e-5)
    for words in (HALF, {}):
        result = build(**SMALL, **words, proposal_norm="shared")(images, GRID)
        torch.testing.assert_close(result, shared, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, shared, rtol=1e-2)


def test_equal_statistics_cost_nothing():
    assert build(**SMALL, **IMAGENET).source.scale is None
    assert build(**SMALL, **HALF).source.scale is not None


def test_native_needs_to_know_the_host():
    with pytest.raises(RecipeError, match=r"pass mean= and std= to sieve\(\)"):
        build(**SMALL)
    with pytest.raises(RecipeError, match="are invalid: expected 3 numbers"):
        build(**SMALL, mean=(0.5, 0.5), std=(1, 1, 1))
    with pytest.raises(RecipeError, match=r"test_resnet reads 3 channels, the host 2 \(mean=\)\. Give a network"):
        build(**SMALL, mean=(0.5, 0.5), std=(1, 1))
    with pytest.raises(RecipeError, match="are invalid: expected 3 numbers"):
        build(**SMALL, mean=(0.5, 0.5, 0.5), std=(1, 0, 1))


def test_a_module_sees_the_tensor_as_it_is(images):
    significance = build(proposal=Seen(), **HALF)
    assert torch.equal(significance(images, (96, 96)), images.mean(1).flatten(1))


@pytest.mark.parametrize("size", [48, (48, 48), [48, 48]])
def test_proposal_size(images, size):
    expected = F.interpolate(images, size=(48, 48), mode="bilinear", align_corners=True).mean(1).flatten(1)
    torch.testing.assert_close(build(proposal=Seen(), proposal_size=size)(images, (48, 48)), expected)
    assert torch.equal(build(proposal=Seen(), proposal_size=96)(images, (96, 96)), images.mean(1).flatten(1))


@pytest.mark.parametrize("align_corners", [True, False])
def test_align_corners(images, align_corners):
    result = build(proposal=Seen(), align_corners=align_corners)(images, GRID)
    assert torch.equal(result, patch_significance(images, GRID, align_corners=align_corners))


@pytest.mark.parametrize("name", REDUCTIONS)
def test_every_reduction_by_name(images, name):
    significance = build(**SMALL, **IMAGENET, significance=name)
    proposal = significance.proposal
    expected = REDUCTIONS[name](proposal(images), proposal, images)
    assert torch.equal(significance.maps(images), expected)
    result = significance(images, GRID)
    assert result.shape == (2, 36)
    assert not result.requires_grad
    assert significance.name == ("test_resnet" if name == "mean" else f"test_resnet {name}")


def test_random_and_centre_load_no_proposal(images):
    random = build(proposal="no such network", significance="random", seed=4)
    assert random.proposal is None
    assert torch.equal(random(images, GRID), random_map(images, GRID, 4).flatten(1))
    assert random.maps(images).shape == (2, 6, 6)
    centre = build(significance="centre")
    assert torch.equal(centre(images, (4, 8)), centre_map(images, (4, 8)).flatten(1))


@pytest.mark.parametrize("shape", [(36,), (1, 36), (2, 36), (6, 6), (2, 6, 6), (1, 6, 6), (3, 5), (2, 3, 5)], ids=str)
def test_a_tensor_is_the_map(images, shape):
    values = torch.randn(shape)
    result = build(significance=values)(images, GRID)
    if shape[-1] == 36:
        expected = values.view(-1, 36)
    else:
        maps = values.view(-1, 1, *shape[-2:])
        expected = F.interpolate(maps, size=GRID, mode="bicubic", align_corners=True).flatten(1)
    torch.testing.assert_close(result, expected.expand(2, -1))


@pytest.mark.parametrize("shape", [(35,), (3, 36), (5, 6, 6), (1, 2, 6, 6)], ids=str)
def test_a_tensor_that_does_not_fit(images, shape):
    with pytest.raises(InputError, match="does not fit 2 images on a grid of 6 x 6 patches"):
        build(significance=torch.zeros(shape))(images, GRID)


def test_a_tensor_for_video():
    video = torch.zeros(2, 3, 8, 32, 32)
    for shape in ((4, 2, 2), (2, 4, 2, 2), (16,), (2, 16)):
        assert build(significance=torch.ones(shape))(video, (4, 2, 2)).shape == (2, 16)
    assert build(significance="random")(video, (4, 2, 2)).shape == (2, 16)
    assert build(proposal=Seen())(video, (4, 2, 2)).shape == (2, 16)


def test_a_callable_or_module_makes_the_map(images):
    def contrast(images):
        return images.std(1)

    significance = build(significance=contrast)
    assert significance.name == "contrast"
    torch.testing.assert_close(significance(images, (96, 96)), images.std(1).flatten(1))
    assert build(significance=lambda x: x[:, 0, :6, :6].flatten(1))(images, GRID).shape == (2, 36)
    module = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Flatten(1, 2))
    significance = build(significance=module)
    nn.ModuleList([significance]).to(torch.float64)
    assert significance(images, GRID).dtype == torch.float32


@pytest.mark.parametrize(
    "function", [lambda x: x, lambda x: x.mean(), lambda x: x[:1, 0], lambda x: [x], lambda x: x[:, 0, 0]]
)
def test_a_callable_that_returns_something_else(images, function):
    with pytest.raises(InputError, match=r"significance (callable returned|map of <lambda> has shape)"):
        build(significance=function)(images, GRID)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"significance": "grad-camm"}, "significance='grad-camm' is unknown; the nearest are grad-cam"),
        ({"significance": 3}, "significance=3 is not a name, a tensor or a callable"),
        ({"proposal_norm": "own"}, "proposal_norm='own' is unknown"),
        ({"proposal": 3}, "proposal=3 is neither a name nor a module"),
        ({"proposal": "mobileone_s9"}, "knows a model 'mobileone_s9'; the nearest are mobileone_s"),
        ({"proposal_dtype": "int8"}, "proposal_dtype='int8' is unknown"),
        ({"proposal_dtype": "save"}, "proposal_dtype='save' is unknown"),
        ({"proposal": Seen(), "proposal_weights": "file"}, "proposal_weights= belongs to a proposal given by name"),
        ({"proposal": Seen(), "proposal_dtype": "bfloat16"}, "proposal_dtype= belongs to a proposal given by name"),
        ({"proposal": Seen(), "significance": "cam"}, "no known classifier, which cam needs"),
        ({"proposal": Seen(), "significance": "score-cam"}, "no known classifier, which score-cam needs"),
        ({"proposal": "mobilenetv3_small_050", "significance": "cam"}, "cam is not defined: use grad-cam"),
        ({"proposal": "test_resnet", "layer": 1, "significance": "cam"}, "cam is not defined.*or the last feature map"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(words, says):
    with pytest.raises(RecipeError, match=says):
        build(**words, **HALF, pretrained=False)


def test_images_that_a_named_proposal_cannot_read():
    significance = build(**SMALL, **HALF)
    for shape in ((2, 1, 96, 96), (2, 3, 4, 96, 96), (3, 96, 96)):
        with pytest.raises(InputError, match=r"proposal test_resnet reads \(B, 3, H, W\)"):
            significance(torch.zeros(shape), GRID)


def test_precision_of_the_proposal_and_of_the_host(shaken, images):
    shaken("test_resnet")  # the same weights for all that follow
    significance = build(**SMALL, **HALF)
    nn.ModuleList([significance]).to(torch.bfloat16)
    assert significance.source.scale.dtype == torch.float32
    half = significance(images.bfloat16(), GRID)
    torch.testing.assert_close(half, significance(images.bfloat16().float(), GRID))
    assert half.dtype == torch.float32
    for dtype in ("bfloat16", torch.bfloat16):
        coarse = build(**SMALL, **HALF, proposal_dtype=dtype)
        assert coarse.proposal.dtype == torch.bfloat16
        torch.testing.assert_close(coarse(images, GRID), significance(images, GRID), rtol=0.1, atol=0.1)


def test_threads_share_it():
    significance = build(**SMALL, **HALF, significance="grad-cam")
    batches = [torch.randn(2, 3, 64, 64) for _ in range(8)]
    expected = [significance(batch, GRID) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda batch: significance(batch, GRID), batches))
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mean", "cam", "eigen-cam", "random", "centre"])
def test_compiles_and_exports(images, name):
    significance = build(**SMALL, **HALF, significance=name)
    expected = significance(images, GRID)
    compiled = torch.compile(significance, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images, GRID), expected, rtol=1e-4, atol=1e-5)
    free_batch = ({0: torch.export.Dim.DYNAMIC}, (None, None))
    program = torch.export.export(
        significance, (torch.randn(3, 3, 96, 96), GRID), dynamic_shapes=free_batch, strict=False
    )
    torch.testing.assert_close(program.module()(images, GRID), expected, rtol=1e-4, atol=1e-5)

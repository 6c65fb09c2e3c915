import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import tokensieve
from tests.reference import significance as reference
from tokensieve.errors import InputError, RecipeError
from tokensieve.significance import patch_significance
from tokensieve.significance.map import resize_map

SIDES = st.integers(1, 6)


@st.composite
def feature_maps(draw, video=False):
    shape = [draw(st.integers(1, 3)), draw(st.integers(1, 5)), *(draw(SIDES) for _ in range(3 if video else 2))]
    return torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 999))))


def test_it_is_public():
    assert tokensieve.patch_significance is patch_significance


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("shape", "grid", "mode"),
    [
        ((2, 64, 7, 7), (14, 14), "bicubic"),
        ((1, 32, 13, 9), (24, 16), "bicubic"),
        ((2, 16, 8, 5, 5), (8, 14, 14), "trilinear"),
    ],
)
def test_the_long_way_gives_the_same(shape, grid, mode, align_corners):
    features = torch.rand(shape)
    channels = F.interpolate(features, size=grid, mode=mode, align_corners=align_corners)
    result = patch_significance(features, grid, align_corners=align_corners)
    torch.testing.assert_close(result, channels.mean(1).flatten(1), rtol=1e-5, atol=1e-5)
    assert result.shape == (shape[0], channels[0, 0].numel())


@settings(max_examples=20, deadline=None)
@given(feature_maps(), SIDES, SIDES, st.booleans())
def test_pictures_against_the_reference(features, height, width, align_corners):
    expected = reference.patch_significance(features, (height, width), align_corners)
    result = patch_significance(features.double(), (height, width), align_corners=align_corners)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=10, deadline=None)
@given(feature_maps(video=True), st.tuples(SIDES, SIDES, SIDES), st.booleans())
def test_video_against_the_reference(features, grid, align_corners):
    expected = reference.patch_significance(features, grid, align_corners)
    result = patch_significance(features.double(), grid, align_corners=align_corners)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


@given(feature_maps(), st.integers(0, 99))
def test_the_order_of_channels_does_not_matter(features, seed):
    order = torch.randperm(features.shape[1], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        patch_significance(features[:, order], (9, 9)), patch_significance(features, (9, 9)), rtol=1e-5, atol=1e-5
    )


@given(feature_maps(), st.floats(-5, 5), st.floats(0.1, 10))
def test_offset_and_gain_keep_the_order(features, offset, gain):
    features = features.double()
    torch.testing.assert_close(
        patch_significance(gain * features + offset, (7, 8)), gain * patch_significance(features, (7, 8)) + offset
    )


@given(feature_maps())
def test_the_same_size_is_not_interpolated(features):
    assert torch.equal(patch_significance(features, features.shape[2:]), features.mean(1).flatten(1))


@pytest.mark.parametrize(
    ("dtype", "result"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_precision(dtype, result):
    features = torch.rand(1, 500, 4, 4).to(dtype)
    significance = patch_significance(features, (8, 8))
    assert significance.dtype == result
    # The mean itself is taken in the wider type, not rounded to the narrow one first.
    expected = patch_significance(features.double(), (8, 8))
    torch.testing.assert_close(significance.double(), expected, rtol=1e-5, atol=1e-5)


def test_rows_come_first():
    features = torch.arange(6.0).view(1, 1, 2, 3)
    assert patch_significance(features, (2, 3)).tolist() == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("shape", [(2, 1000), (2, 49, 64), (1, 1, 1, 1, 1, 1)])
def test_features_of_another_rank(shape):
    with pytest.raises(InputError, match=r"Features have shape .*expected \(B, K, h, w\)"):
        patch_significance(torch.zeros(shape), (14, 14))


def test_a_grid_that_does_not_fit():
    with pytest.raises(RecipeError, match=r"a grid of 3 .*images need"):
        patch_significance(torch.zeros(1, 2, 7, 7), (8, 14, 14))
    with pytest.raises(RecipeError, match="no patches"):
        patch_significance(torch.zeros(1, 2, 7, 7), (0, 14))
    with pytest.raises(InputError, match="The map has shape"):
        resize_map(torch.zeros(3, 3), (14, 14))

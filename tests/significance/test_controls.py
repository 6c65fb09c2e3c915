import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokensieve.significance.controls import centre_map, random_map

pytestmark = pytest.mark.versions

GRID = (14, 14)


@pytest.fixture(scope="module")
def many():
    """Maps of 1500 small images: 294,000 numbers, in float64 and centred."""
    images = torch.randn(1500, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return images, random_map(images, GRID).flatten(1).double() - 0.5


def _correlation(a, b):
    """In standard deviations of what independent uniform numbers show."""
    return float((a * b).mean() * 12 * a.numel() ** 0.5)


def test_uniform(many):
    numbers = many[1] + 0.5
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, 100, 0, 1)
    chi_square = ((counts - counts.mean()).square() / counts.mean()).sum()
    assert abs(float(chi_square) - 99) < 5 * (2 * 99) ** 0.5


def test_all_24_bits_are_fair(many):
    whole = ((many[1] + 0.5) * 2**24).long()
    for bit in range(24):
        share = float((whole >> bit & 1).double().mean())
        assert abs(share - 0.5) * 2 * whole.numel() ** 0.5 < 5


def test_independent_between_patches_images_and_seeds(many):
    images, numbers = many
    assert abs(_correlation(numbers[:, 1:], numbers[:, :-1])) < 5
    assert abs(_correlation(numbers[:, 14:], numbers[:, :-14])) < 5
    assert abs(_correlation(numbers[1:], numbers[:-1])) < 5
    for seed in (1, -1, 2**40):
        other = random_map(images, GRID, seed).flatten(1).double() - 0.5
        assert abs(_correlation(numbers, other)) < 5


def test_kept_sets_overlap_as_chance_says(many):
    kept = torch.zeros_like(many[1], dtype=torch.bool).scatter_(1, many[1].topk(98).indices, True)
    overlap = (kept[1:] & kept[:-1]).sum(1).double()
    # Hypergeometric: 98 of 196 drawn twice share 49, with a variance of 98/2 * 98/2 / 195 = 12.3.
    assert abs(float(overlap.mean()) - 49) < 5 * 3.51 / 1499**0.5
    assert 11 < float(overlap.var()) < 14


@pytest.mark.parametrize("place", [(0, 0, 0), (2, 7, 7), (1, 3, 4)])
def test_one_pixel_changes_everything(many, place):
    images, numbers = many
    other = images.clone()
    other[:, *place] *= -1  # the sign bit alone
    assert abs(_correlation(numbers, random_map(other, GRID).flatten(1).double() - 0.5)) < 5


def test_images_alike_in_structure_get_maps_of_their_own():
    constant = torch.arange(500.0).view(-1, 1, 1, 1).expand(-1, 3, 16, 16)
    shifted = torch.stack([torch.eye(16).roll(step, 1).expand(3, -1, -1) for step in range(16)])
    for images in (constant, shifted, shifted.flip(0, 1)):
        assert len(random_map(images, (4, 4)).flatten(1).unique(dim=0)) == len(images)


@given(st.integers(-(10**30), 10**30))
def test_batch_place_and_layout_do_not_matter(seed):
    images = torch.randn(5, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    maps = random_map(images, (3, 5), seed)
    assert torch.equal(random_map(images.flip(0), (3, 5), seed), maps.flip(0))
    assert torch.equal(random_map(images[2:3], (3, 5), seed), maps[2:3])
    assert torch.equal(random_map(images.contiguous(memory_format=torch.channels_last), (3, 5), seed), maps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_every_kind_of_pixel(dtype):
    images = (torch.rand(3, 3, 8, 8) * 255).to(dtype)
    maps = random_map(images, GRID)
    assert maps.shape == (3, *GRID)
    assert maps.dtype == torch.float32
    assert len(maps.unique()) > 3 * 196 - 5


def test_no_product_overflows():
    """Compiled code may do anything on overflow: the largest number of bits there can be stays within int64."""
    assert 2**31 * 2**18 * 2**13 < 2**63
    assert (2**31 - 1) * 0x846CA68B < 2**63


def test_compiled_is_the_same():
    images = torch.randn(2, 3, 16, 16)
    compiled = torch.compile(random_map, fullgraph=True)
    assert torch.equal(compiled(images, GRID, 3), random_map(images, GRID, 3))


def test_centre():
    maps = centre_map(torch.zeros(2, 3, 32, 48), (2, 3))
    assert maps.tolist() == [[[-1.25, -0.25, -1.25]] * 2] * 2
    video = centre_map(torch.zeros(1, 3, 4, 8, 8), (2, 1, 3))
    assert video.tolist() == [[[[-1.0, 0.0, -1.0]]] * 2]

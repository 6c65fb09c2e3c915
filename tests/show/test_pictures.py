"""Drawing: what is kept stays as it is, what is dropped is dark, groups have one colour, whatever the grid."""

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from tokensieve.show.pictures import coloured, groups, heat, kept, photo, stack

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def noise(height, width):
    return Image.fromarray(np.random.default_rng(0).integers(60, 256, (height, width, 3), dtype=np.uint8))


def patch(image, row, column, grid, inset=4):
    """The pixels of a patch without its borders."""
    pixels = np.asarray(image, dtype=float)
    rows, columns = (
        [k for k in range(pixels.shape[axis]) if k * grid[axis] // pixels.shape[axis] == place]
        for axis, place in ((0, row), (1, column))
    )
    return pixels[rows[inset] : rows[-inset], columns[inset] : columns[-inset]]


class TestPhoto:
    def test_gives_back_the_pixels_that_were_normalised(self):
        pixels = torch.randint(0, 256, (3, 20, 30), generator=torch.Generator().manual_seed(0))
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        picture = photo((pixels / 255 - mean) / std, MEAN, STD, height=20)
        assert np.array_equal(np.asarray(picture), pixels.permute(1, 2, 0).numpy())

    @pytest.mark.parametrize(("size", "width"), [((112, 112), 336), ((448, 448), 336), ((160, 224), 470)])
    def test_has_one_height_and_its_own_aspect_ratio(self, size, width):
        assert photo(torch.zeros(3, *size), MEAN, STD).size == (width, 336)

    def test_takes_half_precision_and_values_out_of_range(self):
        picture = photo(torch.full((3, 8, 8), 100.0, dtype=torch.bfloat16), MEAN, STD, height=8)
        assert np.asarray(picture).min() == 255


class TestColoured:
    def test_gives_every_cell_its_colour_over_the_photograph_in_grey(self):
        cells = torch.tensor([[0, 1, 1], [2, 0, 0]])
        drawn = coloured(noise(60, 90), cells, [(255, 0, 0), (0, 0, 255), None])
        red, blue, bare = (patch(drawn, row, column, (2, 3)) for row, column in ((0, 0), (0, 1), (1, 0)))
        assert (red[..., 0] - red[..., 2] > 100).all()
        assert (blue[..., 2] - blue[..., 0] > 100).all()
        assert np.ptp(red[..., 1]) > 10, "the photograph shines through"
        assert np.array_equal(bare, patch(noise(60, 90), 1, 0, (2, 3))), "no colour leaves it as it is"

    def test_draws_a_dark_line_between_unlike_cells_alone(self):
        plain = Image.new("RGB", (40, 40), (200, 200, 200))
        one = np.asarray(coloured(plain, torch.zeros(2, 2, dtype=torch.long), [(255, 255, 255)]))
        assert np.ptp(one) == 0
        two = np.asarray(coloured(plain, torch.tensor([[0, 0], [1, 1]]), [(255, 255, 255)] * 2))
        assert (two[19:21] < 50).all()
        assert (two[:18] > 200).all()


class TestHeat:
    def test_colours_each_patch_by_its_own_value(self):
        drawn = heat(Image.new("RGB", (90, 60), (128, 128, 128)), torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 8.0]]))
        assert drawn.size == (90, 60)
        low, high = patch(drawn, 0, 0, (2, 3)), patch(drawn, 1, 2, (2, 3))
        assert np.ptp(low, axis=(0, 1)).max() == 0
        for pixels, value in ((low, 0.0), (high, 1.0), (patch(drawn, 1, 1, (2, 3)), 0.5)):
            difference = pixels[0, 0] - 255 * np.array(colormaps["viridis"](value)[:3])
            assert np.abs(difference - difference.mean()).max() < 60, "the hue is that of the map"
        assert low.mean() < high.mean()

    @pytest.mark.parametrize("value", [0.0, -3.0, 1e30])
    def test_draws_equal_values_in_the_middle_colour(self, value):
        grey = Image.new("RGB", (40, 40), (90, 90, 90))
        flat, slope = heat(grey, torch.full((2, 2), value)), heat(grey, torch.tensor([[0.0, 0.5], [0.5, 1.0]]))
        assert np.array_equal(patch(flat, 0, 0, (2, 2)), patch(slope, 0, 1, (2, 2)))

    def test_lets_the_photograph_show(self):
        pixels = np.zeros((40, 40, 3), dtype=np.uint8)
        pixels[:20] = 255
        drawn = np.asarray(heat(Image.fromarray(pixels), torch.ones(1, 1)), dtype=float)
        assert (drawn[5, 5] - drawn[35, 5]).min() > 40


class TestKept:
    @pytest.mark.parametrize(("size", "grid"), [((120, 120), (4, 4)), ((120, 180), (4, 6)), ((100, 70), (7, 5))])
    def test_kept_patches_are_the_photograph_and_dropped_ones_dark_and_grey(self, size, grid):
        picture = noise(*size)
        index = torch.tensor([0, grid[1] + 1, grid[0] * grid[1] - 1])
        drawn = kept(picture, index, grid)
        for place in range(grid[0] * grid[1]):
            row, column = divmod(place, grid[1])
            pixels, before = patch(drawn, row, column, grid), patch(picture, row, column, grid)
            if place in index.tolist():
                assert np.array_equal(pixels, before)
            else:
                assert np.ptp(pixels, axis=2).max() == 0
                assert pixels.max() < 110
                assert pixels.std() > 0, "still recognisable"

    def test_a_light_line_runs_along_the_border_alone(self):
        picture = Image.new("RGB", (160, 80), (100, 120, 140))
        drawn = np.asarray(kept(picture, torch.tensor([0]), (1, 2)))
        assert (drawn[:, 79] == 255).all()
        assert (drawn[:, 80] < 60).all()
        assert not (drawn[:, :70] == 255).any(), "no frame around the picture"

    def test_the_order_of_the_index_does_not_matter(self):
        picture = noise(60, 60)
        one, other = (kept(picture, torch.tensor(index), (3, 3)) for index in ([1, 5, 8], [8, 1, 5]))
        assert np.array_equal(np.asarray(one), np.asarray(other))

    def test_lines_are_thin_where_patches_are_small(self):
        picture = Image.new("RGB", (320, 320), (90, 90, 90))
        light = [
            (np.asarray(kept(picture, torch.tensor([0]), (count, count))) == 255).all(-1).sum() * count
            for count in (2, 32)
        ]
        assert light[1] < 0.6 * light[0]


class TestGroups:
    grid = (2, 3)
    source = torch.tensor([1, 1, 2, -1, 3, 1])  # 0, 1 and 5 are merged, 3 is dropped, 2 and 4 are alone

    def test_merged_patches_share_their_mean_colour(self):
        picture = noise(60, 90)
        drawn = groups(picture, self.source, self.grid)
        members = [patch(picture, row, column, self.grid, inset=1) for row, column in ((0, 0), (0, 1), (1, 2))]
        mean = np.concatenate([pixels.reshape(-1, 3) for pixels in members]).mean(0)
        shown = [patch(drawn, row, column, self.grid) for row, column in ((0, 0), (0, 1), (1, 2))]
        assert np.ptp(np.concatenate(shown), axis=(0, 1)).max() == 0
        assert np.abs(shown[0][0, 0] - mean).max() < 4

    def test_patches_alone_stay_and_dropped_ones_are_dark(self):
        picture = noise(60, 90)
        drawn = groups(picture, self.source, self.grid)
        for place in ((0, 2), (1, 1)):
            assert np.array_equal(patch(drawn, *place, self.grid), patch(picture, *place, self.grid))
        assert patch(drawn, 1, 0, self.grid).max() < 110

    def test_borders_run_between_groups_and_not_between_patches_alone(self):
        picture = Image.new("RGB", (80, 20), (90, 90, 90))
        drawn = np.asarray(groups(picture, torch.tensor([1, 1, 2, 3]), (1, 4)))
        assert (drawn[:, 39:41] == 255).all(), "between a group and its neighbour"
        assert (drawn[:, 19:21] == 90).all(), "within a group"
        assert (drawn[:, 59:61] == 90).all(), "between two that are alone"

    def test_neighbouring_groups_of_one_colour_are_told_apart(self):
        drawn = np.asarray(groups(Image.new("RGB", (80, 20), (90, 90, 90)), torch.tensor([1, 1, 2, 2]), (1, 4)))
        assert (drawn[:, 39:41] == 255).all()


def test_stack_puts_one_below_the_other_with_a_gap_that_can_be_seen_through():
    whole = stack([Image.new("RGB", (10, 5), (255, 0, 0)), Image.new("RGB", (8, 7), (0, 0, 255))], gap=2)
    assert whole.size == (10, 14)
    assert whole.getpixel((0, 0)) == (255, 0, 0, 255)
    assert whole.getpixel((0, 7)) == (0, 0, 255, 255)
    assert whole.getpixel((0, 5))[3] == whole.getpixel((9, 9))[3] == 0

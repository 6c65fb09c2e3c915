"""Panels of segmenters: the classes of both maps, and the block behind which each patch left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.methods.test_dtop import images_of, middle, seeded, vit
from tokensieve import segmentation, sieve
from tokensieve.data import palette
from tokensieve.show.explain import class_names, explain
from tokensieve.show.segments import (
    class_colours,
    class_panel,
    exit_counts,
    exits_panel,
    hexadecimal,
    stage_colours,
)

NAMES = ["background", "road", "sky", "tree", "car"]
MEAN = STD = (0.5, 0.5, 0.5)
GREY = Image.new("RGB", (280, 200), (128, 128, 128))


@pytest.fixture(scope="module")
def dense():
    return seeded(segmentation.setr(vit(), len(NAMES), form="naive", levels=(1, 3, 5), channels=16))


@pytest.fixture(scope="module")
def trace(dense):
    """Of eight images, with a good part of the patches leaving at each of two exits."""
    with torch.no_grad():
        fast = sieve(dense, f"dtop(threshold={middle(dense, images_of())}, keep_per_class=1)")
        return fast.trace(images_of())


def test_each_patch_has_the_colour_of_the_block_behind_which_it_left(trace):
    colours = [np.array(colour, dtype=float) for colour in stage_colours(3)]
    blocks, left = [1, 3, 5], trace.left_behind
    assert all((left == block).any() for block in blocks), "or nothing is shown"
    for index in (0, 7):
        drawn = np.asarray(exits_panel(GREY, trace, index).image, dtype=float)
        middles = drawn[20::40, 20::40][:5, :7]  # 5 x 7 patches of 40 pixels
        nearest = np.stack([np.abs(middles - (0.62 * c + 0.38 * 128)).sum(-1) for c in colours]).argmin(0)
        assert np.array_equal(np.array(blocks)[nearest], left[index].numpy())


def test_the_legend_counts_what_the_picture_shows(trace):
    panel = exits_panel(GREY, trace, 2)
    counts = exit_counts(trace, 2)
    assert list(counts) == ["1", "3", "5"]
    assert sum(counts.values()) == 35
    assert [key.colour for key in panel.legend] == [hexadecimal(colour) for colour in stage_colours(3)]
    for key, (block, count) in zip(panel.legend, counts.items(), strict=True):
        assert f"block {block}" in key.meaning
        percents = float(key.meaning.split(": ")[1].removesuffix("\u00a0%"))
        assert percents == pytest.approx(100 * count / 35, abs=0.5)
    assert panel.legend[-1].meaning.startswith("stays to the last")
    assert counts == {str(block): int((trace.left_behind[2] == block).sum()) for block in (1, 3, 5)}


def test_patches_that_were_never_read_are_no_exits(dense):
    with torch.no_grad():
        both = sieve(dense, f"random(keep=0.6) + dtop(threshold={middle(dense, images_of())}, keep_per_class=1)")
        trace = both.trace(images_of())
    panel, counts = exits_panel(GREY, trace, 0), exit_counts(trace, 0)
    assert sum(counts.values()) == trace.kept.shape[1] == 21
    assert panel.legend[-1].meaning == "dropped before block 0: 40\u00a0%"


def test_classes_are_listed_by_how_much_they_cover():
    classes = torch.tensor([[1, 1, 3], [0, 1, 1]])
    panel = class_panel(GREY, classes, 5, NAMES, "Classes", "a note")
    assert [key.meaning.partition("\u00a0")[0] for key in panel.legend] == ["road 67", "background 17", "tree 17"]
    colours = class_colours(5, NAMES)
    assert [key.colour for key in panel.legend] == [hexadecimal(colours[index]) for index in (1, 0, 3)]
    assert (panel.caption, panel.note) == ("Classes", "a note")
    assert "road 67" in panel.alt


def test_many_classes_are_cut_short():
    panel = class_panel(GREY, torch.arange(12).view(3, 4), 150, None, "Classes")
    assert len(panel.legend) == 8
    assert panel.legend[0].meaning.startswith("class ")
    assert panel.legend[-1].meaning == "and 5 classes more"


@pytest.mark.parametrize("count", [1, 2, 11, 18, 19, 20, 150])
def test_every_class_has_a_colour_of_its_own(count):
    colours = class_colours(count)
    assert len(colours) == len(set(colours)) == count
    named = class_colours(count, ["background", *map(str, range(1, count))])
    assert len(named) == len(set(named)) == count
    assert named[0] == (120, 120, 120)
    if count > 19:
        assert colours == palette(count)


def test_a_segmenter_is_explained_by_both_maps_and_its_exits(dense, trace):
    images = images_of()
    fast = sieve(dense, f"dtop(threshold={middle(dense, images)}, keep_per_class=1)")
    explained = explain(fast, dense, images, MEAN, STD, NAMES)
    one = explained[3]
    assert [panel.caption for panel in one.panels] == ["Input", "Classes, dense", "Classes, sieved", "Exits"]
    assert one.left_behind == exit_counts(trace, 3)
    assert one.record()["left_behind"] == one.left_behind
    lengths = [int(length[3]) for length in trace.lengths]
    assert list(one.tokens_per_block) == lengths, "its own, not the longest of the batch"
    with torch.no_grad():
        same = (dense(images)[3].argmax(0) == fast(images)[3].argmax(0)).double().mean()
    assert one.agreement == pytest.approx(100 * float(same))
    assert len({each.tokens_per_block for each in explained}) > 1


def test_a_segmenter_names_its_classes(dense):
    assert class_names(dense) is None
    dense.class_names = tuple(NAMES)
    assert class_names(dense) == NAMES
    dense.class_names = ()

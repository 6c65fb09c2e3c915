"""Rankings beside each other: what the panels show, what the tables say, what a map costs."""

import json

import pytest
import timm
import torch

from tokensieve import Recipe
from tokensieve.errors import InputError
from tokensieve.measure import macs
from tokensieve.show.compare import (
    Cost,
    compare_plot,
    compare_section,
    compare_table,
    grid_section,
    grid_table,
    map_costs,
)
from tokensieve.show.variants import Variants, choose, open_variants, with_keeps

MEAN = STD = (0.5, 0.5, 0.5)
SIZE = (3, 160, 160)
RECIPE = Recipe.parse("papr(keep=0.3, proposal=test_resnet)")
COSTS = {name: Cost(2e6, 0.02, 0.004, 0.4) for name in ("papr", "cam", "random")} | {
    "dense": Cost(1e8, 1.0, 0.01, 1.0),
    "random": Cost(0.0, 0.0, 0.0001, 0.01),
}


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=4).eval()
    model.head.weight.data.mul_(100)
    return model


@pytest.fixture(scope="module")
def by_map(dense):
    return open_variants(dense, choose(RECIPE, maps=["papr", "cam", "random"]), MEAN, STD, pretrained=False)


@pytest.fixture(scope="module")
def cells(dense):
    recipes = choose(RECIPE, keeps=[0.8, 0.3, 1], proposals=["test_resnet", "test_efficientnet"])
    return with_keeps(open_variants(dense, recipes, MEAN, STD, pretrained=False), [0.8, 0.3, 1])


def captions(section):
    return [[panel and panel.caption for panel in row] for row in section.panels]


def test_a_grid_has_a_row_a_proposal_and_a_column_a_ratio(dense, cells):
    variants = Variants(cells, dense, list("abcd"))
    section, record = grid_section("a.png", torch.randn(SIZE), MEAN, STD, variants)
    ratios = ["keep 0.8", "keep 0.3", "keep 1"]
    assert captions(section) == [["Input", "test_resnet", *ratios], [None, "test_efficientnet", *ratios]]
    assert [cell["kept"] for cell in record["cells"]] == [80, 30, 100] * 2
    for row, owner in zip(section.panels, ("test_resnet", "test_efficientnet"), strict=True):
        entries = [cell for cell in record["cells"] if cell["proposal"] == owner]
        for panel, cell in zip(row[2:], entries, strict=True):
            assert panel.alert == (not cell["same"])
            assert panel.note.startswith("now " if panel.alert else cell["dense"]["name"])
    assert record["cells"][2]["same"], "all patches are kept"
    assert json.dumps(record)


def test_the_grids_maps_differ_by_proposal_and_not_by_ratio(dense, cells):
    section, _ = grid_section("a.png", torch.randn(SIZE), MEAN, STD, Variants(cells, dense, None))
    first, second = (row[1].image.tobytes() for row in section.panels)
    assert first != second
    kept = [row[2].image.tobytes() for row in section.panels]
    assert kept[0] != kept[1]


def test_a_grid_at_1_alone_has_no_map(dense):
    fasts = open_variants(dense, choose(RECIPE, keeps=[1]), MEAN, STD, pretrained=False)
    variants = Variants(with_keeps(fasts, [1]), dense, None)
    section, _ = grid_section("a.png", torch.randn(SIZE), MEAN, STD, variants)
    assert captions(section) == [["Input", None, "keep 1"]]


def test_a_grid_of_a_host_without_a_classifier_shows_patches_alone():
    dense = timm.create_model("test_vit", num_classes=0).eval()
    fasts = open_variants(dense, choose(RECIPE, keeps=[0.3]), MEAN, STD, pretrained=False)
    variants = Variants(with_keeps(fasts, [0.3]), dense, None)
    section, record = grid_section("a.png", torch.randn(SIZE), MEAN, STD, variants)
    assert [panel.note for panel in section.panels[0]] == ["", "significance map", ""]
    assert record == {"cells": [{"proposal": "test_resnet", "keep": 0.3, "kept": 30}]}
    table, entries = grid_table(variants, SIZE)
    assert table.rows[0][1:3] == ("", "")
    assert entries[0]["answers_kept"] is None


def test_the_grids_table_is_over_all_pictures(dense, cells):
    variants = Variants(cells, dense, None)
    records = [grid_section("a", torch.randn(SIZE), MEAN, STD, variants)[1]["cells"] for _ in range(4)]
    table, entries = grid_table(variants, SIZE)
    assert len(table.rows) == len(entries) == 6
    for i, entry in enumerate(entries):
        assert entry["answers_kept"] == pytest.approx(sum(record[i]["same"] for record in records) / 4)
        assert entry["confidence"] == pytest.approx(sum(record[i]["confidence"] for record in records) / 4)
        assert entry["macs"] == macs(cells[entry["proposal"], entry["keep"]], SIZE)
        assert table.rows[i][-1] == f"{entry['ratio']:.2f}x"
    assert entries[2]["ratio"] == 1, "keep 1 costs what the host costs"


def test_comparing_has_a_column_a_map(dense, by_map):
    variants = Variants(by_map, dense, list("abcd"))
    section, record = compare_section("a.png", torch.randn(SIZE), MEAN, STD, variants, COSTS)
    assert captions(section) == [["Input", "papr, 4.00 ms", "cam, 4.00 ms", "random, 0.100 ms"]]
    start, *panels = section.panels[0]
    assert start.note == f"dense: {variants.verdicts['papr'][0].dense}"
    for panel, entry in zip(panels, record["maps"], strict=True):
        assert panel.image.height > 2 * start.image.height, "the map above the patches"
        share, answer = panel.note.split("\n")
        assert share.endswith(f"for {entry['dense']['name']}")
        assert (answer == "same prediction") == entry["same"] == (not panel.alert)
        assert entry["kept"] == 30
    assert len({panel.image.tobytes() for panel in panels}) == 3


def test_comparing_needs_a_classifier(by_map):
    dense = timm.create_model("test_vit", num_classes=0).eval()
    fasts = open_variants(dense, choose(RECIPE, maps=["papr"]), MEAN, STD, pretrained=False)
    with pytest.raises(InputError, match="needs a host with a classifier"):
        compare_section("a", torch.randn(SIZE), MEAN, STD, Variants(fasts, dense, None), COSTS)


def test_the_table_of_maps_begins_with_the_dense_host(dense, by_map):
    variants = Variants(by_map, dense, None)
    records = [compare_section("a", torch.randn(SIZE), MEAN, STD, variants, COSTS)[1]["maps"] for _ in range(3)]
    table, (first, *entries) = compare_table(variants, COSTS)
    assert first["map"] == "dense"
    assert first["confidence"] == pytest.approx(sum(record[0]["dense"]["probability"] for record in records) / 3)
    assert [entry["map"] for entry in entries] == ["papr", "cam", "random"]
    for i, entry in enumerate(entries):
        assert entry["confidence"] == pytest.approx(sum(record[i]["confidence"] for record in records) / 3)
    assert [row[3:] for row in table.rows] == [
        ("100\u00a0%", "10.0", "100\u00a0%"),
        ("2.0\u00a0%", "4.00", "40\u00a0%"),
        ("2.0\u00a0%", "4.00", "40\u00a0%"),
        ("none", "0.100", "1.0\u00a0%"),
    ]
    plot = compare_plot([first, *entries])
    assert plot.svg.lstrip().startswith("<?xml")
    assert "random" in plot.alt
    assert "<script" not in plot.svg


@pytest.mark.versions
def test_costs_are_of_the_map_alone(dense):
    maps = ["papr", "cam", "score-cam", "random", "centre"]
    fasts = open_variants(dense, choose(RECIPE, maps=maps), MEAN, STD, pretrained=False)
    image = torch.randn(SIZE)
    costs = map_costs(fasts, dense, image, seconds=0)
    assert list(costs) == ["dense", *maps]
    assert (costs["dense"].macs, costs["dense"].share_of_macs, costs["dense"].share_of_time) == (
        macs(dense, SIZE),
        1,
        1,
    )
    assert costs["random"].macs == costs["centre"].macs == 0
    proposal = macs(fasts["papr"].significance.proposal, SIZE)
    assert costs["papr"].macs == proposal
    assert proposal < costs["cam"].macs < 1.2 * proposal, "the classifier on top"
    channels = fasts["papr"].significance.proposal.channels
    assert costs["score-cam"].macs > channels * proposal, "a forward for each channel"
    assert costs["score-cam"].seconds > 2 * costs["centre"].seconds > 0
    assert all(cost.share_of_macs == cost.macs / costs["dense"].macs for cost in costs.values())


def test_costs_leave_the_training_mode(dense, by_map):
    dense.train()
    map_costs(by_map, dense, torch.randn(SIZE), seconds=0)
    assert dense.training
    dense.eval()

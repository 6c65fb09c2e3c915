"""The sheet: everything of the report inside its borders, panels in columns."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from tokensieve.show.page import Fact, Key, Panel, Report, Section, Table
from tokensieve.show.sheet import MARGIN, sheet

COLOURS = ["#ff0000", "#00ff00", "#0000ff", "#ff00ff"]


def panel(colour, caption="caption", size=(200, 120), **words):
    return Panel(Image.new("RGB", size, colour), caption, **words)


def box(image, colour):
    """Left, top, right and bottom of all pixels of a colour; None where there are none."""
    rgb = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    rows, columns = np.nonzero((np.asarray(image) == rgb).all(-1))
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None


def ink(image):
    """Whether a row or column has anything on it."""
    dark = (np.asarray(image) < 250).any(-1)
    return dark.any(1), dark.any(0)


def test_panels_stand_beside_each_other_uncovered():
    drawn = sheet(Report("title", sections=(Section("one", panels=(tuple(map(panel, COLOURS)),)),)))
    boxes = [box(drawn, colour) for colour in COLOURS]
    assert [(right - left, bottom - top) for left, top, right, bottom in boxes] == [(200, 120)] * 4
    assert len({top for _, top, _, _ in boxes}) == 1
    assert all(a[2] < b[0] for a, b in pairwise(boxes))
    assert drawn.width == boxes[-1][2] + MARGIN


def test_columns_stay_aligned_over_rows_and_empty_cells_stay_empty():
    rows = (
        (panel(COLOURS[0], size=(100, 50)), panel(COLOURS[1], size=(300, 50))),
        (None, panel(COLOURS[2], size=(160, 50))),
    )
    drawn = sheet(Report("title", sections=(Section("one", panels=rows),)))
    first, second, third = (box(drawn, colour) for colour in COLOURS[:3])
    assert second[0] == third[0] > first[2]
    assert third[1] > second[3]
    assert box(drawn.crop((0, third[1], third[0], third[3])), COLOURS[0]) is None


def test_a_legend_stands_below_its_panel():
    keys = tuple(Key(colour, f"colour {colour}") for colour in COLOURS[1:])
    with_keys = sheet(Report("t", sections=(Section("one", panels=((panel(COLOURS[0], legend=keys),),)),)))
    boxes = [box(with_keys, colour) for colour in COLOURS]
    assert all(a[3] < b[1] for a, b in pairwise(boxes)), "one below the other"
    assert {left for left, *_ in boxes} == {MARGIN, MARGIN + 1}, "a swatch has an outline"
    bare = sheet(Report("t", sections=(Section("one", panels=((panel(COLOURS[0]),),)),)))
    assert with_keys.height > bare.height + 3 * 14


@pytest.mark.parametrize("text", ["many words " * 60, "a_name_without_any_space_" * 20, "é" * 300, "two\nlines"])
def test_long_text_is_broken_inside_the_borders(text):
    facts = (Fact("3 of 4", "answers"), Fact(text, "label"))
    section = Section(text, text, facts, ((panel("#ff0000", text, note=text),),))
    drawn = sheet(Report(text, text, facts, (section,), (text,)))
    rows, columns = ink(drawn)
    assert not columns[: MARGIN - 1].any()
    assert not columns[-MARGIN + 2 :].any()
    assert not rows[-MARGIN // 2 :].any()


def test_nothing_is_drawn_over_anything_else():
    """A panel's caption of many lines pushes down what follows."""
    first = Section("one", panels=((panel("#ff0000", "words " * 80),),))
    second = Section("two", panels=((panel("#00ff00"),),))
    short = sheet(Report("title", sections=(Section("one", panels=((panel("#ff0000"),),)), second)))
    long = sheet(Report("title", sections=(first, second)))
    assert box(long, "#00ff00")[1] > box(short, "#00ff00")[1] + 200
    assert box(long, "#ff0000") == box(short, "#ff0000")


def test_tables_facts_and_notes_are_drawn():
    bare = sheet(Report("title")).height
    table = Table(("map", "kept"), (("cam", "50 %"), ("random", "20 %")), "caption")
    heights = [
        sheet(Report("title", facts=(Fact("2x", "fewer"),))).height,
        sheet(Report("title", notes=("a note",))).height,
        sheet(Report("title", sections=(Section("s"),))).height,
        sheet(Report("title", sections=(Section("s", table=table),))).height,
    ]
    assert min(heights) > bare + 20
    assert heights[3] > heights[2] + 3 * 20, "a line for the head and each row"


def test_alerts_have_a_colour_of_their_own():
    plain, alert = (
        sheet(Report("t", sections=(Section("s", panels=((panel("#00ff00", note="now another", alert=on),),)),)))
        for on in (False, True)
    )
    assert box(plain, "#a84300") is None
    assert box(alert, "#a84300") is not None


def test_transparent_gaps_show_the_paper():
    picture = Image.new("RGBA", (200, 100))
    picture.paste((255, 0, 0), (0, 0, 200, 40))
    drawn = sheet(Report("t", sections=(Section("s", panels=((Panel(picture, "c"),),)),)))
    left, top, right, bottom = box(drawn, "#ff0000")
    assert bottom - top == 40
    assert (np.asarray(drawn.crop((left, bottom, right, bottom + 60))) == 255).all()


def test_names_that_are_no_text_are_drawn():
    sheet(Report("\udce9.png", facts=(Fact("\udce9", "\udce9"),)))

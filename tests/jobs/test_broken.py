"""Twelve kinds of broken or odd pictures, and a decompression bomb: each has a row or an error, none is lost."""

from __future__ import annotations

import numpy as np

from tests.broken_pictures import broken_folder
from tests.jobs.conftest import errors, table
from tests.oddities import photo
from tokensieve.data import read_image
from tokensieve.jobs import run


def test_each_has_a_row_or_an_error(tiny, tmp_path):
    expected = broken_folder(tmp_path / "broken")
    result = run(tiny("", size=224), tmp_path / "broken", tmp_path / "out", workers=0, batch=4)
    failed = errors(tmp_path / "out")
    assert {row["id"] for row in table(tmp_path / "out")} == {name for name, told in expected.items() if told is None}
    assert set(failed) == {name for name, told in expected.items() if told is not None}
    for name, error in failed.items():
        assert expected[name] in error
    assert result.skipped == 1, "the folder that is called x.png, in which nothing is"
    assert result.items == len(expected) == result.rows + result.errors


def test_what_is_read_is_what_one_sees(tmp_path):
    broken_folder(tmp_path / "broken")
    assert read_image(tmp_path / "broken" / "turned.jpg").size == photo().size[::-1], "upright"
    first = np.asarray(read_image(tmp_path / "broken" / "moving.gif")).astype(int)
    assert abs(first - np.asarray(photo(seed=1))).mean() < abs(first - np.asarray(photo(seed=2))).mean()
    grey = np.asarray(read_image(tmp_path / "broken" / "deep.png"))
    assert (grey.min(), grey.max()) == (0, 255), "16 bits are not clipped"

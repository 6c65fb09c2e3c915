"""Twelve kinds of broken or odd pictures, and a decompression bomb: each has a row or an error, none is lost."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tests.jobs.conftest import errors, table
from tests.oddities import ODDITIES, photo
from tokensieve.data import read_image
from tokensieve.jobs import run


def truncated() -> bytes:
    data = BytesIO()
    photo((200, 160)).save(data, "JPEG")
    return data.getvalue()[:2000]


def deep() -> Image.Image:
    return Image.fromarray(np.linspace(0, 65535, 400, dtype=np.uint16).reshape(20, 20))


def palette() -> Image.Image:
    picture = photo().convert("P")
    picture.info["transparency"] = 3
    return picture


def turned() -> bytes:
    exif, data = Image.Exif(), BytesIO()
    exif[0x0112] = 6
    photo().save(data, "JPEG", exif=exif)
    return data.getvalue()


def moving() -> bytes:
    data = BytesIO()
    photo(seed=1).save(data, "GIF", save_all=True, append_images=[photo(seed=2)])
    return data.getvalue()


READ = {
    "pixel.png": lambda: photo((1, 1)),
    "cmyk.jpg": lambda: photo().convert("CMYK"),
    "deep.png": deep,
    "palette.png": palette,
    "moving.gif": moving,
    "turned.jpg": turned,
    "good.png": photo,
}
FAIL = {
    "truncated.jpg": (truncated, "cannot be decoded"),
    "empty.jpg": (lambda: b"", "is not a picture"),
    "text.jpg": (lambda: b"text", "is not a picture"),
    "strip.png": (lambda: photo((20000, 10)), "too narrow to be resized and cropped: 20000 x 10"),
}


@pytest.fixture
def broken(tmp_path):
    """All of them in one folder."""
    root = tmp_path / "broken"
    root.mkdir()
    for name, make in {**READ, **{name: each[0] for name, each in FAIL.items()}}.items():
        content = make()
        if isinstance(content, bytes):
            (root / name).write_bytes(content)
        else:
            content.save(root / name)
    (root / "x.png").mkdir()
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    ODDITIES["a decompression bomb"].add(root)
    return root


def test_each_has_a_row_or_an_error(tiny, broken, tmp_path):
    result = run(tiny("", size=224), broken, tmp_path / "out", workers=0, batch=4)
    reasons = {name: told for name, (_, told) in FAIL.items()}
    reasons |= {"gone.png": "does not exist", "d/bomb.png": "decompression bomb"}
    failed = errors(tmp_path / "out")
    assert {row["id"] for row in table(tmp_path / "out")} == set(READ)
    assert set(failed) == set(reasons)
    for name, told in reasons.items():
        assert told in failed[name]
    assert result.skipped == 1, "the folder that is called x.png, in which nothing is"
    assert result.items == len(READ) + len(reasons) == result.rows + result.errors


def test_what_is_read_is_what_one_sees(broken):
    assert read_image(broken / "turned.jpg").size == photo().size[::-1], "upright"
    first = np.asarray(read_image(broken / "moving.gif")).astype(int)
    assert abs(first - np.asarray(photo(seed=1))).mean() < abs(first - np.asarray(photo(seed=2))).mean()
    grey = np.asarray(read_image(broken / "deep.png"))
    assert (grey.min(), grey.max()) == (0, 255), "16 bits are not clipped"

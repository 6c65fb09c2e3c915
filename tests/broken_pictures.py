"""Twelve kinds of broken or odd pictures, and a decompression bomb, with what a job must make of each.

Used by the tests of jobs and by benchmarks/jobs.py.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from tests.oddities import ODDITIES, photo


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
}
FAIL = {
    "truncated.jpg": (truncated, "cannot be decoded"),
    "empty.jpg": (lambda: b"", "is not a picture"),
    "text.jpg": (lambda: b"text", "is not a picture"),
    "strip.png": (lambda: photo((20000, 10)), "too narrow to be resized and cropped: 20000 x 10"),
}
GONE = {"gone.png": "does not exist", "bomb.png": "decompression bomb"}
"""A link to nothing, and a picture of 30000 x 30000 pixels in a hundred bytes."""
SKIPPED = "x.png"
"""A folder of this name, in which nothing is: no item."""


def broken_folder(root: Path) -> dict[str, str | None]:
    """All of them in one folder; gives id -> why it has no row, a part of it, or None where it must have one."""
    root.mkdir()
    for name, make in {**READ, **{name: each[0] for name, each in FAIL.items()}}.items():
        content = make()
        if isinstance(content, bytes):
            (root / name).write_bytes(content)
        else:
            content.save(root / name)
    (root / SKIPPED).mkdir()
    (root / "gone.png").symlink_to(root / "nowhere")
    ODDITIES["a decompression bomb"].add(root)
    (root / "d" / "bomb.png").rename(root / "bomb.png")
    (root / "d").rmdir()
    expected: dict[str, str | None] = dict.fromkeys(READ)
    return expected | {name: told for name, (_, told) in FAIL.items()} | GONE

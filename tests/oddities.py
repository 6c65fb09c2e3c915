"""What turns up in folders of pictures: each oddity beside two good class folders, and what must become of it.

Used by the tests of folders and tars, of commands, and by benchmarks/odd_folder.py.
"""

from __future__ import annotations

import os
import struct
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, features

AVIF = "avif" in features.modules and bool(features.check("avif"))
BASE = {"a": 2, "d": 2}
"""Good pictures in each class folder of the base."""


def photo(size: tuple[int, int] = (24, 20), seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def place(path: Path, content: Image.Image | bytes | None = None, kind: str | None = None) -> Path:
    """Write a picture, or bytes, into a folder that is made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        data = BytesIO()  # the format is named where the ending does not say it
        (content or photo()).save(data, kind or Image.registered_extensions()[path.suffix.lower()])
        path.write_bytes(data.getvalue())
    return path


def base(root: Path) -> Path:
    for name, count in BASE.items():
        for i in range(count):
            place(root / name / f"{i}.png", photo(seed=i))
    return root


def packed(root: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        tar.add(root, root.name)
    return path


@dataclass(frozen=True)
class Oddity:
    """What is added to the base, and what must come of it."""

    add: Callable[[Path], object]
    read: int = 0
    failed: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    """Further class folders."""


def _hidden_folders(root: Path) -> None:
    for name in (".git", ".thumbnails", "__MACOSX", "@eaDir", "d/.ipynb_checkpoints"):
        place(root / name / "inside" / "0.png")


def _hidden_files(root: Path) -> None:
    place(root / "a" / "._0.png", b"\x00\x05\x16\x07")
    place(root / ".DS_Store", b"\x00")
    place(root / "d" / ".hidden.png")


def _formats(root: Path) -> None:
    for ending in (
        "jpg",
        "JPEG",
        "jfif",
        "PNG",
        "gif",
        "jp2",
        "webp",
        "bmp",
        "tif",
        "ppm",
        *(["avif"] if AVIF else []),
    ):
        place(root / "formats" / f"picture.{ending}")


def _other_formats(root: Path) -> None:
    for name in ("notes.txt", "labels.TXT", "clip.mp4", "photo.heic", "LICENSE", "a.png.part"):
        place(root / "a" / name, b"text")


def _links_to_what_is_read(root: Path) -> None:
    (root / "d" / "again.png").symlink_to("../a/0.png")
    (root / "0_again").symlink_to("a")


def _links_in_circles(root: Path) -> None:
    (root / "d" / "up").symlink_to("..")
    (root / "a" / "here").symlink_to(".")


def _links_to_nothing(root: Path) -> None:
    (root / "a" / "gone.png").symlink_to("nowhere.png")
    (root / "a" / "gone").symlink_to("nowhere")


def _twice(root: Path) -> None:
    place(root / "x" / "img" / "0.png")
    place(root / "y" / "img" / "1.png")


def _truncated(root: Path) -> None:
    data = BytesIO()
    photo((200, 160)).save(data, "JPEG")
    place(root / "d" / "truncated.jpg", data.getvalue()[:2000])


def _bomb(root: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30000, 30000, 1, 0, 0, 0, 0)
    place(
        root / "d" / "bomb.png",
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""),
    )


def _modes(root: Path) -> None:
    place(root / "modes" / "cmyk.jpg", photo().convert("CMYK"))
    place(root / "modes" / "grey.png", photo().convert("L"))
    place(root / "modes" / "deep.png", Image.fromarray(np.linspace(0, 65535, 400, dtype=np.uint16).reshape(20, 20)))
    palette = photo().convert("P")
    palette.info["transparency"] = 3
    place(root / "modes" / "palette.png", palette)
    place(root / "modes" / "alpha.png", photo().convert("RGBA"))


def _orientation(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = BytesIO()
    photo().save(data, "JPEG", exif=exif)
    place(root / "d" / "turned.jpg", data.getvalue())


ODDITIES = {
    "hidden folders": Oddity(_hidden_folders, skipped={"hidden folder": 5}),
    "hidden and AppleDouble files": Oddity(_hidden_files, skipped={"hidden file": 3}),
    "an empty class folder": Oddity(lambda root: (root / "b").mkdir(), classes=("b",)),
    "a class folder of text": Oddity(
        lambda root: place(root / "c" / "only.txt", b"text"), skipped={".txt": 1}, classes=("c",)
    ),
    "a class folder of GIFs": Oddity(lambda root: place(root / "gifs" / "0.gif"), read=1, classes=("gifs",)),
    "picture formats": Oddity(_formats, read=10 + AVIF, classes=("formats",)),
    "other formats": Oddity(_other_formats, skipped={".txt": 2, ".mp4": 1, ".heic": 1, "no extension": 1, ".part": 1}),
    "a picture beside class folders": Oddity(lambda root: place(root / "loose.png"), read=1),
    "nested class folders": Oddity(lambda root: place(root / "d" / "deep" / "0.png"), read=1, classes=("deep",)),
    "folders of one name": Oddity(_twice, read=2, classes=("img",)),
    "links in circles": Oddity(_links_in_circles, skipped={"link to a folder above it": 2}),
    "links to what is read": Oddity(
        _links_to_what_is_read, skipped={"link to a picture that is read already": 1, "folder that is read already": 1}
    ),
    "links to nothing": Oddity(_links_to_nothing, failed=1, skipped={"link to nothing": 1}),
    "a folder called x.png": Oddity(
        lambda root: (root / "d" / "x.png").mkdir(), skipped={"folder without pictures": 1}
    ),
    "a pipe": Oddity(lambda root: os.mkfifo(root / "a" / "pipe.png"), skipped={"not a regular file": 1}),
    "an empty file": Oddity(lambda root: place(root / "a" / "empty.jpg", b""), failed=1),
    "text called .jpg": Oddity(lambda root: place(root / "a" / "text.jpg", b"text"), failed=1),
    "a truncated JPEG": Oddity(_truncated, failed=1),
    "a decompression bomb": Oddity(_bomb, failed=1),
    "CMYK, 16 bits, palette, alpha": Oddity(_modes, read=5, classes=("modes",)),
    "EXIF orientation": Oddity(_orientation, read=1),
}
if sys.platform == "linux":  # other systems refuse such names
    ODDITIES["a name that is no UTF-8"] = Oddity(lambda root: place(root / "a" / os.fsdecode(b"caf\xe9.png")), read=1)


def odd_folder(root: Path, *names: str) -> Oddity:
    """The base with some oddities, by default with all; gives what must come of them in all, the base included."""
    base(root)
    chosen = [ODDITIES[name] for name in names or ODDITIES]
    skipped: Counter[str] = Counter()
    for oddity in chosen:
        oddity.add(root)
        skipped.update(oddity.skipped)
    classes = sorted({*BASE, *(name for oddity in chosen for name in oddity.classes)})
    read = sum(BASE.values()) + sum(oddity.read for oddity in chosen)
    return Oddity(print, read, sum(oddity.failed for oddity in chosen), dict(skipped), tuple(classes))

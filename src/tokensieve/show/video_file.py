"""Writes frames to a video file, MP4 or GIF, completely or not at all."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .._files import draft
from ..data.video_frames import library
from ..errors import InputError

TICK = Fraction(1, 1000)
COLOURS = 128
"""Number of colours in a GIF's palette, at most 256."""
SHORTEST = 20
"""Minimum duration of a GIF's frame in milliseconds: players slow down shorter frames."""


class Film(ABC):
    """A video file to which frames are added one after the other.

    The first frame determines the size; later ones are placed top left on white, and cropped if they are larger.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.size: tuple[int, int] | None = None

    def add(self, picture: Image.Image, seconds: float) -> None:
        """Add a frame that is shown for `seconds`."""
        self.size = self.size or picture.size
        if picture.size != self.size:
            page = Image.new("RGB", self.size, "white")
            page.paste(picture, (0, 0))
            picture = page
        self._add(picture.convert("RGB"), seconds)

    @abstractmethod
    def _add(self, picture: Image.Image, seconds: float) -> None: ...

    @abstractmethod
    def end(self) -> None:
        """Write the rest of the file."""

    def close(self) -> None:  # noqa: B027 - not all formats keep the file open
        """Close the file, complete or not."""


class _MP4(Film):
    """An MP4 file; one frame is held in memory. H.264, or MPEG-4 if PyAV has no H.264 encoder."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.av, self.time = library(), 0.0
        self.out: Any = self.av.open(str(file), "w")
        self.stream: Any = None
        self.last: Image.Image | None = None

    def _add(self, picture: Image.Image, seconds: float) -> None:
        if self.stream is None:
            codec = "libx264" if "libx264" in self.av.codecs_available else "mpeg4"
            self.stream = self.out.add_stream(codec, rate=30)  # a nominal rate: every frame has its own time
            self.stream.pix_fmt = "yuv420p"
            self.stream.width, self.stream.height = (side + side % 2 for side in picture.size)
            if codec == "libx264":
                self.stream.options = {"crf": "20", "preset": "veryfast"}
            self.stream.codec_context.time_base = self.stream.time_base = TICK
        self._encode(picture)
        self.time, self.last = self.time + seconds, picture

    def _encode(self, picture: Image.Image) -> None:
        pixels = np.asarray(picture)
        padding = [(0, side % 2) for side in pixels.shape[:2]]  # 4:2:0 chroma subsampling needs even sides
        frame = self.av.VideoFrame.from_ndarray(np.pad(pixels, [*padding, (0, 0)], mode="edge"), format="rgb24")
        frame.pts, frame.time_base = round(self.time / TICK), TICK
        self.out.mux(self.stream.encode(frame))

    def end(self) -> None:
        assert self.last is not None
        self._encode(self.last)  # written again at its end time, so that it is shown for its duration
        self.out.mux(self.stream.encode())

    def close(self) -> None:
        self.out.close()


class _GIF(Film):
    """A GIF file; all frames are held in memory, each with its own palette."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.pictures: list[Image.Image] = []
        self.spans: list[int] = []

    def _add(self, picture: Image.Image, seconds: float) -> None:
        self.pictures.append(picture.quantize(COLOURS, dither=Image.Dither.NONE))
        self.spans.append(max(SHORTEST, 10 * round(100 * seconds)))

    def end(self) -> None:
        first, *rest = self.pictures
        first.save(self.file, format="GIF", save_all=True, append_images=rest, duration=self.spans, loop=0)


_KINDS: dict[str, type[Film]] = {".mp4": _MP4, ".gif": _GIF}
SUFFIXES = tuple(_KINDS)


@contextmanager
def film(path: str | os.PathLike[str]) -> Iterator[Film]:
    """Context for writing a file .mp4 or .gif, without sound; the file appears when the context ends without an error.

    Raises:
        InputError: another ending, no frames, the file cannot be written, or PyAV is missing for .mp4.
    """
    path = Path(path)
    if path.suffix.lower() not in _KINDS:
        raise InputError(f"{path} must end in {' or '.join(SUFFIXES)}.")
    with draft(path) as file:
        writer = _KINDS[path.suffix.lower()](file)
        try:
            yield writer
            if writer.size is None:
                raise InputError(f"There are no frames to write to {path}.")
            writer.end()
        finally:
            writer.close()


def write_video(path: str | os.PathLike[str], frames: Iterable[tuple[Image.Image, float]]) -> Path:
    """Write pictures, each with the seconds for which it is shown, as `film` does."""
    with film(path) as writer:
        for picture, seconds in frames:
            writer.add(picture, seconds)
    return Path(path)

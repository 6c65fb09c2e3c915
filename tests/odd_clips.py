"""Small videos, made with PyAV: plain ones, and each kind of odd or broken one with what must become of it.

Used by the tests of videos and by benchmarks/odd_clips.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 30


def numbered(count: int, size: tuple[int, int] = (64, 48)) -> list[np.ndarray]:
    """Frames whose grey says their number: 10, 12, 14 ... under a white left upper corner; size is (width, height)."""
    width, height = size
    frames = []
    for i in range(count):
        frame = np.full((height, width, 3), 10 + 2 * i % 200, np.uint8)
        frame[: height // 4, : width // 4] = 255
        frames.append(frame)
    return frames


def number_of(value: float) -> int:
    """Which frame of `numbered` has this grey, from 0 to 255; a lossy codec may be one off in grey."""
    return round((value - 10) / 2)


def write(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: int | Fraction = RATE,
    stamps: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """Write frames (H, W, 3); `stamps` are their times in thousandths of a second where they vary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        if codec == "libx264":
            stream.options = {"crf": "1", "preset": "ultrafast", **(options or {})}
        if stamps is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[i], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000, layout="mono")
        sound = np.zeros((1, 16000), np.float32)
        frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


TURNS = {
    "upright": (1, 0, 0, 1),
    "a quarter clockwise": (0, 1, -1, 0),
    "half a turn": (-1, 0, 0, -1),
    "a quarter counter-clockwise": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "mirrored and turned": (0, 1, 1, 0),
}
"""How a recording is to be shown -> a, b, c, d of its display matrix."""


def turn(path: Path, how: str) -> Path:
    """Write a display matrix into an MP4's track header, as phones do."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4
    at += 4 + (20 if content[at] == 0 else 32) + 16
    a, b, c, d = (65536 * value for value in TURNS[how])
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@dataclass(frozen=True)
class OddClip:
    """One odd video and what must come of it: read, or the end of a sentence that says why not."""

    make: Callable[[Path], object]
    fails: str | None = None
    frames: int = 0
    """As many as can be read."""


VARYING = [0, 33, 66, 100, 500, 533, 566, 1000, 1500, 1533, 1566, 1600]


def _cut_in_half(path: Path) -> None:
    noise = np.random.default_rng(0)
    frames = [noise.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(40)]
    write(path, frames, container={"movflags": "faststart"}, options={"g": "5", "bf": "0"})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _cut_before_the_index(path: Path) -> None:
    write(path, numbered(20))
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"moov") - 4])


ODD_CLIPS = {
    "zero bytes": OddClip(lambda path: path.write_bytes(b""), "is empty: 0 bytes"),
    "text named .mp4": OddClip(lambda path: path.write_text("no video\n" * 9), "is not a video that can be read"),
    "truncated": OddClip(_cut_in_half, "is cut short"),
    "truncated before its index": OddClip(_cut_before_the_index, "is not a video that can be read"),
    "audio only": OddClip(write_sound, "holds no video, only audio (aac)"),
    "one frame": OddClip(lambda path: write(path, numbered(1)), frames=1),
    "8x8 pixels": OddClip(lambda path: write(path, numbered(20, (8, 8))), frames=20),
    "odd sizes": OddClip(
        lambda path: write(path, numbered(20, (67, 33)), codec="libx264rgb", pixels="rgb24"), frames=20
    ),
    "variable rate": OddClip(lambda path: write(path, numbered(12), stamps=VARYING), frames=12),
    "rotated": OddClip(lambda path: turn(write(path, numbered(20)), "a quarter clockwise"), frames=20),
    "10-bit": OddClip(lambda path: write(path, numbered(20), pixels="yuv420p10le"), frames=20),
}

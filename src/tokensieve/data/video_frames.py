"""Reads frames of a video file by their time, rotated upright and in RGB, with PyAV."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import InputError
from .images import UnusableError

CUT_SHORT = 0.9
"""A file with less than this fraction of the frames that its header announces counts as truncated."""


@dataclass(frozen=True)
class Timeline:
    """The times at which the frames of a video are shown, known without decoding them.

    Attributes:
        stamps: (n,) int64, the time stamp of each frame in ticks, in display order.
        keys: the time stamps of the key frames, which can be decoded without other frames.
        tick: length of a tick in seconds.
        rate: frames per second; the mean if it varies.
        timed: whether the file has time stamps; if not, frames are assumed to follow at `rate`.
    """

    stamps: np.ndarray
    keys: np.ndarray
    tick: float
    rate: float
    timed: bool = True

    def __len__(self) -> int:
        return len(self.stamps)

    @property
    def seconds(self) -> np.ndarray:
        """(n,) float64, the time of each frame in seconds from the beginning of the first frame."""
        return (self.stamps - self.stamps[0]) * self.tick

    @property
    def duration(self) -> float:
        """Duration in seconds, to the end of the last frame."""
        return float(self.seconds[-1]) + 1 / self.rate

    def frame_at(self, seconds: np.ndarray) -> np.ndarray:
        """Index of the frame shown at each time, with a tolerance of half a frame for rounded time stamps."""
        median_gap = float(np.median(np.diff(self.seconds))) if len(self) > 1 else 1 / self.rate
        tolerance = 0.5 * min(median_gap, 1 / self.rate)
        indices = np.searchsorted(self.seconds, np.asarray(seconds) + tolerance, side="right") - 1
        return indices.clip(0, len(self) - 1)


def library() -> Any:
    """Import PyAV. Raises `InputError` if it is not installed."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise InputError("Reading videos needs PyAV: pip install 'tokensieve[video]'.") from error
    return av


def timeline_of(source: Any) -> Timeline:
    """Read the times of all frames of a file, without decoding.

    Args:
        source: a path, or a file opened for reading bytes.

    Raises:
        UnusableError: the file does not exist, has no video, or is truncated.
    """
    with opened(source) as (container, stream):
        packets = []
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                packets.append((packet.pts, packet.is_keyframe))
        announced_frames = stream.frames
        tick = float(stream.time_base or Fraction(1, 90000))
        announced_seconds = None if container.duration is None else container.duration / 1e6
        rate = stream.average_rate or stream.guessed_rate
        has_audio = bool(container.streams.audio)
    if not packets:
        raise UnusableError("holds no frame of video")
    timed = all(stamp is not None for stamp, _ in packets)
    if not timed:
        rate = rate or 25
        tick = float(1 / Fraction(rate))
        packets = [(index, key) for index, (_, key) in enumerate(packets)]
    stamps = np.array(sorted(stamp for stamp, _ in packets), dtype=np.int64)
    length = float(stamps[-1] - stamps[0]) * tick
    if len(stamps) > 1 and length > 0:
        mean = (len(stamps) - 1) / length
        # The rate in a file may be that of its ticks: if the frames have another rate, use theirs.
        rate = float(rate) if rate and abs(float(rate) / mean - 1) < 0.02 else mean
    keys = np.array(sorted(stamp for stamp, key in packets if key), dtype=np.int64)
    timeline = Timeline(stamps, keys, tick, float(rate or 25), timed)
    if announced_frames and len(stamps) < CUT_SHORT * announced_frames:
        raise UnusableError(f"is cut short: it has {len(stamps)} of the {announced_frames} frames in its header")
    # the duration of a Matroska file counts from 0, even if its first frame is later
    end = max(timeline.duration, stamps[-1] * tick + 1 / timeline.rate)
    if not announced_frames and not has_audio and announced_seconds and end < CUT_SHORT * announced_seconds:
        raise UnusableError(f"is cut short: it has {end:.1f} of the {announced_seconds:.1f} seconds in its header")
    return timeline


def frames_at(source: Any, timeline: Timeline, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Decode selected frames, in display order; between them it seeks from key frame to key frame.

    Args:
        source: as in `timeline_of`.
        timeline: the timeline of this file.
        indices: indices of the frames, ascending and without duplicates.

    Yields:
        The index, and the frame (H, W, 3) uint8, rotated by the file's display matrix, as phones record it.

    Raises:
        UnusableError: a frame of the timeline cannot be decoded.
    """
    with opened(source) as (container, stream):
        decoder = _Decoder(container, stream, timeline)
        for index in indices:
            yield index, _upright(decoder.reach(index))


class _Decoder:
    """Decodes a file forwards, and seeks to the next key frame if that skips frames."""

    def __init__(self, container: Any, stream: Any, timeline: Timeline) -> None:
        self.container, self.stream, self.timeline = container, stream, timeline
        self.seeks = timeline.timed
        self._frames = self._decode()
        self._stamp: int | None = None
        self._frame: Any = None

    def reach(self, index: int) -> Any:
        """The frame of this index, or the next existing one. Errors have the time of the requested frame."""
        stamp = int(self.timeline.stamps[index])
        if self.seeks:
            before = self.timeline.keys[self.timeline.keys <= stamp]
            if len(before) and before[-1] > (self.timeline.stamps[0] if self._stamp is None else self._stamp):
                key = int(before[-1])
                self._seek(key)
                self._next(index, needed=False)
                if self._stamp is None or self._stamp > key:  # it went too far, to frames that depend on skipped ones
                    self.seeks = False
                    self._seek(int(self.timeline.stamps[0]))
        while self._stamp is None or self._stamp < stamp:
            self._next(index)
        return self._frame

    def _seek(self, stamp: int) -> None:
        self.container.seek(stamp, stream=self.stream)
        self._frames, self._stamp = self._decode(), None

    def _decode(self) -> Iterator[tuple[int, Any]]:
        for count, frame in enumerate(self.container.decode(self.stream)):
            stamp = frame.pts if frame.pts is not None else frame.dts
            yield stamp if self.timeline.timed and stamp is not None else count, frame

    def _next(self, index: int, *, needed: bool = True) -> None:
        seconds, av = self.timeline.seconds[index], library()
        try:
            decoded = next(self._frames, None)
        except av.error.FFmpegError as error:
            if not needed:
                return
            raise UnusableError(f"cannot be decoded up to {seconds:.2f} s: {_message(error)}") from error
        if decoded is not None:
            self._stamp, self._frame = decoded
            if self._frame.is_corrupt:
                raise UnusableError(f"is damaged before {seconds:.2f} s")
        elif needed:
            end = self.timeline.duration
            raise UnusableError(f"is cut short: no frame can be decoded at {seconds:.2f} s of {end:.2f} s")


@contextmanager
def opened(source: Any) -> Iterator[tuple[Any, Any]]:
    """Open a file with PyAV: its container and its video stream. Raises `UnusableError` if there is none."""
    av = library()
    if hasattr(source, "read"):
        source.seek(0)
        empty, name = not source.read(1), source
        source.seek(0)
    else:
        name = os.fspath(source)
        empty = os.path.isfile(name) and os.path.getsize(name) == 0
    if empty:
        raise UnusableError("is empty: 0 bytes")
    try:
        container = av.open(name)
    except FileNotFoundError:
        raise UnusableError("does not exist") from None
    except PermissionError:
        raise UnusableError("cannot be read: permission denied") from None
    except av.error.FFmpegError as error:
        raise UnusableError(f"is not a video that can be read: {_message(error)}") from error
    with container:
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        if not streams:
            audio = ", ".join(stream.codec_context.name for stream in container.streams.audio)
            raise UnusableError(f"holds no video, only audio ({audio})" if audio else "holds no video")
        yield container, streams[0]


def _is_cover(stream: Any) -> bool:
    """Whether a video stream is only the cover picture of an audio file."""
    attached = 1 << 10  # AV_DISPOSITION_ATTACHED_PIC
    return bool(int(getattr(stream.disposition, "value", stream.disposition)) & attached)


def _message(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).strip().rstrip(".")


def _upright(frame: Any) -> np.ndarray:
    """A frame as (H, W, 3) uint8, rotated and mirrored by the display matrix."""
    picture = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    # A point (x, y) is shown at (a x + c y, b x + d y): ffmpeg's display.h.
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist()
    if abs(b) > abs(a):
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])

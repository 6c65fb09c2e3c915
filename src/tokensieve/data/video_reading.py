"""Reads videos as clips, which are tensors of frames chosen by their time; and sets of videos."""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from typing import IO, Any, Self

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .images import Failure, ImageSet, Listed, UnusableError, reason_of
from .listing import Listing
from .scanning import Kind
from .video_frames import Timeline, frames_at, timeline_of
from .video_preprocessing import VideoPreprocessing
from .video_sampling import Views, sliding_windows

SUFFIXES = frozenset(
    (
        *(".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
        *(".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
    )
)
VIDEOS = Kind("video", "videos", lambda: SUFFIXES)
Source = str | os.PathLike[str] | IO[bytes]


@dataclass(frozen=True)
class Clips:
    """The clips of one video.

    Attributes:
        clips: (views, *clip_shape) float32; the crops of a clip follow each other.
        times: (clips, frames) float64, the time of each frame in seconds from the beginning.
        duration: duration of the video in seconds.
        rate: frames per second; the mean if it varies.
    """

    clips: Tensor
    times: np.ndarray
    duration: float
    rate: float


@dataclass(frozen=True)
class Window:
    """A clip of a longer video, with its times.

    Attributes:
        clip: (*clip_shape) float32; with three crops (3, *clip_shape).
        times: (frames,) float64, the time of each frame in seconds from the beginning.
    """

    clip: Tensor
    times: Tensor

    @property
    def start(self) -> float:
        """Time of the first frame, in seconds."""
        return float(self.times[0])

    @property
    def end(self) -> float:
        """Time of the last frame, in seconds."""
        return float(self.times[-1])


def read_clips(source: Source, preprocessing: VideoPreprocessing) -> Clips:
    """Read the clips of a video, over which the outputs of a model are averaged.

    Frames are chosen by their time, so that a variable frame rate is handled. They are rotated by the file's display
    matrix (phone recordings), converted to 8-bit RGB, and their pixels are assumed to be square.

    Args:
        source: a path, or a file opened for reading bytes.
        preprocessing: selects frames and converts them to tensors.

    Raises:
        InputError: the file does not exist, has no video, is damaged, or truncated.
    """
    try:
        return _read(source, preprocessing)
    except UnusableError as error:
        raise InputError(f"{_name(source)} {error}.") from error


def sliding_clips(source: Source, preprocessing: VideoPreprocessing, step: float | None = None) -> Iterator[Window]:
    """Read a long video as consecutive clips with their times; only the frames of one clip are in memory.

    Args:
        source: as in `read_clips`.
        preprocessing: frames, stride and size; of its `views` only the crops are used.
        step: seconds from the start of a clip to that of the next; by default clips follow without gap or overlap. The
            last clip ends with the video.

    Raises:
        InputError: as in `read_clips`, raised when the clip is reached.
        RecipeError: a step that is not positive.
    """
    try:
        yield from _slide(source, preprocessing, step)
    except UnusableError as error:
        raise InputError(f"{_name(source)} {error}.") from error


def _slide(source: Any, preprocessing: VideoPreprocessing, step: float | None) -> Iterator[Window]:
    timeline = timeline_of(source)
    windows = sliding_windows(timeline, preprocessing.frames, preprocessing.stride, step)
    decoded = frames_at(source, timeline, np.unique(windows).tolist())
    frames: dict[int, Tensor] = {}
    for window in windows.tolist():
        while window[-1] not in frames:
            index, frame = next(decoded)
            frames[index] = preprocessing.resize(frame)
        frames = {index: frame for index, frame in frames.items() if index >= window[0]}
        crops = preprocessing.crops(_stack([frames[index] for index in window]))
        yield Window(crops[0] if len(crops) == 1 else crops, torch.from_numpy(timeline.seconds[window]))


class VideoSet(ImageSet):
    """Videos in a fixed order, each as (clip float32, label); the label is -1 if there is none.

    A clip has the preprocessing's layout, (frames, 3, H, W) or (3, frames, H, W). Several views are stacked along a
    first axis, (views, ...); see `views_as_batch` and `average_views`. Limits, failures and labels are as in
    `ImageSet`. `load_batches` also returns the times of the frames.
    """

    kind = VIDEOS

    def __init__(self, listing: Listing, preprocessing: VideoPreprocessing, limit: int | None = None) -> None:
        super().__init__(Listed(listing), torch.as_tensor, limit=limit, **listing.set_arguments())
        self.preprocessing = preprocessing

    def prepared(self, preprocessing: Any) -> Self:
        """The same set with another `VideoPreprocessing`."""
        other = copy(self)
        other.preprocessing = preprocessing
        return other

    def attempt_timed(self, index: int) -> tuple[Tensor, int, Tensor] | Failure:
        """Video `index`, its label, and the time of each frame in seconds from the beginning, (clips, frames) float64;
        or a `Failure` if it cannot be read."""
        result = self._attempt(index, self._clips)
        if isinstance(result, Failure):
            return result
        clips, label = result
        return self._views(clips), label, torch.from_numpy(clips.times)

    def windows(self, index: int, step: float | None = None) -> Iterator[Window | Failure]:
        """The consecutive clips of video `index`, as in `sliding_clips`; a `Failure` at the end if reading fails."""
        try:
            yield from self._windows(self.items[self._indices[index]][0], step)
        except UnusableError as error:
            yield Failure(self.path(index), str(error))
        except Exception as error:  # any exception of a reader or a resize concerns only this video
            yield Failure(self.path(index), f"cannot be read: {reason_of(error)}")

    def _clips(self, source: Any) -> Clips:
        return _read(source, self.preprocessing)

    def _windows(self, source: Any, step: float | None) -> Iterator[Window]:
        return _slide(source, self.preprocessing, step)

    def _read(self, source: Any) -> Tensor:
        return self._views(self._clips(source))

    def _views(self, clips: Clips) -> Tensor:
        return clips.clips[0] if Views.parse(self.preprocessing.views).total == 1 else clips.clips


def _read(source: Any, preprocessing: VideoPreprocessing) -> Clips:
    timeline: Timeline = timeline_of(source)
    indices = preprocessing.indices(timeline)
    frame_indices = np.unique(indices).tolist()
    frames = {index: preprocessing.resize(frame) for index, frame in frames_at(source, timeline, frame_indices)}
    clips = [preprocessing.crops(_stack([frames[index] for index in clip])) for clip in indices.tolist()]
    return Clips(torch.cat(clips), timeline.seconds[indices], timeline.duration, timeline.rate)


def _stack(frames: list[Tensor]) -> Tensor:
    """Stack frames, (T, 3, h, w). Raises `UnusableError` if the size changes within the video."""
    if len({frame.shape for frame in frames}) > 1:
        raise UnusableError("changes its frame size half way")
    return torch.stack(frames)


def _name(source: Any) -> str:
    return str(getattr(source, "name", "The video") if hasattr(source, "read") else source)

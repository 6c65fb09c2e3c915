"""Clips of one video, and sets of videos: frames by their time, as tensors."""

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
        times: (clips, frames) float64, when each frame is shown, in seconds from the beginning.
        duration: of the video, in seconds.
        rate: frames a second, the mean where it varies.
    """

    clips: Tensor
    times: np.ndarray
    duration: float
    rate: float


@dataclass(frozen=True)
class Window:
    """A clip of a longer video.

    Attributes:
        clip: (*clip_shape) float32; with three crops (3, *clip_shape).
        times: (frames,) float64, when each is shown, in seconds from the beginning.
    """

    clip: Tensor
    times: Tensor

    @property
    def start(self) -> float:
        """When its first frame is shown."""
        return float(self.times[0])

    @property
    def end(self) -> float:
        """When its last frame is shown."""
        return float(self.times[-1])


def read_clips(source: Source, preprocessing: VideoPreprocessing) -> Clips:
    """Read a video as the clips that a model averages its answers over.

    Frames are taken by their time, so that a rate that varies does no harm; they are turned upright as a phone's
    recording says, whatever their depth become 8-bit RGB, and their pixels are taken as square.

    Args:
        source: a path, or a file opened for reading bytes.
        preprocessing: which frames, and how they become tensors.

    Raises:
        InputError: no such file, no video in it, damaged, or cut short.
    """
    try:
        return _read(source, preprocessing)
    except UnusableError as error:
        raise InputError(f"{_name(source)} {error}.") from error


def sliding_clips(source: Source, preprocessing: VideoPreprocessing, step: float | None = None) -> Iterator[Window]:
    """Read a long video clip by clip, with their times; only the frames of one clip are held in memory.

    Args:
        source: as in `read_clips`.
        preprocessing: frames, stride and size; of its views, the crops count.
        step: seconds from clip to clip; by default they lie end to end. The last one ends with the video.

    Raises:
        InputError: as `read_clips`, when the clip is reached.
        RecipeError: a step that leads nowhere.
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
    """Videos in a fixed order, each as (clip float32, label); the label is -1 where there is none.

    A clip has the preprocessing's layout, (frames, 3, H, W) or (3, frames, H, W); with more views than one they are
    stacked in front: (views, ...), see `views_as_batch` and `average_views`. What `ImageSet` says of limits, failures
    and labels holds. `load_batches` also gives the times of the frames.
    """

    kind = VIDEOS

    def __init__(self, listing: Listing, preprocessing: VideoPreprocessing, limit: int | None = None) -> None:
        super().__init__(Listed(listing), torch.as_tensor, limit=limit, **listing.set_arguments())
        self.preprocessing = preprocessing

    def prepared(self, preprocessing: Any) -> Self:
        """The same videos, made clips by another `VideoPreprocessing`."""
        other = copy(self)
        other.preprocessing = preprocessing
        return other

    def attempt_timed(self, index: int) -> tuple[Tensor, int, Tensor] | Failure:
        """Video `index`, its label, and (clips, frames) float64, when each frame is shown, in seconds from the
        beginning; or why it cannot be read."""
        result = self._attempt(index, self._clips)
        if isinstance(result, Failure):
            return result
        clips, label = result
        return self._views(clips), label, torch.from_numpy(clips.times)

    def windows(self, index: int, step: float | None = None) -> Iterator[Window | Failure]:
        """Video `index` clip by clip, as `sliding_clips` reads it; at last, where it goes no further, why."""
        try:
            yield from self._windows(self.items[self._indices[index]][0], step)
        except UnusableError as error:
            yield Failure(self.path(index), str(error))
        except Exception as error:  # whatever a reader or a resize may raise concerns this video alone
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
    """(T, 3, h, w). Raises `UnusableError` where the size changes within the video."""
    if len({frame.shape for frame in frames}) > 1:
        raise UnusableError("changes the shape of its picture half way")
    return torch.stack(frames)


def _name(source: Any) -> str:
    return str(getattr(source, "name", "The video") if hasattr(source, "read") else source)

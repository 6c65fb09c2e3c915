"""Sampling of video frames: which frames a clip has, and how many clips and crops are averaged per video."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from ..errors import RecipeError
from .video_frames import Timeline

CROPS = (1, 3)


class Views(NamedTuple):
    """Number of clips per video, and of crops per clip."""

    clips: int = 1
    crops: int = 1

    @classmethod
    def parse(cls, text: str) -> Views:
        """Parse "5x3" (five clips of three crops) or "1x10" (ten clips of one crop, as written in other papers).

        The number of crops is 1 or 3: the second number if it is one of these, else the first.

        Raises:
            RecipeError: neither number is a valid number of crops.
        """
        match = re.fullmatch(r"\s*(\d+)\s*[x×]\s*(\d+)\s*", text)
        first, second = (int(group) for group in match.groups()) if match else (0, 0)
        if min(first, second) >= 1 and second in CROPS:
            return cls(first, second)
        if min(first, second) >= 1 and first in CROPS:
            return cls(second, first)
        raise RecipeError(f"views must be clips x crops, with 1 or 3 crops, such as 5x3, 1x3 or 1x10, not '{text}'.")

    @property
    def total(self) -> int:
        return self.clips * self.crops


def dense_clips(timeline: Timeline, frames: int, stride: int, clips: int) -> np.ndarray:
    """Clips of `frames` frames that are `stride` frames apart at the mean rate (as VideoMAE on Kinetics).

    A single clip is in the middle of the video; several are evenly spaced from its beginning to its end. If the video
    is too short its last frame is repeated. Times are counted at the mean rate, so that clips have the same duration
    even if the rate varies.

    Returns:
        (clips, frames) int64, indices of frames of the timeline.
    """
    length = _length(timeline)
    last_start = max(length - ((frames - 1) * stride + 1), 0)
    starts = np.array([last_start // 2]) if clips == 1 else np.floor(np.linspace(0, last_start, clips) + 0.5)
    positions = (starts[:, None] + np.arange(frames) * stride).clip(0, length - 1)
    return timeline.frame_at(positions / timeline.rate)


def uniform_clips(timeline: Timeline, frames: int, clips: int) -> np.ndarray:
    """Clips with one frame from each of `frames` equal parts of the whole video (as on Something-Something V2).

    A single clip takes the middle of each part; several clips take evenly spaced positions in the part.

    Returns:
        (clips, frames) int64, indices of frames of the timeline.
    """
    length = _length(timeline)
    offsets = (np.arange(clips)[:, None] + 0.5) / clips
    positions = np.floor((np.arange(frames) + offsets) * length / frames).clip(0, length - 1)
    return timeline.frame_at(positions / timeline.rate)


def sliding_windows(timeline: Timeline, frames: int, stride: int, step: float | None) -> np.ndarray:
    """Dense clips over the whole video, `step` seconds apart; by default without gap or overlap.

    The last clip starts earlier if needed, so that it ends with the video.

    Returns:
        (clips, frames) int64, indices of frames of the timeline.

    Raises:
        RecipeError: a step that is not positive.
    """
    length, span = _length(timeline), frames * stride
    if step is not None and not step > 0:
        raise RecipeError(f"The step between sliding clips must be a number of seconds above 0, not {step}.")
    step_frames = span if step is None else max(step * timeline.rate, 1)
    last_start = max(length - span, 0)
    starts = np.floor(np.arange(int(np.ceil(last_start / step_frames)) + 1) * step_frames + 0.5).clip(0, last_start)
    positions = (np.unique(starts)[:, None] + np.arange(frames) * stride).clip(0, length - 1)
    return timeline.frame_at(positions / timeline.rate)


def _length(timeline: Timeline) -> int:
    """Length of the video in frames at the mean rate, at least 1."""
    return max(round(timeline.duration * timeline.rate), 1)

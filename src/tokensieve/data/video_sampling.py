"""Sampling of video frames: which frames a clip has, and how many clips and crops are averaged per video."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from ..errors import RecipeError
from .video_frames import Timeline

CROPS = (1, 3)


class Views(NamedTuple):
    """How many clips are taken from a video, and how many crops from each of them."""

    clips: int = 1
    crops: int = 1

    @classmethod
    def parse(cls, text: str) -> Views:
        """From "5x3", five clips of three crops, or "1x10" as other papers write ten clips of one crop.

        Crops are 1 or 3. The second number is theirs where it can be; else the first is.

        Raises:
            RecipeError: neither number can be that of crops.
        """
        match = re.fullmatch(r"\s*(\d+)\s*[x×]\s*(\d+)\s*", text)
        first, second = (int(group) for group in match.groups()) if match else (0, 0)
        if min(first, second) >= 1 and second in CROPS:
            return cls(first, second)
        if min(first, second) >= 1 and first in CROPS:
            return cls(second, first)
        raise RecipeError(f"views are clips x crops, with 1 or 3 crops, such as 5x3, 1x3 or 1x10, not '{text}'.")

    @property
    def total(self) -> int:
        return self.clips * self.crops


def dense_clips(timeline: Timeline, frames: int, stride: int, clips: int) -> np.ndarray:
    """Clips of `frames` frames, each `stride` frames of the mean rate after the one before it (VideoMAE's on Kinetics).

    One clip lies in the middle, several from the beginning to the end at even distances. Of a video that is too short
    the last frame is repeated. Moments are counted at the mean rate, so that a clip of a video whose rate varies lasts
    as long as of another.

    Returns:
        (clips, frames) int64, indices of frames of the timeline.
    """
    length = _length(timeline)
    room = max(length - ((frames - 1) * stride + 1), 0)
    starts = np.array([room // 2]) if clips == 1 else np.floor(np.linspace(0, room, clips) + 0.5)
    at = (starts[:, None] + np.arange(frames) * stride).clip(0, length - 1)
    return timeline.frame_at(at / timeline.rate)


def uniform_clips(timeline: Timeline, frames: int, clips: int) -> np.ndarray:
    """One frame from each of `frames` equal parts of the whole video (as on Something-Something V2).

    From the middle of each part for one clip; several take it from different places of the part, at even distances.

    Returns:
        (clips, frames) int64, indices of frames of the timeline.
    """
    length = _length(timeline)
    positions = (np.arange(clips)[:, None] + 0.5) / clips
    at = np.floor((np.arange(frames) + positions) * length / frames).clip(0, length - 1)
    return timeline.frame_at(at / timeline.rate)


def sliding_windows(timeline: Timeline, frames: int, stride: int, step: float | None) -> np.ndarray:
    """Dense clips one after the other over the whole video, `step` seconds apart, by default end to end.

    The last one starts earlier where needed, so that it ends with the video.

    Returns:
        (clips, frames) int64, indices of frames of the timeline.

    Raises:
        RecipeError: a step that leads nowhere.
    """
    length, span = _length(timeline), frames * stride
    if step is not None and not step > 0:
        raise RecipeError(f"The step between sliding clips is a number of seconds above 0, not {step}.")
    wide = span if step is None else max(step * timeline.rate, 1)
    room = max(length - span, 0)
    starts = np.floor(np.arange(int(np.ceil(room / wide)) + 1) * wide + 0.5).clip(0, room)
    at = (np.unique(starts)[:, None] + np.arange(frames) * stride).clip(0, length - 1)
    return timeline.frame_at(at / timeline.rate)


def _length(timeline: Timeline) -> int:
    """In frames of the mean rate."""
    return max(round(timeline.duration * timeline.rate), 1)

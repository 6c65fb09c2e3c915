"""Datasets of videos from a folder, a tar, a list or a file, or generated; and batches of several views per video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, RecipeError
from .classes import class_index
from .images import ImageSet
from .listing import Listing, list_folder, list_tar
from .moving_scenes import MOVING_CLASSES, MovingScenes
from .video_frames import library
from .video_lists import LISTS, list_annotated
from .video_preprocessing import VideoPreprocessing
from .video_reading import VIDEOS, Clips, VideoSet, Window
from .video_sampling import Views

MOVING_SCENES, GENERATED = "moving-scenes", 500
"""The name of the set of generated clips, and its default size."""
RATE = 4.0
"""Frame rate of moving scenes, per second."""


def video_set(
    source: str | Path,
    preprocessing: VideoPreprocessing,
    *,
    classes: str | Path | Sequence[str] | Mapping[str, object] | None = None,
    limit: int | None = None,
    root: str | Path | None = None,
) -> VideoSet:
    """Open a set of videos.

    Args:
        source: a folder of class folders, a flat folder (no labels: -1) or a tar of either, by the rules of
            `image_set`; a list of videos and labels (`.csv`, `.tsv`, `.txt`, `.json`, see `list_annotated`); one file;
            "moving-scenes", which generates clips of digits (see `MovingScenes`).
        preprocessing: selects frames and converts them to a tensor.
        classes: a class-index file, or its content (see `class_index`).
        limit: the largest number of videos, spread evenly over the sorted list.
        root: the folder to which paths of a list are relative; by default the folder of the list.

    Returns:
        A dataset for `load_batches`, which records videos that cannot be read and goes on with the rest.

    Raises:
        InputError: `source` does not exist or holds no video; a class is not in `classes`; PyAV is not installed.
        RecipeError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise RecipeError(f"The limit on videos must be at least 1, not {limit}.")
    path = Path(source)
    if str(source) == MOVING_SCENES and not path.exists():
        return moving_scene_set(preprocessing, limit or GENERATED)
    library()
    index = None if classes is None else class_index(classes)
    if path.is_dir():
        listing = list_folder(path, index, VIDEOS)
    elif not path.is_file():
        raise InputError(
            f"{source} does not exist: give a folder, a tar, a video file, a list of videos and labels, or "
            f"{MOVING_SCENES} for generated clips."
        )
    elif path.suffix.lower() == ".tar":
        listing = list_tar(path, index, VIDEOS)
    elif path.suffix.lower() in LISTS:
        listing = list_annotated(path, index, root)
    else:
        listing = Listing([path], [str(path)], [-1], {}, (), ())
    return VideoSet(listing, preprocessing, limit)


class MovingSceneSet(VideoSet):
    """Moving scenes as a set of videos: clips in the size and number of frames of the preprocessing, with one view."""

    def __init__(self, preprocessing: VideoPreprocessing, count: int, seed: int = 0) -> None:
        self.preprocessing, self.count, self.seed = preprocessing, count, seed
        scenes = MovingScenes("validation", count, max(preprocessing.input_size), preprocessing.frames, seed)
        classes = {name: label for label, name in enumerate(MOVING_CLASSES)}
        ImageSet.__init__(self, _Generated(scenes), torch.as_tensor, names=MOVING_SCENES, classes=classes)

    def prepared(self, preprocessing: Any) -> Self:
        """The same number of scenes, generated for another `VideoPreprocessing`."""
        return type(self)(_check_one_view(preprocessing), self.count, self.seed)

    def _clips(self, source: Any) -> Clips:
        clip = self.preprocessing.crops((source * 255).round().byte())
        return Clips(clip, np.arange(len(source))[None] / RATE, len(source) / RATE, RATE)

    def _windows(self, source: Any, step: float | None) -> Iterator[Window]:
        clips = self._clips(source)
        yield Window(clips.clips[0], torch.from_numpy(clips.times[0]))


class _Generated:
    """Moving scenes as (clip, label)."""

    def __init__(self, scenes: MovingScenes) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        scene = self.scenes[index]
        return scene.clips, int(scene.labels)


def moving_scene_set(preprocessing: VideoPreprocessing, count: int = GENERATED, seed: int = 0) -> MovingSceneSet:
    """The first `count` moving scenes of the validation split as a set of videos, with their class labels.

    Raises:
        RecipeError: more than one view. Clips are generated in the size that the model reads, so they have one view.
    """
    return MovingSceneSet(_check_one_view(preprocessing), count, seed)


def _check_one_view(preprocessing: VideoPreprocessing) -> VideoPreprocessing:
    if Views.parse(preprocessing.views).total != 1:
        raise RecipeError(
            f"Moving scenes are generated in the length and size that the model reads: they have one view, not "
            f"{preprocessing.views}."
        )
    return preprocessing


def views_as_batch(clips: Tensor, preprocessing: VideoPreprocessing) -> Tensor:
    """A batch of videos (B, views, *clip_shape) -> the batch of clips (B * views, *clip_shape) for a model."""
    return clips if Views.parse(preprocessing.views).total == 1 else clips.flatten(0, 1)


def average_views(logits: Tensor, views: int) -> Tensor:
    """Logits of clips (B * views, K) -> probabilities of videos (B, K): the mean over a video's clips of the softmax.

    Raises:
        InputError: the number of clips is not a multiple of `views`.
    """
    if views < 1 or len(logits) % views:
        raise InputError(f"{len(logits)} clips cannot be divided into videos of {views} views each.")
    return logits.float().softmax(-1).unflatten(0, (-1, views)).mean(1)

"""Examples of the page: generated scenes, and photographs that libraries ship."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from PIL import Image
from torch import Tensor

from ..data import MovingScenes, Scenes, VideoPreprocessing, moving_scene_set, photographs
from ..data.moving_scenes import MOVING_CLASSES
from ..data.scenes import to_picture

SCENES, CLIPS, SEED = 6, 8, 5
"""Number of scenes and of clips, and their seed; no bundled model was trained on them."""
PHOTOGRAPHS = ("astronaut", "cat")
LONGEST = 512
"""Pixels of a photograph's longer side."""
THUMBNAIL = 128
"""Pixels a side of a clip's first frame."""


@dataclass(frozen=True)
class Example:
    """An example: its name and its picture, or a clip's first frame."""

    name: str
    picture: Image.Image


@cache
def pictures() -> tuple[Example, ...]:
    """Scenes, then photographs."""
    scenes = Scenes("validation", SCENES, seed=SEED).batch(range(SCENES))
    examples = [
        Example(f"a scene with a {digit}", to_picture(image))
        for image, digit in zip(scenes.images, scenes.labels.tolist(), strict=True)
    ]
    library_photographs = photographs()
    for name in PHOTOGRAPHS:
        if name in library_photographs:
            photograph = library_photographs[name].convert("RGB")
            photograph.thumbnail((LONGEST, LONGEST))
            examples.append(Example(f"photograph: {name}", photograph))
    return tuple(examples)


@cache
def clips() -> tuple[Example, ...]:
    """The first frames of moving scenes."""
    scenes = MovingScenes("validation", CLIPS, THUMBNAIL, seed=SEED).batch(range(CLIPS), frames=slice(1))
    return tuple(
        Example(f"a {MOVING_CLASSES[label]}", to_picture(clip[0]))
        for clip, label in zip(scenes.clips, scenes.labels.tolist(), strict=True)
    )


def all_of(*, videos: bool) -> tuple[Example, ...]:
    """The examples for models that read clips, or pictures."""
    return clips() if videos else pictures()


def clip(number: int, preprocessing: VideoPreprocessing) -> tuple[Tensor, Tensor]:
    """Moving scene `number` as a model reads it: (1, *clip_shape), and the times of its frames (1, frames)."""
    frames, _, times = moving_scene_set(preprocessing, CLIPS, SEED).attempt_timed(number)  # type: ignore[misc]
    return frames[None], torch.as_tensor(times)

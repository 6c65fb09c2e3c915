"""The bundled segmenter's training: the nano ViT with heads after several blocks, on scenes with exact label maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..data import SceneMaps
from ..data.scenes import MAP_CLASSES, SIZE
from ..segmentation.plan import SegmenterPlan
from .config import TrainConfig
from .crops import Augmentation
from .segmentation import Segment, SegmentSettings
from .segmentation import prepare as prepare_segmenter

NAME = "nano_segmenter"
SEEN = 12_800
"""Number of scenes that the bundled segmenter was trained on."""
BATCH = 16
VALIDATION_SCENES = 200
"""Number of validation scenes."""
PLAN = SegmenterPlan(
    "nano_vit",
    MAP_CLASSES,
    "setr_naive",
    {"levels": [0, 1, 2, 3, 5], "channels": 64},
    crop=(SIZE, SIZE),
    stride=(SIZE, SIZE),
)
"""Its architecture: four heads after which tokens may exit, and the last one, which gives the output."""
STILL = Augmentation(scale=(1, 1), one_class=1, flip=0, colours=False)
"""No augmentation: scenes are random already, and a mirrored digit is not a digit."""


def prepare(
    folder: Path,
    *,
    scenes: int | None = None,
    seed: int = 0,
    validation_scenes: int = VALIDATION_SCENES,
    workers: int = 1,
    say: Callable[[str], Any] = print,
) -> tuple[TrainConfig, Segment]:
    """The configuration and task of the bundled segmenter for `loop.train`; by default those of the bundled weights.

    It starts from the bundled nano ViT and is trained on `scenes` scenes, each used once. Its architecture is written
    to `folder` as nano_segmenter.json.
    """
    count = SEEN if scenes is None else scenes
    settings = SegmentSettings(
        steps=max(1, count // BATCH),
        batch_size=min(BATCH, count),
        lr=3e-4,
        head_lr=4.0,
        weight_decay=0.05,
        warmup=50,
        drop_path=0.0,
        seed=seed,
        validate_every=100,
        workers=workers,
        augmentation=STILL,
    )
    known, unseen = SceneMaps("train", count, seed), SceneMaps("val", validation_scenes, seed)
    config, task = prepare_segmenter(PLAN, known, unseen, folder, settings, say=say, name=NAME, half=True)
    for block in task.module.backbone.blocks:
        block.attn.fused_attn = False  # on CPUs the fused kernel's backward takes three times as long
    return config, task

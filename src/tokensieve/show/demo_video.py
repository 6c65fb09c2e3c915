"""`tokensieve demo --task video`: measures and draws a video model under a recipe and its baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from ..data import Batch, Failure, VideoPreprocessing, load_batches, moving_scene_set
from ..data.moving_scenes import MOVING_CLASSES
from ..errors import InputError
from ..measure.outputs import nothing_read
from ..methods import PaPr
from ..recipe import Recipe
from ..stream import Sieved
from . import demo_classify
from .clips import ExplainedClip, explain_clips
from .demo import MOST, DemoSettings, Record, demo_record, leading
from .explain import class_names
from .files import files_record, tell_files
from .page import Panel, Section
from .sources import Videos
from .variants import open_variants, varied

if TYPE_CHECKING:
    from ..model_spec import OpenedModel

SHOWN = 2
"""Number of moving scenes that are drawn."""
HEIGHT = 192
"""Height of a panel in pixels."""
MOTION = "motion alone"
"""Label of the same recipe with a map of the change of each patch over time, which needs no network."""


def run_demo(opened: OpenedModel, settings: DemoSettings) -> tuple[Record, list[Section], list[Failure]]:
    """Measure and draw a model under its recipe, on generated clips or on the user's videos.

    Raises:
        InputError: the model reads images, or no videos are given for a model that was not trained on generated ones.
    """
    dense, fast, preprocessing = opened
    if not isinstance(preprocessing, VideoPreprocessing):
        raise InputError(f"--task video is for models that read videos, and {type(dense).__name__} does not.")
    videos = settings.images
    if not videos and not settings.generated:
        raise InputError("Give videos to run the model on: only the bundled one was trained on generated scenes.")
    dataset: Any = (
        Videos(videos, preprocessing, MOST)
        if videos
        else moving_scene_set(preprocessing, settings.scenes, settings.seed)
    )
    tell_files(dataset)
    settings.progress("reading videos" if videos else f"drawing {settings.scenes} moving scenes")
    loader = load_batches(dataset, settings.batch)
    batches = list(loader)
    if not batches:
        raise nothing_read(loader)
    mean, std = preprocessing.mean, preprocessing.std
    recipes = baselines(dense, fast.recipe, opened.input_spec, mean=mean, std=std, pretrained=settings.pretrained)
    fasts = open_variants(dense, recipes, mean, std, pretrained=settings.pretrained)
    record = demo_record(opened, fasts, batches, settings, "top1")
    settings.progress("drawing")
    names = class_names(dense) if videos else list(MOVING_CLASSES)
    clips = leading(batches, MOST if videos else SHOWN)
    sections = [
        clip_section(index, clips, dense, fasts, preprocessing, names, titled=bool(videos))
        for index in range(len(clips.images))
    ]
    if videos:
        record |= files_record(dataset, record["pictures"], loader.failures)
    return record, sections, list(loader.failures)


def baselines(model: nn.Module, recipe: Recipe, spec: Sequence[int], **settings: Any) -> dict[str, Recipe]:
    """The baselines of image models, and the same recipe with a map of motion alone."""
    recipes = demo_classify.baselines(model, recipe, spec, **settings)
    first = next(iter(recipe), None)
    if isinstance(first, PaPr) and first.ranks and first.needs_proposal:
        label, *rest = recipes
        moving = varied(recipe, significance="motion", proposal_weights=None, proposal_sha256=None)
        recipes = {label: recipe, MOTION: moving, **{name: recipes[name] for name in rest}}
    return recipes


def clip_section(
    index: int,
    batch: Batch,
    dense: nn.Module,
    fasts: Mapping[str, Sieved],
    preprocessing: VideoPreprocessing,
    names: Sequence[str] | None,
    *,
    titled: bool,
) -> Section:
    """A clip as columns over time: its frames, its map, and the patches that each recipe keeps, with predictions."""
    label = int(batch.labels[index])
    assert batch.times is not None
    clip, times = batch.images[index : index + 1], batch.times[index, :1]
    columns: list[tuple[Panel, ...]] = []
    lead = ""
    for number, (name, fast) in enumerate(fasts.items()):
        (explained,) = explain_clips(fast, dense, clip, times, preprocessing, names, height=HEIGHT)
        *layers, last = explained.panels()
        if number == 0:
            columns += layers
            lead = "" if explained.verdict is None else f"The dense model: {explained.verdict.dense}."
        caption = name[0].upper() + name[1:] if number else "What the recipe reads"
        columns.append(_with_answer(last, caption, explained, label))
    title = batch.paths[index] if titled or names is None or label < 0 else f"Moving scene: {names[label]}"
    return Section(title, lead, panels=tuple(zip(*columns, strict=True)))


def _with_answer(strip: tuple[Panel, ...], caption: str, clip: ExplainedClip, label: int) -> tuple[Panel, ...]:
    """A recipe's strip with its name as caption and its prediction at the first moment; a wrong one is marked."""
    verdict = clip.verdict
    first, *rest = (replace(panel, caption=caption) for panel in strip)
    if verdict is None:
        return (first, *rest)
    wrong = verdict.sieved.index != label if label >= 0 else not verdict.same
    return (replace(first, note=f"{verdict.sieved}\n{first.note}", alert=wrong), *rest)

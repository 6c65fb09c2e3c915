"""`tokensieve demo --task video`: a model that reads videos under a recipe, measured and drawn beside its rivals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..data import Batch, Failure, VideoPreprocessing, load_batches, moving_scene_set
from ..data.moving_scenes import MOVING_CLASSES
from ..errors import InputError
from ..measure.outputs import nothing_read
from ..methods import PaPr
from ..recipe import Recipe
from ..stream import Sieved
from .clips import ExplainedClip, explain_clips
from .demo import MOST, beside, leading, measure_all
from .explain import class_names
from .files import files_record, tell_files
from .page import Panel, Section
from .rivals import open_rivals, varied
from .sources import Videos

if TYPE_CHECKING:
    from ..model_spec import OpenedModel

Record = dict[str, Any]
SHOWN = 2
"""Moving scenes that are drawn."""
HEIGHT = 192
"""Pixels of a panel's height."""
MOTION = "motion alone"
"""The same recipe with a map that asks no network: how much each patch changes."""


def run_demo(
    opened: OpenedModel,
    images: Sequence[str],
    *,
    pretrained: bool,
    generated: bool,
    scenes: int,
    seed: int,
    batch: int,
    seconds: float,
    tell: Callable[[str], object],
) -> tuple[Record, list[Section], list[Failure]]:
    """Measure and draw a model under its recipe, on generated clips or on the user's videos, `images`.

    Raises:
        InputError: the model reads images; no videos for a model that knows nothing of the generated ones.
    """
    dense, fast, own = opened
    if not isinstance(own, VideoPreprocessing):
        raise InputError(f"--task video shows models that read videos, which {type(dense).__name__} does not.")
    if not images and not generated:
        raise InputError("Give videos to show the model on: only the bundled one knows the generated scenes.")
    given: Any = Videos(images, own, MOST) if images else moving_scene_set(own, scenes, seed)
    tell_files(given)
    tell("reading videos" if images else f"drawing {scenes} moving scenes")
    batches = load_batches(given, batch)
    asked = list(batches)
    if not asked:
        raise nothing_read(batches)
    settings = {"mean": own.mean, "std": own.std, "pretrained": pretrained}
    recipes = rivals_of(dense, fast.recipe, opened.input_spec, **settings)
    fasts = open_rivals(dense, recipes, own.mean, own.std, pretrained=pretrained)
    tell(f"measuring speed for {seconds:g} s")
    first = torch.cat([leading(asked, batch).images] * batch)[:batch].to(opened.device, opened.dtype)
    record: Record = {"batch": batch, "figure": "top1"}
    record["rows"] = measure_all(dense, fasts, asked, first, seconds, record["figure"])
    record["pictures"] = sum(len(one.images) for one in asked)
    tell("drawing")
    names = class_names(dense) if images else list(MOVING_CLASSES)
    some = leading(asked, MOST if images else SHOWN)
    sections = [
        clip_section(index, some, dense, fasts, own, names, titled=bool(images)) for index in range(len(some.images))
    ]
    if images:
        record |= files_record(given, record["pictures"], batches.failures)
    return record, sections, list(batches.failures)


def rivals_of(model: nn.Module, recipe: Recipe, spec: Sequence[int], **settings: Any) -> dict[str, Recipe]:
    """What a recipe is shown beside: `demo.beside`, and the same recipe by motion alone."""
    chosen = beside(model, recipe, spec, **settings)
    first = next(iter(recipe), None)
    if isinstance(first, PaPr) and first.ranks and first.asks_proposal:
        label, *others = chosen
        moving = varied(recipe, significance="motion", proposal_weights=None, proposal_sha256=None)
        chosen = {label: recipe, MOTION: moving, **{name: chosen[name] for name in others}}
    return chosen


def clip_section(
    index: int,
    batch: Batch,
    dense: nn.Module,
    fasts: Mapping[str, Sieved],
    own: VideoPreprocessing,
    names: Sequence[str] | None,
    *,
    titled: bool,
) -> Section:
    """A clip as columns over time: its frames, its map, and what each recipe reads of it, with the answers."""
    label = int(batch.labels[index])
    assert batch.times is not None
    clip, times = batch.images[index : index + 1], batch.times[index, :1]
    columns: list[tuple[Panel, ...]] = []
    lead = ""
    for number, (name, fast) in enumerate(fasts.items()):
        (one,) = explain_clips(fast, dense, clip, times, own, names, height=HEIGHT)
        *layers, last = one.panels()
        if number == 0:
            columns += layers
            lead = "" if one.verdict is None else f"The dense model: {one.verdict.dense}."
        caption = name[0].upper() + name[1:] if number else "What the recipe reads"
        columns.append(_told(last, caption, one, label))
    title = batch.paths[index] if titled or names is None or label < 0 else f"Moving scene: {names[label]}"
    return Section(title, lead, panels=tuple(zip(*columns, strict=True)))


def _told(strip: tuple[Panel, ...], caption: str, clip: ExplainedClip, label: int) -> tuple[Panel, ...]:
    """A recipe's strip under its name, with its answer at the first moment; a wrong one in another colour."""
    verdict = clip.verdict
    first, *others = (replace(panel, caption=caption) for panel in strip)
    if verdict is None:
        return (first, *others)
    wrong = verdict.sieved.index != label if label >= 0 else not verdict.same
    return (replace(first, note=f"{verdict.sieved}\n{first.note}", alert=wrong), *others)

"""`tokensieve demo --task segment`: a segmenter whose patches leave early, measured and drawn beside the dense one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data import AsTensor, Batch, Failure, SceneMaps, load_batches, photograph_set
from ..data.scenes import MAP_CLASSES
from ..errors import InputError, SieveError
from ..measure import macs
from ..measure.budget import drop_to, merge_to
from ..measure.outputs import nothing_read
from ..methods import DToP
from ..recipe import Recipe
from ..stream import Sieved
from .compare import HEIGHT
from .demo import MOST, SHOWN, image_preprocessing, leading, measure_all
from .demo_view import MERGING, RANDOM
from .explain import class_names, dense_answers, explain
from .files import files_record, tell_files
from .page import Panel, Section
from .record import COUNTED, on_pictures
from .rivals import open_rivals
from .segments import class_panel
from .sources import Pictures

if TYPE_CHECKING:
    from ..model_spec import OpenedModel

Record = dict[str, Any]
THRESHOLDS = (0.99, 0.9, 0.7)
"""Beside a recipe of `dtop` alone with one threshold."""


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
    """Measure and draw a segmenter under its recipe, on generated scenes and on photographs; `tell` hears what is
    going on.

    The photographs are the user's `images`, or those that scikit-image and scikit-learn ship.
    """
    dense, fast, _ = opened
    own = image_preprocessing(opened)
    record: Record = {"batch": batch, "figure": "miou"}
    given: Dataset[Any] = Pictures(images, own, MOST) if images else photograph_set(own)
    tell_files(given)
    photographs = load_batches(given, batch)
    asked = photographs
    if generated:
        tell(f"drawing {scenes} scenes")
        asked = load_batches(SceneMaps("val", scenes, seed, AsTensor(own.mean, own.std), size=own.input_size[0]), batch)
    asked_batches = list(asked)
    if not asked_batches:
        raise nothing_read(asked)
    some = leading(asked_batches, COUNTED).images.to(opened.device, opened.dtype)
    tell("asking every model")
    _, kind = dense_answers(dense, some[:1])
    if kind.name != "class-map":
        raise InputError(
            f"--task segment shows models that name the class of every pixel, which {type(dense).__name__} does not."
        )
    recipes = beside(dense, fast, some)
    fasts = open_rivals(dense, recipes, own.mean, own.std, pretrained=pretrained)
    tell(f"measuring speed for {seconds:g} s")
    first = torch.cat([leading(asked_batches, batch).images] * batch)[:batch]
    record["rows"] = measure_all(
        dense, fasts, asked_batches, first.to(opened.device, opened.dtype), seconds, record["figure"]
    )
    record["pictures"] = sum(len(one.images) for one in asked_batches)
    record |= on_pictures(fast, dense, some)
    tell("drawing")
    names, sections = class_names(dense), list[Section]()
    if generated:
        lead = "Made for this run; none of these handwritten digits was in training. Labels are exact."
        sections.append(drawn("Fresh scenes", lead, opened, leading(asked_batches, SHOWN), names))
    seen = asked_batches if not generated else list(photographs)
    if images:
        record |= files_record(given, sum(len(one.images) for one in seen), photographs.failures)
    lead = "Whole photographs" + (", without digits and fragments: most of them leaves at once." if generated else ".")
    if seen:
        sections.append(drawn("Photographs", lead, opened, leading(seen, MOST), names))
    return record, sections, list(photographs.failures)


def beside(dense: nn.Module, fast: Sieved, images: Tensor) -> dict[str, Recipe]:
    """A recipe by its text; of `dtop` alone other thresholds; and merging and random patches at its MACs."""
    chosen = {str(fast.recipe): fast.recipe}
    methods = list(fast.recipe)
    own = methods[0] if len(methods) == 1 else None
    if isinstance(own, DToP) and own.budget is None and not isinstance(own.threshold, tuple):
        thresholds = dict.fromkeys((own.threshold, *THRESHOLDS))
        chosen = {f"dtop, threshold {each:g}": Recipe.of(replace(own, threshold=each)) for each in thresholds}
    size = tuple(images.shape[1:])
    budget = macs(fast, images=images) if fast.plan.varies else macs(fast, size)
    for label, rival in ((MERGING, merge_to), (RANDOM, drop_to)):
        with suppress(SieveError):  # the recipe saves more than that can, or the host cannot take it: one row fewer
            chosen[label] = rival(dense, budget, size)
    return chosen


def drawn(title: str, lead: str, opened: OpenedModel, batch: Batch, names: Sequence[str] | None) -> Section:
    """A row of panels for each picture: as it is, its labels where there are any, both answers, and the exits."""
    dense, fast, own = opened
    whole = macs(dense, (3, *own.input_size))
    rows = []
    told = explain(fast, dense, batch.images, own.mean, own.std, names, height=HEIGHT)
    for image, labels, one in zip(batch.images, batch.labels, told, strict=True):
        source, *panels = one.panels
        fewer = whole / macs(fast, images=image[None].to(opened.device, opened.dtype))
        shown = [replace(source, note=f"{fewer:.2f}x fewer MACs")]
        if labels.ndim:
            shown.append(class_panel(source.image, labels, len(MAP_CLASSES), names, "Labels"))
        rows.append((*shown, *(_told(panel, one.agreement) for panel in panels)))
    return Section(title, lead, panels=tuple(rows))


def _told(panel: Panel, agreement: float | None) -> Panel:
    """With how much of the dense map stays, below the sieved one."""
    if panel.caption == "Classes, sieved" and agreement is not None:
        return replace(panel, note=f"{agreement:.1f} % as in the dense map")
    return panel

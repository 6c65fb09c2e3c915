"""`tokensieve demo --task segment`: measures and draws a segmenter with early exits for patches and the dense one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..data import AsTensor, Batch, Failure, SceneMaps
from ..data.scenes import MAP_CLASSES
from ..errors import InputError, SieveError
from ..measure import macs
from ..measure.budget import drop_to, merge_to
from ..methods import DToP
from ..recipe import Recipe
from ..stream import Sieved
from .compare import HEIGHT
from .demo import DemoSettings, Record, demo_images, demo_record, demo_sections, image_preprocessing, leading
from .demo_view import MERGING, RANDOM
from .explain import class_names, dense_output_and_kind, explain
from .page import Panel, Section
from .record import COUNTED, on_pictures
from .segments import class_panel
from .variants import open_variants

if TYPE_CHECKING:
    from ..model_spec import OpenedModel

THRESHOLDS = (0.99, 0.9, 0.7)
"""Further thresholds to compare with, for a recipe of `dtop` alone with one threshold."""


def run_demo(opened: OpenedModel, settings: DemoSettings) -> tuple[Record, list[Section], list[Failure]]:
    """Measure and draw a segmenter under its recipe, on generated scenes and on photographs.

    Raises:
        InputError: the model does not predict a class for every pixel.
    """
    dense, fast, _ = opened
    preprocessing = image_preprocessing(opened)
    mean, std = preprocessing.mean, preprocessing.std
    scenes = None
    if settings.generated:
        size = preprocessing.input_size[0]
        scenes = SceneMaps("val", settings.scenes, settings.seed, AsTensor(mean, std), size=size)
    images = demo_images(preprocessing, settings, scenes)
    sample = leading(images.evaluated, COUNTED).images.to(opened.device, opened.dtype)
    _, kind = dense_output_and_kind(dense, sample[:1])
    if kind.name != "class-map":
        raise InputError(
            f"--task segment is for models that predict a class for every pixel, and {type(dense).__name__} does not."
        )
    fasts = open_variants(dense, baselines(dense, fast, sample), mean, std, pretrained=settings.pretrained)
    record = demo_record(opened, fasts, images.evaluated, settings, "miou") | on_pictures(fast, dense, sample)
    names = class_names(dense)

    def draw(title: str, lead: str, batch: Batch) -> Section:
        return drawn(title, lead, opened, batch, names)

    photographs_lead = ", without digits and fragments: most patches exit at once."
    sections = demo_sections(images, settings, draw, "Labels are exact.", photographs_lead)
    return record | images.record, sections, images.failures


def baselines(dense: nn.Module, fast: Sieved, images: Tensor) -> dict[str, Recipe]:
    """Recipes by name: the recipe itself, for `dtop` alone also other thresholds; and merging and random patches at its
    MACs."""
    recipes = {str(fast.recipe): fast.recipe}
    methods = list(fast.recipe)
    dtop = methods[0] if len(methods) == 1 else None
    if isinstance(dtop, DToP) and dtop.budget is None and not isinstance(dtop.threshold, tuple):
        thresholds = dict.fromkeys((dtop.threshold, *THRESHOLDS))
        recipes = {f"dtop, threshold {value:g}": Recipe.of(replace(dtop, threshold=value)) for value in thresholds}
    size = tuple(images.shape[1:])
    budget = macs(fast, images=images) if fast.plan.varies else macs(fast, size)
    for label, baseline in ((MERGING, merge_to), (RANDOM, drop_to)):
        with suppress(SieveError):  # it cannot save as much, or the host cannot take it: leave it out
            recipes[label] = baseline(dense, budget, size)
    return recipes


def drawn(title: str, lead: str, opened: OpenedModel, batch: Batch, names: Sequence[str] | None) -> Section:
    """A row of panels for each picture: the input, its labels if any, both predictions, and the exits of patches."""
    dense, fast, preprocessing = opened
    dense_macs = macs(dense, (3, *preprocessing.input_size))
    rows = []
    explained = explain(fast, dense, batch.images, preprocessing.mean, preprocessing.std, names, height=HEIGHT)
    for image, labels, result in zip(batch.images, batch.labels, explained, strict=True):
        source, *panels = result.panels
        fewer = dense_macs / macs(fast, images=image[None].to(opened.device, opened.dtype))
        inputs = [replace(source, note=f"{fewer:.2f}x fewer MACs")]
        if labels.ndim:
            inputs.append(class_panel(source.image, labels, len(MAP_CLASSES), names, "Labels"))
        rows.append((*inputs, *(_with_agreement(panel, result.agreement) for panel in panels)))
    return Section(title, lead, panels=tuple(rows))


def _with_agreement(panel: Panel, agreement: float | None) -> Panel:
    """The panel; if it shows the sieved class map, with the agreement with the dense map as a note."""
    if panel.caption == "Classes, sieved" and agreement is not None:
        return replace(panel, note=f"{agreement:.1f} % as in the dense map")
    return panel

"""Shared parts of the demos of all tasks: settings, images, and the measured rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data import Batch, Failure, Preprocessing, load_batches, photograph_set
from ..errors import InputError
from ..measure import SlicingLimit, fidelity, macs
from ..measure.outputs import nothing_read
from ..measure.speed import interleaved, summarise
from ..stream import Sieved
from .files import files_record, tell_files
from .page import Section
from .record import COUNTED, compared
from .sources import Pictures

if TYPE_CHECKING:
    from ..model_spec import OpenedModel

Record = dict[str, Any]
SHOWN, MOST = 5, 12
"""Number of scenes that are drawn, and maximum number of photographs."""
SIDES = {
    "right": "sieved",
    "right_low": "sieved_low",
    "right_high": "sieved_high",
    "dense_right": "dense",
}
"""Names of figures in a row -> their names in `record.compared`."""


@dataclass(frozen=True)
class DemoSettings:
    """Settings of a demo.

    Attributes:
        images: the user's photographs or videos; if empty, the photographs that scikit-image and scikit-learn ship.
        pretrained: False: proposals without a weights file have random weights.
        generated: whether the model was trained on the generated scenes, which are then used too.
        scenes, seed: number of generated scenes, and their random seed.
        batch: batch size, also for measuring speed.
        seconds: time to spend on measuring speed.
        progress: called with a short message about the current step.
    """

    images: Sequence[str]
    pretrained: bool
    generated: bool
    scenes: int
    seed: int
    batch: int
    seconds: float
    progress: Callable[[str], object]


@dataclass(frozen=True)
class DemoImages:
    """The batches of a demo: those on which models are compared (generated scenes, if the model was trained on them),
    and the photographs; `record` counts the user's own files."""

    evaluated: list[Batch]
    photographs: list[Batch]
    failures: list[Failure]
    record: Record


def demo_images(preprocessing: Preprocessing, settings: DemoSettings, scenes: Dataset[Any] | None) -> DemoImages:
    """Read the photographs and, if given, the generated `scenes`.

    Raises:
        InputError: none of the images to compare models on can be read.
    """
    user_images = settings.images
    dataset: Dataset[Any] = Pictures(user_images, preprocessing, MOST) if user_images else photograph_set(preprocessing)
    tell_files(dataset)
    loader = load_batches(dataset, settings.batch)
    photographs = evaluated = list(loader)
    if scenes is not None:
        settings.progress(f"drawing {settings.scenes} scenes")
        evaluated = list(load_batches(scenes, settings.batch))
    if not evaluated:
        raise nothing_read(loader)
    failures = list(loader.failures)
    record = files_record(dataset, _count(photographs), failures) if user_images else {}
    return DemoImages(evaluated, photographs, failures, record)


def demo_record(
    opened: OpenedModel, fasts: Mapping[str, Sieved], batches: Sequence[Batch], settings: DemoSettings, figure: str
) -> Record:
    """The rows of `measure_all`, with speed at batch size `settings.batch`, and the number of pictures."""
    size = settings.batch
    settings.progress(f"running every model, then measuring speed for {settings.seconds:g} s")
    images = torch.cat([leading(batches, size).images] * size)[:size].to(opened.device, opened.dtype)
    rows = measure_all(opened.dense, fasts, batches, images, settings.seconds, figure)
    return {"batch": size, "figure": figure, "rows": rows, "pictures": _count(batches)}


def demo_sections(
    images: DemoImages,
    settings: DemoSettings,
    draw: Callable[[str, str, Batch], Section],
    scenes_lead: str,
    photographs_lead: str,
) -> list[Section]:
    """Sections of the first scenes and of the photographs, drawn by `draw(title, lead, batch)`.

    `scenes_lead` and `photographs_lead` are the task's additions to the introductory text of each section.
    """
    settings.progress("drawing")
    sections = []
    if settings.generated:
        lead = f"Generated for this run; none of these handwritten digits was in training. {scenes_lead}"
        sections.append(draw("New scenes", lead, leading(images.evaluated, SHOWN)))
    if images.photographs:
        lead = "Whole photographs" + (photographs_lead if settings.generated else ".")
        sections.append(draw("Photographs", lead, leading(images.photographs, MOST)))
    return sections


def _count(batches: Sequence[Batch]) -> int:
    return sum(len(batch.images) for batch in batches)


def image_preprocessing(opened: OpenedModel) -> Preprocessing:
    """The model's image preprocessing. Raises `InputError` if it reads videos."""
    if not isinstance(opened.preprocessing, Preprocessing):
        raise InputError(
            f"This demo shows models that read images, and {type(opened.dense).__name__} reads videos: --task video."
        )
    return opened.preprocessing


def measure_all(
    dense: nn.Module,
    fasts: Mapping[str, Sieved],
    batches: Sequence[Batch],
    images: Tensor,
    seconds: float,
    figure: str = "top1",
) -> list[Record]:
    """A row for each recipe: fidelity on `batches`, and speed on `images` (B, 3, H, W) with all models interleaved.

    `right` and `dense_right` are the scores `figure`, top1 or miou, in percent, None unless every picture has a label;
    `same` is the number of predictions equal to the dense model's, None for embeddings and maps.
    """
    score_settings: dict[str, Any] = {}
    if all(bool((batch.labels >= 0).all()) for batch in batches):
        score_settings = {"k": 1} if figure == "top1" else {"labels": True}
    results = {label: fidelity(fast, dense, batches, **score_settings) for label, fast in fasts.items()}
    calls: dict[str, Callable[[], object]] = {"dense": partial(dense, images)}
    for label, fast in fasts.items():
        limit = SlicingLimit.on(fast, images)
        calls |= {label: partial(fast, images), f"{label}, limit": partial(limit, images)}
    with torch.no_grad():
        times = interleaved(calls, seconds=seconds, min_rounds=5, max_rounds=100)
    size = tuple(images.shape[1:])
    dense_macs = macs(dense, size)
    sample = leading(batches, COUNTED).images.to(images.device, images.dtype)
    rows = []
    for label, fast in fasts.items():
        speed = summarise(
            {"dense": times["dense"], "sieved": times[label], "limit": times[f"{label}, limit"]}, len(images)
        )
        total = macs(fast, images=sample) if fast.plan.varies else macs(fast, size)
        comparison = compared(results[label])
        has_classes = comparison["agreement"] is not None and results[label].kind == "classes"
        rows.append(
            {
                "label": label,
                "recipe": str(fast.recipe),
                **{name: comparison[name] for name in ("agreement", "agreement_low", "agreement_high", "cosine")},
                "same": round(comparison["agreement"] * comparison["images"] / 100) if has_classes else None,
                **{name: comparison[side] and comparison[side][figure] for name, side in SIDES.items()},
                "macs": total,
                "macs_ratio": dense_macs / total,
                "ratio": speed.ratio,
                "low": speed.low,
                "high": speed.high,
                "limit": speed.limit,
            }
        )
    return rows


def leading(batches: Sequence[Batch], count: int) -> Batch:
    """The first `count` pictures of all batches as one batch."""
    images, labels, paths, times = zip(*batches, strict=True)
    frame_times = None if times[0] is None else torch.cat(times)[:count]
    return Batch(torch.cat(images)[:count], torch.cat(labels)[:count], tuple(chain(*paths))[:count], frame_times)

"""What the demos of all tasks share: their settings, the images they read, the rows they measure."""

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
"""Scenes that are drawn; photographs that are read."""
SIDES = {
    "right": "sieved",
    "right_low": "sieved_low",
    "right_high": "sieved_high",
    "dense_right": "dense",
}
"""Figures of a row -> of `record.compared`."""


@dataclass(frozen=True)
class DemoSettings:
    """What a demo reads and measures.

    Attributes:
        images: the user's photographs or videos; without any the photographs that scikit-image and scikit-learn ship.
        pretrained: False: proposals without a weights file have random weights.
        generated: whether the model knows the generated scenes, which are then read too.
        scenes, seed: how many of those, and which.
        batch: how many images are read at once, also where speed is measured.
        seconds: to spend on measuring speed.
        progress: called with what is going on, in a few words.
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
    """The batches of a demo: those on which models are compared, generated scenes where the model knows them, and
    photographs; `record` counts the user's own."""

    evaluated: list[Batch]
    photographs: list[Batch]
    failures: list[Failure]
    record: Record


def demo_images(preprocessing: Preprocessing, settings: DemoSettings, scenes: Dataset[Any] | None) -> DemoImages:
    """Read the photographs, and the generated `scenes` where there are any.

    Raises:
        InputError: none of those that models are compared on can be read.
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
    """The rows of `measure_all`, speed at `settings.batch` images, and on how many pictures they were counted."""
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
    """The first scenes and the photographs, drawn by `draw(title, lead, batch)`; of the leads what the task adds."""
    settings.progress("drawing")
    sections = []
    if settings.generated:
        lead = f"Made for this run; none of these handwritten digits was in training. {scenes_lead}"
        sections.append(draw("Fresh scenes", lead, leading(images.evaluated, SHOWN)))
    if images.photographs:
        lead = "Whole photographs" + (photographs_lead if settings.generated else ".")
        sections.append(draw("Photographs", lead, leading(images.photographs, MOST)))
    return sections


def _count(batches: Sequence[Batch]) -> int:
    return sum(len(batch.images) for batch in batches)


def image_preprocessing(opened: OpenedModel) -> Preprocessing:
    """How the model reads images; refused where it reads videos."""
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
    """A row for each recipe: answers on `batches`, speed on `images` (B, 3, H, W) with all models interleaved.

    `right` and `dense_right` are the percentages `figure`, top1 or miou, None where a picture has no label; `same`
    counts the answers that are the dense model's, None for embeddings and maps.
    """
    scored: dict[str, Any] = {}
    if all(bool((batch.labels >= 0).all()) for batch in batches):
        scored = {"k": 1} if figure == "top1" else {"labels": True}
    results = {label: fidelity(fast, dense, batches, **scored) for label, fast in fasts.items()}
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
        counts = comparison["agreement"] is not None and results[label].kind == "classes"
        rows.append(
            {
                "label": label,
                "recipe": str(fast.recipe),
                **{name: comparison[name] for name in ("agreement", "agreement_low", "agreement_high", "cosine")},
                "same": round(comparison["agreement"] * comparison["images"] / 100) if counts else None,
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
    """The first `count` pictures of all batches as one."""
    images, labels, paths, times = zip(*batches, strict=True)
    frame_times = None if times[0] is None else torch.cat(times)[:count]
    return Batch(torch.cat(images)[:count], torch.cat(labels)[:count], tuple(chain(*paths))[:count], frame_times)

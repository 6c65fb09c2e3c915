"""`tokensieve demo`: a recipe beside the dense model and beside what it must be better than, measured and drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data import Batch, Failure, Preprocessing, load_batches, photograph_set, scene_set
from ..errors import InputError, SieveError
from ..measure import SlicingLimit, fidelity, macs
from ..measure.budget import merge_to
from ..measure.outputs import nothing_read
from ..measure.speed import interleaved, summarise
from ..methods import PaPr
from ..recipe import Recipe
from ..stream import Sieved, sieve
from .demo_view import MERGING, RANDOM, RANDOM_PIXELS, RIVALS
from .explain import class_names
from .files import files_record, tell_files
from .page import Panel, Section
from .pictures import groups, heat, kept, photo
from .record import COUNTED, compared
from .rivals import Rivals, open_rivals, varied
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
    """Measure and draw a model under its recipe, on generated scenes and on photographs; `tell` hears what is going on.

    The photographs are the user's `images`, or those that scikit-image and scikit-learn ship.
    """
    dense, fast, _ = opened
    own = image_preprocessing(opened)
    record: Record = {"batch": batch, "figure": "top1"}
    size = (3, *own.input_size)
    settings = {"mean": own.mean, "std": own.std, "pretrained": pretrained}
    recipes = beside(dense, fast.recipe, size, **settings)
    fasts = open_rivals(dense, recipes, own.mean, own.std, pretrained=pretrained)
    named = class_names(dense) if not generated else [str(digit) for digit in range(10)]
    known: Rivals[str] = Rivals(fasts, dense, named)

    given: Dataset[Any] = Pictures(images, own, MOST) if images else photograph_set(own)
    tell_files(given)
    photographs = load_batches(given, batch)
    sections, asked = [], photographs
    if generated:
        tell(f"drawing {scenes} scenes")
        asked = load_batches(scene_set(own, scenes, seed), batch)
    tell("asking every model")
    asked_batches = list(asked)
    if not asked_batches:
        raise nothing_read(asked)
    tell(f"measuring speed for {seconds:g} s")
    first = torch.cat([leading(asked_batches, batch).images] * batch)[:batch]
    record["rows"] = measure_all(dense, fasts, asked_batches, first.to(opened.device, opened.dtype), seconds)
    record["pictures"] = sum(len(one.images) for one in asked_batches)
    tell("drawing")
    if generated:
        lead = "Made for this run; none of these handwritten digits was in training. A wrong answer is marked."
        sections.append(drawn("Fresh scenes", lead, leading(asked_batches, SHOWN), own.mean, own.std, known))
    seen = asked_batches if not generated else list(photographs)
    if images:
        record |= files_record(given, sum(len(one.images) for one in seen), photographs.failures)
    lead = "Whole photographs" + (", on which a reader of digits has only guesses." if generated else ".")
    if seen:
        sections.append(drawn("Photographs", lead, leading(seen, MOST), own.mean, own.std, known))
    return record, sections, list(photographs.failures)


def image_preprocessing(opened: OpenedModel) -> Preprocessing:
    """How the model reads images; refused where it reads videos."""
    if not isinstance(opened.preprocessing, Preprocessing):
        raise InputError(
            f"This demo shows models that read images, and {type(opened.dense).__name__} reads videos: --task video."
        )
    return opened.preprocessing


def beside(model: nn.Module, recipe: Recipe, input_size: Sequence[int], **settings: Any) -> dict[str, Recipe]:
    """A recipe by its text, and what it must be better than: random patches at its ratio, merging at its MACs."""
    chosen = {str(recipe): recipe}
    first = next(iter(recipe), None)
    if isinstance(first, PaPr) and first.ranks and first.asks_proposal:
        fast = sieve(model, recipe, **settings)
        label = RANDOM_PIXELS if fast.units == "pixels" else RANDOM
        chosen[label] = varied(recipe, significance="random", proposal_weights=None)
        try:
            budget = macs(fast, input_size)
            chosen[MERGING] = merge_to(model, budget, input_size)
        except SieveError:
            pass  # the recipe saves more than merging can, or the host cannot merge: one row fewer
    return chosen


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
    told = {label: fidelity(fast, dense, batches, **scored) for label, fast in fasts.items()}
    contestants: dict[str, Callable[[], object]] = {"dense": partial(dense, images)}
    for label, fast in fasts.items():
        limit = SlicingLimit.on(fast, images)
        contestants |= {label: partial(fast, images), f"{label}, limit": partial(limit, images)}
    with torch.no_grad():
        times = interleaved(contestants, seconds=seconds, min_rounds=5, max_rounds=100)
    whole, size = macs(dense, tuple(images.shape[1:])), tuple(images.shape[1:])
    some = leading(batches, COUNTED).images.to(images.device, images.dtype)
    rows = []
    for label, fast in fasts.items():
        speed = summarise(
            {"dense": times["dense"], "sieved": times[label], "limit": times[f"{label}, limit"]}, len(images)
        )
        total = macs(fast, images=some) if fast.plan.varies else macs(fast, size)
        found = compared(told[label])
        counts = found["agreement"] is not None and told[label].kind == "classes"
        rows.append(
            {
                "label": label,
                "recipe": str(fast.recipe),
                **{name: found[name] for name in ("agreement", "agreement_low", "agreement_high", "cosine")},
                "same": round(found["agreement"] * found["images"] / 100) if counts else None,
                **{name: found[side] and found[side][figure] for name, side in SIDES.items()},
                "macs": total,
                "macs_ratio": whole / total,
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
    shown = None if times[0] is None else torch.cat(times)[:count]
    return Batch(torch.cat(images)[:count], torch.cat(labels)[:count], tuple(chain(*paths))[:count], shown)


def drawn(
    title: str, lead: str, batch: Batch, mean: Sequence[float], std: Sequence[float], rivals: Rivals[str]
) -> Section:
    """A row of panels for each picture: as it is, its map, and what each recipe reads, with the answers."""
    rows = []
    for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
        picture, panels = photo(image, mean, std), list[Panel]()
        for name, (trace, verdict) in rivals.ask(image).items():
            tokens = trace.tokens
            assert tokens is not None
            grid = (tokens.grid[0], tokens.grid[1])
            if not panels:
                note = "" if verdict is None else f"dense: {verdict.dense}"
                panels.append(Panel(picture, "Input", note, "The picture as the model reads it"))
                if trace.significance is not None:
                    panels.append(Panel(heat(picture, trace.significance[0]), "Significance map", "", "Its map"))
            shown = picture
            if tokens.size is not None:
                shown = groups(picture, trace.source[0], grid)
            elif trace.masks:
                shown = kept(picture, trace.masks[0].kept[0], trace.masks[0].grid)
            wrong = verdict is not None and (verdict.sieved.index != label if label >= 0 else not verdict.same)
            said = "" if verdict is None else str(verdict.sieved)
            caption = name[0].upper() + name[1:] if name in RIVALS else "What the recipe reads"
            if isinstance(trace.kept, list) and trace.masks:
                caption += f" ({trace.masks[0].title.partition(', ')[2]})"
            panels.append(Panel(shown, caption, said, f"{caption}: {said}", alert=wrong))
        rows.append(tuple(panels))
    return Section(title, lead, panels=tuple(rows))

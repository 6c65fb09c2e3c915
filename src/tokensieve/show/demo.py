"""`tokensieve demo`: a recipe beside the dense model and beside what it must be better than, measured and drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Group, RenderableType
from rich.text import Text
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data import Batch, Failure, load_batches, photograph_set, scene_set
from ..errors import SieveError
from ..measure import SlicingLimit, fidelity, macs
from ..measure.budget import merge_to
from ..measure.intervals import SHARES
from ..measure.outputs import nothing_read
from ..measure.speed import interleaved, summarise
from ..methods import PaPr
from ..recipe import Recipe
from ..stream import Sieved, sieve
from .explain import class_names
from .files import files_record, tell_files
from .gallery import Pictures
from .page import Fact, Panel, Report, Section, Table
from .pictures import groups, heat, kept, photo
from .record import compared
from .rivals import Rivals, open_rivals, varied
from .tables import between, brief, giga, header, new_table, units

if TYPE_CHECKING:
    from ..model_spec import OpenedModel

Record = dict[str, Any]
SHOWN, MOST = 5, 12
"""Scenes that are drawn; photographs that are read."""
RANDOM, RANDOM_PIXELS, MERGING = "random patches", "random pixels", "merging alone"
RIVALS = (RANDOM, RANDOM_PIXELS, MERGING)
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
    dense, fast, own = opened
    record: Record = {"batch": batch}
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
    first = torch.cat([asked_batches[0].images] * batch)[:batch]
    record["rows"] = measure_all(dense, fasts, asked_batches, first.to(opened.device, opened.dtype), seconds)
    record["pictures"] = sum(len(one.images) for one in asked_batches)
    tell("drawing")
    if generated:
        lead = "Made for this run; none of these handwritten digits was in training. A wrong answer is marked."
        sections.append(drawn("Fresh scenes", lead, _first(asked_batches, SHOWN), own.mean, own.std, known))
    seen = asked_batches if not generated else list(photographs)
    if images:
        record |= files_record(given, sum(len(one.images) for one in seen), photographs.failures)
    lead = "Whole photographs" + (", on which a reader of digits has only guesses." if generated else ".")
    if seen:
        sections.append(drawn("Photographs", lead, _first(seen, MOST), own.mean, own.std, known))
    return record, sections, list(photographs.failures)


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
    dense: nn.Module, fasts: Mapping[str, Sieved], batches: Sequence[Batch], images: Tensor, seconds: float
) -> list[Record]:
    """A row for each recipe: answers on `batches`, speed on `images` (B, 3, H, W) with all models interleaved.

    `right` and `dense_right` are percentages, None where a picture has no label; `same` counts the answers that are the
    dense model's, None for embeddings.
    """
    k = 1 if all(bool((batch.labels >= 0).all()) for batch in batches) else None
    told = {label: fidelity(fast, dense, batches, k=k) for label, fast in fasts.items()}
    contestants: dict[str, Callable[[], object]] = {"dense": partial(dense, images)}
    for label, fast in fasts.items():
        contestants |= {label: partial(fast, images), f"{label}, limit": partial(SlicingLimit(fast), images)}
    with torch.no_grad():
        times = interleaved(contestants, seconds=seconds, min_rounds=5, max_rounds=100)
    whole, size = macs(dense, tuple(images.shape[1:])), tuple(images.shape[1:])
    rows = []
    for label, fast in fasts.items():
        speed = summarise(
            {"dense": times["dense"], "sieved": times[label], "limit": times[f"{label}, limit"]}, len(images)
        )
        total, scored = macs(fast, size), compared(told[label])
        rows.append(
            {
                "label": label,
                "recipe": str(fast.recipe),
                **{name: scored[name] for name in ("agreement", "agreement_low", "agreement_high", "cosine")},
                "same": None if scored["agreement"] is None else round(scored["agreement"] * scored["images"] / 100),
                **{name: scored[side] and scored[side]["top1"] for name, side in SIDES.items()},
                "macs": total,
                "macs_ratio": whole / total,
                "ratio": speed.ratio,
                "low": speed.low,
                "high": speed.high,
                "limit": speed.limit,
            }
        )
    return rows


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


def _first(batches: Sequence[Batch], count: int) -> Batch:
    """The first `count` pictures as one batch."""
    images, labels, paths, _ = zip(*batches, strict=True)
    return Batch(torch.cat(images)[:count], torch.cat(labels)[:count], tuple(chain(*paths))[:count])


def demo_report(record: Record, sections: Sequence[Section]) -> Report:
    """The page: the figures, the table of all recipes, the pictures."""
    ours, *others = record["rows"]
    facts = [
        Fact(f"{ours['macs_ratio']:.2f}x", "fewer MACs, proposal included"),
        Fact(f"{ours['ratio']:.2f}x", f"faster, measured; slicing alone gives {ours['limit']:.2f}x"),
    ]
    if ours["right"] is not None:
        ends = between(ours["right_low"], ours["right_high"])
        said = f"right answers {ends}; the dense model {ours['dense_right']:.1f} %"
        facts.append(Fact(f"{ours['right']:.1f} %", said))
        facts += [
            Fact(f"{row['right']:.1f} %", f"right answers with {row['label']}", alert=True)
            for row in others
            if row["label"] in (RANDOM, RANDOM_PIXELS)
        ]
    elif ours["agreement"] is not None:
        ends = between(ours["agreement_low"], ours["agreement_high"])
        facts.append(
            Fact(f"{ours['same']} of {record['pictures']}", f"answers as the dense model's, in percent {ends}")
        )
    head, rows = _cells(record)
    caption = f"{record['pictures']} pictures; speed at batch {record['batch']}, all models in turn in one process. "
    caption += f"In brackets: of shares {SHARES}'s 95 % interval, of speed the 10th and 90th percentile of the rounds."
    table = Table(head, tuple(map(tuple, rows)), caption)
    lead = f"{record['model']} under {brief(record['recipe']) or 'the empty recipe'}, beside the dense model."
    if ours["same"] is not None:
        lead += f" {ours['same']} of {record['pictures']} answers are the dense model's."
    machine = f"{record['machine']}, {record['threads']} threads, {record['dtype']}"
    sections = [Section("Beside the dense model", table=table), *sections]
    return Report(
        "What the model reads, and what it costs", lead, tuple(facts), tuple(sections), (f"Measured on {machine}.",)
    )


def demo_view(record: Record) -> RenderableType:
    """What the command prints: what ran, the table, the files."""
    head, rows = _cells(record)
    table = new_table(*head)
    for row in rows:
        table.add_row(*row)
    legend = (
        "Measured and limit: times faster than the dense model; the limit is the host on as many "
        f"{units(record)}, for free."
    )
    paths = [Text(path, style="bold") for path in record["out"]]
    return Group(header(record), "", table, "", Text(legend, style="dim"), "", *paths)


def _cells(record: Record) -> tuple[tuple[str, ...], list[list[str]]]:
    """Head and rows of the table, the dense model first; right answers and agreement where there are any."""
    rows, scored = record["rows"], record["rows"][0]["right"] is not None
    agreeing = record["rows"][0]["agreement"] is not None
    head = [
        "",
        *(["right"] if scored else []),
        "agrees" if agreeing else "cosine",
        "GMAC",
        "fewer",
        "measured",
        "limit",
    ]
    first = ["dense", *([f"{rows[0]['dense_right']:.1f}%"] if scored else []), "", giga(record["macs"]["dense"])]
    cells = [[*first, "", "", ""]]
    for row in rows:
        same = f"{row['same']} of {record['pictures']}" if agreeing else f"{row['cosine']:.3f}"
        cells.append(
            [
                brief(row["label"]),
                *([f"{row['right']:.1f}%"] if scored else []),
                same,
                giga(row["macs"]),
                f"{row['macs_ratio']:.2f}x",
                f"{row['ratio']:.2f}x [{row['low']:.2f}-{row['high']:.2f}]",
                f"{row['limit']:.2f}x",
            ]
        )
    return tuple(head), cells

"""From files and folders to the report that `tokensieve show` writes, and what it prints about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..data import Preprocessing
from ..measure import macs
from ..measure.outputs import nothing_read
from ..methods import PaPr
from .compare import compare_plot, compare_section, compare_table, grid_section, grid_table, map_costs, spoken
from .explain import explain
from .page import Fact, Report, Section
from .progress import TrackedBatches, working
from .record import averaged
from .tables import data_word, giga, header, new_table, percent, short, sides
from .variants import Variants, needs_proposal, ranking

if TYPE_CHECKING:
    from ..model_spec import ModelSpec, OpenedModel
    from ..recipe import Recipe

Record = dict[str, Any]

HOW_TO_READ = {
    "Significance map": "one colour for each patch, from dark blue (lowest) over green to yellow (highest).",
    "Kept patches": "what the host reads is as it was, with a light border; what it does not read is dark and grey.",
    "Merged patches": "patches that became one token have one colour, the mean of their pixels, and a border; "
    "a patch that is still a token of its own is shown as it is.",
    "Exits": "one colour for each block behind which patches left, the darker the earlier. No later block read them: "
    "their class is what the head there said. The surest patches of each class stay, as context for the others.",
    "Classes": "the class of each pixel, by the colours below each map.",
}
OF_STAGES = {
    "Significance map": "one colour for each pixel of the first map, from dark blue (lowest) over green to yellow "
    "(highest).",
    "Kept": "the pixels of a stage's map, of the first that leaves any out where one is shown, on which point-wise "
    "operators run are as they were, with a light border; the others are dark and grey.",
}


@dataclass(frozen=True)
class Gallery:
    """What is shown of all pictures: sections and figures for people, the record for programs."""

    sections: tuple[Section, ...]
    facts: tuple[Fact, ...]
    record: Record


def explained(
    opened: OpenedModel, batches: TrackedBatches, names: Mapping[str, str], classes: Sequence[str] | None
) -> Gallery:
    """Each picture under the recipe."""
    dense, fast, preprocessing = opened
    sections, pictures = [], list[Record]()
    dense_macs = macs(dense, opened.input_spec)
    for images, _, paths, _ in batches:
        results = explain(fast, dense, images, preprocessing.mean, preprocessing.std, classes)
        for path, image, result in zip(paths, images, results, strict=True):
            facts, cost = result.facts, {}
            if fast.plan.varies:
                cost = {"macs": macs(fast, images=image[None].to(opened.device, opened.dtype))}
                facts = (*facts, Fact(f"{dense_macs / cost['macs']:.2f}x", "fewer MACs in this picture"))
            sections.append(Section(names[path], facts=facts, panels=(result.panels,)))
            pictures.append({"path": path, "name": names[path], **result.record(), **cost})
    if not pictures:
        raise nothing_read(batches)
    record: Record = {"pictures": pictures}
    if fast.plan.varies:
        record |= averaged(fast, dense_macs, image[None].to(opened.device, opened.dtype), pictures)
    return Gallery(tuple(sections), answer_facts(pictures), record)


def answer_facts(records: Sequence[Record]) -> tuple[Fact, ...]:
    """How many answers stay, of records of pictures or clips, or how much of class maps; nothing of other outputs."""
    if records[0]["dense"]:
        same = [record["same"] for record in records]
        before, after = (fmean(values) for values in zip(*_confidences(records), strict=True))
        return (
            Fact(f"{sum(same)} of {len(same)}", "answers stay"),
            Fact(f"{percent(before)} → {percent(after)}", "mean confidence in the dense answer"),
        )
    if records[0].get("agreement") is not None:
        stays = fmean(record["agreement"] for record in records) / 100
        return (Fact(percent(stays), "of the pixels as in the dense map"),)
    return ()


def grid(
    variants: Variants[Any], preprocessing: Preprocessing, batches: TrackedBatches, names: Mapping[str, str]
) -> Gallery:
    """Each picture under every proposal and keep ratio, and a table of all."""
    sections, pictures = _each(grid_section, variants, preprocessing, batches, names)
    table, entries = grid_table(variants, (3, *preprocessing.input_size))
    return Gallery((*sections, Section("Summary", table=table)), (), {"pictures": pictures, "grid": entries})


def compared(
    variants: Variants[Any], preprocessing: Preprocessing, batches: TrackedBatches, names: Mapping[str, str]
) -> Gallery:
    """Each picture under every map, and a table and a chart of what each map is worth and costs."""
    if batches.first is None:
        raise nothing_read(batches)
    with working("measuring what each map costs"):
        costs = map_costs(variants.fasts, variants.dense, batches.first.images[0])
    sections, pictures = _each(partial(compare_section, costs=costs), variants, preprocessing, batches, names)
    table, entries = compare_table(variants, costs)
    summary = Section("Summary", table=table, plot=compare_plot(entries))
    return Gallery((*sections, summary), (), {"pictures": pictures, "compare": entries})


def _each(
    section: Callable[..., tuple[Section, Record]],
    variants: Variants[Any],
    preprocessing: Preprocessing,
    batches: TrackedBatches,
    names: Mapping[str, str],
) -> tuple[list[Section], list[Record]]:
    sections, pictures = [], []
    for images, _, paths, _ in batches:
        for image, path in zip(images, paths, strict=True):
            section_drawn, entry = section(names[path], image, preprocessing.mean, preprocessing.std, variants)
            sections.append(section_drawn)
            pictures.append({"path": path, "name": names[path], **entry})
    if not pictures:
        raise nothing_read(batches)
    return sections, pictures


def _confidences(pictures: Iterable[Record]) -> Iterable[tuple[float, float]]:
    """In each picture's dense answer: that of the dense model, that of the sieved one."""
    return ((picture["dense"]["probability"], picture["confidence"]) for picture in pictures)


def random_parts(spec: ModelSpec, recipes: Iterable[Recipe]) -> list[str]:
    """Which of host and proposal have random weights."""
    if spec.pretrained:
        return []
    with_proposal = [ranking(recipe) for recipe in recipes if needs_proposal(recipe)]
    parts = {
        "model": spec.weights is None and not spec.model_is_callable,
        "proposal": any(method.proposal_weights is None for method in with_proposal),
    }
    return [name for name, random in parts.items() if random]


def report(record: Record, gallery: Gallery, recipe: Recipe) -> Report:
    """The page: what ran and what it saves, the pictures, how to read them."""
    macs, videos = record["macs"], "clips" in record
    count = record["files"]["read"] if videos else len(record["pictures"])
    per_picture = not ("grid" in record or "compare" in record)
    facts = list(gallery.facts)
    if per_picture:
        facts = [
            Fact(f"{macs['ratio']:.2f}x", "fewer MACs, proposal included" if macs["proposal"] else "fewer MACs"),
            _left(record),
            *facts,
        ]
    lead = f"{record['model']} at {sides(record)} pixels under {_spoken(recipe)}"
    lead += (
        ", with the significance maps below." if "compare" in record else "." if per_picture else ", varied as below."
    )
    if count < record["total"]:
        lead += f" {count} of {record['total']} {data_word(record)}."
    explained = OF_STAGES if record["stages"] else HOW_TO_READ
    reading_notes = (
        how_to_read(gallery.sections, explained)
        if per_picture
        else [f"{k}: {v}" for k, v in list(explained.items())[:2]]
    )
    notes = [*_warning(record), *reading_notes]
    return Report("What the model reads", lead, tuple(facts), gallery.sections, tuple(notes))


def how_to_read(sections: Iterable[Section], explained: Mapping[str, str] = HOW_TO_READ) -> list[str]:
    """A sentence on each kind of panel that is there; `explained` says what, by the beginning of their captions."""
    captions = {panel.caption for section in sections for row in section.panels for panel in row if panel}
    return [
        f"{name}: {meaning}"
        for name, meaning in explained.items()
        if any(caption.startswith(name) for caption in captions)
    ]


def _left(record: Record) -> Fact:
    """How much of a picture is left to read."""
    if record["stages"]:
        share = fmean(count / stage["pixels"] for stage in record["stages"] for count in stage["per_block"])
        return Fact(percent(share), "of the pixels, mean over the blocks")
    tokens = record["tokens"]
    mean = ", mean over the pictures" if "pictures" in record["macs"] else ""
    return Fact(f"{tokens['per_block'][-1]} of {tokens['dense']}", f"tokens in the last block{mean}")


def _spoken(recipe: Recipe) -> str:
    """The recipe without the places of its files, which concern nobody else."""
    bare = [replace(m, proposal_weights=None) if isinstance(m, PaPr) else m for m in recipe]
    return " + ".join(map(str, bare)) or "the empty recipe, which drops and merges nothing"


def _warning(record: Record) -> list[str]:
    parts = record["random"]
    text = f"The weights of the {' and the '.join(parts)} are random: what they answer and point at means nothing."
    return [text] if parts else []


def show_view(record: Record) -> RenderableType:
    """What the command prints: what ran, a line for each picture or the table of all, the files."""
    parts: list[RenderableType] = [header(record), ""]
    if "clips" in record:
        table = new_table("", "from", "to", "dense", "sieved", text=(3, 4))
        for row in record["clips"]:
            span = (f"{row[end]:.2f} s" for end in ("start", "end"))
            table.add_row(row["name"], *span, *(answer_cell(row[side]) for side in ("dense", "sieved")))
    elif "compare" in record:
        table = new_table("", "answers kept", "confidence", "MACs", "ms", "of dense time")
        for row in record["compare"]:
            shares = [percent(row[key]) for key in ("answers_kept", "confidence", "share_of_macs")]
            table.add_row(row["map"], *shares, short(1000 * row["seconds"]), percent(row["share_of_time"]))
    elif "grid" in record:
        table = new_table("", "keep", "answers kept", "confidence", "GMAC", "fewer MACs")
        for row in record["grid"]:
            scores = ["" if row[key] is None else percent(row[key]) for key in ("answers_kept", "confidence")]
            table.add_row(row["proposal"], spoken(row["keep"]), *scores, giga(row["macs"]), f"{row['ratio']:.2f}x")
    elif record["pictures"][0]["agreement"] is not None:
        adaptive = "macs" in record["pictures"][0]
        table = new_table("", "pixels as in the dense map", *(["fewer MACs"] if adaptive else []))
        for row in record["pictures"]:
            fewer = [f"{record['macs']['dense'] / row['macs']:.2f}x"] if adaptive else []
            table.add_row(row["name"], percent(row["agreement"] / 100), *fewer)
    else:
        table = new_table("", "dense", "sieved", text=(1, 2))
        for row in record["pictures"]:
            table.add_row(row["name"], *(answer_cell(row[side]) for side in ("dense", "sieved")))
    parts += [table, ""]
    parts += [Text(sentence, style="dim") for sentence in _warning(record)]
    return Group(*parts, *(Text(path, style="bold") for path in record["out"]))


def answer_cell(answer: Mapping[str, Any] | None) -> str:
    """An answer of a record in words; nothing of a host without a classifier."""
    return "" if answer is None else f"{answer['name'] or answer['index']} {percent(answer['probability'])}"

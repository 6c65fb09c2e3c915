"""Makes the report that `tokensieve show` writes, and the text that it prints."""

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
from .compare import compare_plot, compare_section, compare_table, grid_section, grid_table, map_costs, ratio_text
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
    "Kept patches": "patches that the host reads are unchanged, with a light border; dropped ones are dark and grey.",
    "Merged patches": "patches that became one token have one colour, the mean of their pixels, and a border; "
    "a patch that was not merged is unchanged.",
    "Exits": "one colour for each block after which patches exit, darker for earlier blocks. No later block reads "
    "them: their class is the prediction of the head at that exit. The most confident patches of each class stay, as "
    "context for the others.",
    "Classes": "the class of each pixel, by the colours below each map.",
}
HOW_TO_READ_STAGES = {
    "Significance map": "one colour for each pixel of the first map, from dark blue (lowest) over green to yellow "
    "(highest).",
    "Kept": "pixels of a stage's map (of the first stage that drops any, if one is shown) on which point-wise "
    "operators run are unchanged, with a light border; the others are dark and grey.",
}


@dataclass(frozen=True)
class Gallery:
    """The drawn pictures: sections and figures for the page, and the record as plain JSON."""

    sections: tuple[Section, ...]
    facts: tuple[Fact, ...]
    record: Record


def explained(
    opened: OpenedModel, batches: TrackedBatches, names: Mapping[str, str], classes: Sequence[str] | None
) -> Gallery:
    """A section for each picture under the recipe."""
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
    """Figures over all pictures or clips: predictions that stay the same, or pixels of class maps; else empty."""
    if records[0]["dense"]:
        same = [record["same"] for record in records]
        before, after = (fmean(values) for values in zip(*_confidences(records), strict=True))
        return (
            Fact(f"{sum(same)} of {len(same)}", "answers stay"),
            Fact(f"{percent(before)} → {percent(after)}", "mean confidence in the dense answer"),
        )
    if records[0].get("agreement") is not None:
        same_share = fmean(record["agreement"] for record in records) / 100
        return (Fact(percent(same_share), "of the pixels as in the dense map"),)
    return ()


def grid(
    variants: Variants[Any], preprocessing: Preprocessing, batches: TrackedBatches, names: Mapping[str, str]
) -> Gallery:
    """A section for each picture with every proposal and keep ratio, and a summary table."""
    sections, pictures = _sections_of_all(grid_section, variants, preprocessing, batches, names)
    table, entries = grid_table(variants, (3, *preprocessing.input_size))
    return Gallery((*sections, Section("Summary", table=table)), (), {"pictures": pictures, "grid": entries})


def compared(
    variants: Variants[Any], preprocessing: Preprocessing, batches: TrackedBatches, names: Mapping[str, str]
) -> Gallery:
    """A section for each picture with every map, and a table and a chart of the maps' cost and confidence."""
    if batches.first is None:
        raise nothing_read(batches)
    with working("measuring the cost of each map"):
        costs = map_costs(variants.fasts, variants.dense, batches.first.images[0])
    sections, pictures = _sections_of_all(
        partial(compare_section, costs=costs), variants, preprocessing, batches, names
    )
    table, entries = compare_table(variants, costs)
    summary = Section("Summary", table=table, plot=compare_plot(entries))
    return Gallery((*sections, summary), (), {"pictures": pictures, "compare": entries})


def _sections_of_all(
    section: Callable[..., tuple[Section, Record]],
    variants: Variants[Any],
    preprocessing: Preprocessing,
    batches: TrackedBatches,
    names: Mapping[str, str],
) -> tuple[list[Section], list[Record]]:
    """The section and the record of every picture, made by the function `section`."""
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
    """For each picture, the probability of the dense prediction in the dense and in the sieved model."""
    return ((picture["dense"]["probability"], picture["confidence"]) for picture in pictures)


def random_parts(spec: ModelSpec, recipes: Iterable[Recipe]) -> list[str]:
    """Names of the parts, model and proposal, that have random weights."""
    if spec.pretrained:
        return []
    with_proposal = [ranking(recipe) for recipe in recipes if needs_proposal(recipe)]
    parts = {
        "model": spec.weights is None and not spec.model_is_callable,
        "proposal": any(method.proposal_weights is None for method in with_proposal),
    }
    return [name for name, random in parts.items() if random]


def report(record: Record, gallery: Gallery, recipe: Recipe) -> Report:
    """The page: the setup and the saving, the pictures, and notes on how to read them."""
    macs, videos = record["macs"], "clips" in record
    count = record["files"]["read"] if videos else len(record["pictures"])
    per_picture = not ("grid" in record or "compare" in record)
    facts = list(gallery.facts)
    if per_picture:
        facts = [
            Fact(f"{macs['ratio']:.2f}x", "fewer MACs, proposal included" if macs["proposal"] else "fewer MACs"),
            _remaining(record),
            *facts,
        ]
    lead = f"{record['model']} at {sides(record)} pixels under {_recipe_text(recipe)}"
    lead += (
        ", with the significance maps below." if "compare" in record else "." if per_picture else ", varied as below."
    )
    if count < record["total"]:
        lead += f" {count} of {record['total']} {data_word(record)}."
    explained = HOW_TO_READ_STAGES if record["stages"] else HOW_TO_READ
    reading_notes = (
        how_to_read(gallery.sections, explained)
        if per_picture
        else [f"{k}: {v}" for k, v in list(explained.items())[:2]]
    )
    notes = [*_warning(record), *reading_notes]
    return Report("What the model reads", lead, tuple(facts), gallery.sections, tuple(notes))


def how_to_read(sections: Iterable[Section], explained: Mapping[str, str] = HOW_TO_READ) -> list[str]:
    """A sentence for each kind of panel in the sections; `explained` maps the start of captions to explanations."""
    captions = {panel.caption for section in sections for row in section.panels for panel in row if panel}
    return [
        f"{name}: {meaning}"
        for name, meaning in explained.items()
        if any(caption.startswith(name) for caption in captions)
    ]


def _remaining(record: Record) -> Fact:
    """The share of pixels, or the number of tokens, that the model still reads."""
    if record["stages"]:
        share = fmean(count / stage["pixels"] for stage in record["stages"] for count in stage["per_block"])
        return Fact(percent(share), "of the pixels, mean over the blocks")
    tokens = record["tokens"]
    mean = ", mean over the pictures" if "pictures" in record["macs"] else ""
    return Fact(f"{tokens['per_block'][-1]} of {tokens['dense']}", f"tokens in the last block{mean}")


def _recipe_text(recipe: Recipe) -> str:
    """The recipe as text, without the paths of weights files."""
    bare = [replace(m, proposal_weights=None) if isinstance(m, PaPr) else m for m in recipe]
    return " + ".join(map(str, bare)) or "the empty recipe, which drops and merges nothing"


def _warning(record: Record) -> list[str]:
    parts = record["random"]
    text = f"The weights of the {' and the '.join(parts)} are random: predictions and maps mean nothing."
    return [text] if parts else []


def show_view(record: Record) -> RenderableType:
    """The text that the command prints: the setup, a row for each picture or a summary table, the files."""
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
            table.add_row(row["proposal"], ratio_text(row["keep"]), *scores, giga(row["macs"]), f"{row['ratio']:.2f}x")
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
    """A prediction of a record as text; empty for a host without a classifier."""
    return "" if answer is None else f"{answer['name'] or answer['index']} {percent(answer['probability'])}"

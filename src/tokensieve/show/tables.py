"""Shared parts of the command line's tables, which are made from the records that `--json` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

from rich import box
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from ..search.default import DEFAULT_RECIPE_TEXT
from .files import files_line

Record = dict[str, Any]
WIDEST = 100_000


def cascade_lines(cascade: Record) -> Iterator[tuple[str, str]]:
    """Lines of two cells about a cascade: the share of images and the MACs of each member, and the promise."""
    rules = [*(f", go on if {cascade['score']} is below {limit:.3g}" for limit in cascade["thresholds"]), ""]
    for index, (member, rule) in enumerate(zip(cascade["members"], rules, strict=True)):
        name = brief(member["recipe"]) or "dense"
        text = f"{name}: {percent(member['share'])} of the images, {giga(member['macs'])} G{rule}"
        yield "" if index else "members", text if member["macs"] else f"{name}: left out"
    if cascade["agree"] is not None:
        promise = f"{100 * cascade['agree']:g} % agreement with the dense model, confidence {cascade['confidence']:g}"
        yield "promise", f"{promise}, calibrated on {cascade['images']} images"
    if not cascade["one_host"]:
        yield "memory", "the members do not share weights: all weights are held in memory"


def between(low: float | None, high: float | None) -> str:
    """The interval of a percentage as text; empty if it is None."""
    return "" if low is None else f"[{low:.1f}-{high:.1f}]"


def header(record: Record) -> RenderableType:
    """The lines above a table: model, recipe, machine, data, MACs and tokens."""
    grid = Table.grid(padding=(0, 2))
    kind = "weights from file" if record["weights"] else "pretrained" if record["pretrained"] else "random weights"
    grid.add_row("model", Text(f"{record['model']}, {sides(record)}, {kind}", style="bold"))
    recipe_text = "a cascade" if record.get("cascade") else short_recipe(record["recipe"]) or "(empty)"
    grid.add_row("recipe", Text(recipe_text, style="bold"))
    if record.get("recipe_is_default"):
        grid.add_row("", Text(f"the default: {DEFAULT_RECIPE_TEXT}; --recipe gives another", style="dim"))
    threads = record["threads"]
    packed = ", weights packed once" if record.get("prepacked") and not record.get("waterfall") else ""
    grid.add_row(
        "machine",
        f"{record['machine']}, {record['device']}, {record['dtype']}{packed}, {threads} thread"
        f"{'s' if threads != 1 else ''}, torch {record['versions']['torch'].split('+')[0]}",
    )
    if "images" in record:
        word = "video" if reads_videos(record) else "image"
        count = f"{record['images']} {word}{'s' if record['images'] != 1 else ''}"
        grid.add_row("data", Text(f"{record['data']}, {count}, {_prepared(record['preprocessing'])}"))
    if record.get("decoding"):
        pictures, workers = record["decoding"]["pictures"], record["decoding"]["workers"]
        readers = f"{workers} worker{'s' if workers > 1 else ''}" if workers else "this process"
        grid.add_row("data", Text(f"{record['data']}, {pictures} {data_word(record)} decoded by {readers}"))
    if "files" in record:
        grid.add_row("files", files_line(record["files"]))
    macs = record["macs"]
    proposal = f", proposal {giga(macs['proposal'])} included" if macs["proposal"] else ""
    grid.add_row("MACs", f"{giga(macs['dense'])} → {giga(macs['sieved'])} G {a_unit(record)}{proposal}")
    if record.get("cascade"):
        for cells in cascade_lines(record["cascade"]):
            grid.add_row(*cells)
    elif record["stages"]:
        grid.add_row("pixels", _pixels(record["stages"]))
    else:
        grid.add_row("tokens", _tokens(record["tokens"]["dense"], record["tokens"]["per_block"]))
    return grid


def reads_videos(record: Record) -> bool:
    """Whether the model of a record reads clips of videos instead of images."""
    return "T" in record.get("layout", "")


def a_unit(record: Record) -> str:
    """The unit of MACs and milliseconds: "a clip" or "an image"."""
    return "a clip" if reads_videos(record) else "an image"


def data_word(record: Record) -> str:
    """The kind of data in a record, in the plural."""
    return "videos" if reads_videos(record) else "pictures"


def sides(record: Record) -> str:
    """The input size of the model: "224 x 224", or "16 frames of 224 x 224"."""
    size = " x ".join(map(str, record["input_size"][-2:]))
    return f"{record['input_size'][record['layout'].index('T')]} frames of {size}" if reads_videos(record) else size


def _prepared(preprocessing: Record) -> str:
    """The preprocessing of images or videos as text."""
    if "frames" not in preprocessing:
        return f"preprocessing {preprocessing['name']}"
    dense = preprocessing["sampling"] == "dense"
    spaced = f"every {ordinal(preprocessing['stride'])} frame" if dense else "frames from all of the video"
    return f"{spaced}, {preprocessing['views']} views"


def ordinal(number: int) -> str:
    """1 -> "1st", 4 -> "4th"."""
    end = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in (11, 12, 13) else 0, "th")
    return f"{number}{end}"


def _pixels(stages: list[Record]) -> str:
    """The pixels that the point-wise operators of each stage run on."""
    parts = []
    for stage in stages:
        first, last = stage["per_block"][0], stage["per_block"][-1]
        parts.append(f"{stage['pixels']} → {first}" + (f" to {last}" if first != last else ""))
    return f"{', '.join(parts)} by stage"


def units(record: Record) -> str:
    """The unit that the recipe of a record reduces: `tokens` or `pixels`."""
    return "pixels" if record["stages"] else "tokens"


def _tokens(dense: int, per_block: list[int]) -> str:
    """The tokens that each block's MLP reads, prefix included."""
    first, last, depth = per_block[0], per_block[-1], len(per_block)
    if len(set(per_block)) == 1:
        return f"{dense} → {first} in all {depth} blocks"
    return f"{dense} → {first} in the first block, {last} in the last of {depth}"


def print_whole(view: RenderableType) -> None:
    """Print to stdout. In a file or a pipe a table is as wide as its cells, whatever the width of the console."""
    console = Console(highlight=False)
    for piece in [view] if console.is_terminal else _parts(view):
        if isinstance(piece, Table) and piece.box is not None and not console.is_terminal:
            width = console.measure(piece, options=console.options.update(max_width=WIDEST)).maximum
            Console(highlight=False, width=max(console.width, width)).print(piece)
        else:
            console.print(piece)


def _parts(view: RenderableType) -> Iterator[RenderableType]:
    if isinstance(view, Group):
        for piece in view.renderables:
            yield from _parts(piece)
    else:
        yield view


def new_table(first: str, *columns: str, text: Sequence[int] = ()) -> Table:
    """A table of figures with a head. The columns `text`, and a first column without a name, hold text.

    In a narrow console text wraps to further lines; figures do not.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, name in enumerate((first, *columns)):
        wraps = index in text or not (index or name)
        justify: JustifyMethod = "left" if wraps else "right"
        table.add_column(name, justify=justify, no_wrap=not wraps, overflow="fold" if wraps else "ellipsis")
    return table


def with_spread(ratio: float, low: float, high: float, style: str = "") -> Text:
    """A ratio with its spread, "1.52x [1.48-1.57]"."""
    return Text.assemble((times(ratio), style), f" [{times(low)[:-1]}-{times(high)[:-1]}]")


def times(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 10 else f"{short(ratio)}x"


def giga(macs: float) -> str:
    return f"{macs / 1e9:#.4g}"


def percent(share: float) -> str:
    """0.831 -> 83 %; with one decimal below ten."""
    if 0 < share < 0.0005:
        return "<0.1\u00a0%"
    return f"{100 * share:.{0 if share == 0 or share >= 0.0995 else 1}f}\u00a0%"


def short(value: float) -> str:
    """A number with at least three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def brief(recipe: str, most: int = 100) -> str:
    """Recipe text for a page or a cell: without the folders of files; if it is long, only the names of the methods."""
    shortened = re.sub(r"(weights=)(['\"])(.*?)\2", lambda match: match[1] + PurePath(match[3]).name, recipe)
    if len(shortened) <= most:
        return shortened
    return " + ".join(method.partition("(")[0] for method in re.split(r"(?<=\))\s\+\s", shortened))


def short_recipe(text: str, most: int = 400) -> str:
    """Recipe text, shortened in the middle if it does not fit a table."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 4 :]}"

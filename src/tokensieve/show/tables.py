"""What the command line prints for people, made from the same record that `--json` prints for programs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Any

from rich import box
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from ..measure.intervals import DIFFERENCES, SHARES
from ..search.default import SAID
from .files import files_line

Record = dict[str, Any]
WIDEST = 100_000


def bench_view(record: Record) -> RenderableType:
    """The record of `tokensieve bench`: what ran, a row for each batch size or step, the verdicts."""
    return _waterfall_view(record) if record["waterfall"] else _runs_view(record)


def _runs_view(record: Record) -> RenderableType:
    macs, decoding = record["macs"], record["decoding"]
    map_alone = not macs["proposal"] and any(run["proposal_share"] for run in record["runs"])
    table = new_table(
        "batch", "MACs", "limit", "measured", "of limit", "map" if map_alone else "proposal", f"ms {a_unit(record)}"
    )
    memory = new_table("batch", "peak MiB, dense", "peak MiB, sieved")
    pictures = new_table("batch", f"{data_word(record)} a second", "dense", "sieved")
    for run in record["runs"]:
        seconds, images = run["seconds"], run["batch"]
        taken = " → ".join(short(1000 * seconds[name] / images) for name in ("dense", "sieved"))
        table.add_row(
            str(images),
            times(macs["ratio"]),
            times(run["limit"]),
            with_spread(run["ratio"], run["low"], run["high"], style="bold"),
            f"{100 * run['of_limit']:.0f}%",
            f"{100 * run['proposal_share']:.1f}%" if macs["proposal"] or run["proposal_share"] else "none",
            taken,
        )
        if run["memory_bytes"]:
            memory.add_row(str(images), *(short(run["memory_bytes"][name] / 2**20) for name in ("dense", "sieved")))
        if decoding:
            rates = decoding["per_second"], *run["images_per_second"].values()
            pictures.add_row(str(images), *map(short, rates))
    tables = [part for shown in (table, memory, pictures) if shown.row_count for part in ("", shown)]
    legend = (
        "MACs and speed: dense over sieved, proposal included. "
        f"Limit: the host on as many {units(record)}, with selection and proposal for free."
    )
    said = _verdicts((f"batch {run['batch']}", run["verdict"]) for run in record["runs"])
    return Group(header(record), *tables, Text(legend, style="dim"), "", said, "", *_loss(record))


def _loss(record: Record) -> list[RenderableType]:
    """What the recipe loses, or how that is found out."""
    if record["loss"] is not None:
        told = Text.assemble(
            ("loss ", "bold"), f"on {record['loss']['images']} {data_word(record)}: {lost(record['loss'])}"
        )
        return [told, Text(INTERVALS, style="dim")]
    missing = [
        *(["weights (--pretrained or --weights FILE)"] if not (record["pretrained"] or record["weights"]) else []),
        *([f"{data_word(record)} (--data FOLDER)"] if record["data"] is None else []),
    ]
    how = f"give {' and '.join(missing)}, or see tokensieve eval"
    return [Text.assemble(("loss ", "bold"), f"not measured: {how}.")]


def _waterfall_view(record: Record) -> RenderableType:
    rows, decoding = record["waterfall"], record["decoding"]
    table = new_table("", "ms", "over dense", "this step", "limit", "of limit", "MiB")
    table.padding = (0, 1, 0, 0)
    said = []
    for row in rows:
        first, skipped = row["step"] == "dense", "reason" in row
        name = row["step"] if first else f"+ {row['step']}"
        if row["step"] == "batch" and not skipped:
            name += f" {row['batch']}"
        said.append((name, row["verdict"]))
        if skipped:
            table.add_row(name, *["-"] * 6, style="dim")
            continue
        limit = ("", "") if row["limit"] is None else (times(row["limit"]), f"{100 * row['of_limit']:.0f}%")
        table.add_row(
            name,
            short(1000 / row["images_per_second"]),
            "" if first else with_spread(row["ratio"], row["low"], row["high"], style="bold"),
            "" if first else with_spread(row["gain"], row["gain_low"], row["gain_high"]),
            *limit,
            short(row["memory_bytes"] / 2**20),
        )
    legend = (
        f"Each row adds one thing to the row before, at batch {rows[0]['batch']} until the last. ms: {a_unit(record)}. "
        "Over dense, limit: the first row's time over the row's, and over the slicing limit's in the same precision, "
        "compilation and batch. MiB: peak memory, weights not counted."
    )
    parts: list[RenderableType] = [header(record), "", table, Text(legend, style="dim"), ""]
    found = Table.grid(padding=(0, 2))
    changed = [f"{name} {short(100 * row['difference'])}%" for row, name in _measured(rows, said, "difference")]
    if changed:
        found.add_row("outputs", f"largest difference from the recipe in fp32: {', '.join(changed)}")
    agreed = [f"{name} {row['agreement']:.1f}%" for row, name in _measured(rows, said, "agreement")]
    if agreed:
        count = min(rows[0]["compared"], decoding["pictures"])
        found.add_row("classes", f"same as the dense model's on {count} {data_word(record)}: {', '.join(agreed)}")
    if decoding:
        rates = [f"{name} {short(row['images_per_second'])}" for row, name in _measured(rows, said, "batch")]
        found.add_row(data_word(record), f"a second: decoding {short(decoding['per_second'])}, {', '.join(rates)}")
    if found.row_count:
        parts += [found, ""]
    return Group(*parts, _verdicts((name, sentences) for name, sentences in said if sentences))


def _measured(rows: list[Record], said: list[tuple[str, Any]], figure: str) -> list[tuple[Record, str]]:
    """The rows that have a figure, with their names."""
    return [
        (row, name.removeprefix("+ ")) for row, (name, _) in zip(rows, said, strict=True) if row.get(figure) is not None
    ]


def _verdicts(said: Iterable[tuple[str, list[str]]]) -> RenderableType:
    """What is said of each row of a table: the result, then its reasons."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    for name, (result, *reasons) in said:
        grid.add_row(name, Text.assemble((result, "bold"), *(f" {text}" for text in reasons)))
    return grid


def eval_view(record: Record) -> RenderableType:
    """The record of `tokensieve eval`: what ran, both models beside each other, how far they agree."""
    scored = record["dense"] is not None
    ks = list(record["dense"]) if scored else []
    table = new_table("", *(k.replace("top", "top-") for k in ks), f"GMAC {a_unit(record)}")
    for name in ("dense", "sieved"):
        cells = [f"{record[name][k]:.1f}% {between(record[f'{name}_low'][k], record[f'{name}_high'][k])}" for k in ks]
        table.add_row(name, *cells, giga(record["macs"][name]))
    ends = [(record["change_low"][k], record["change_high"][k]) for k in ks]
    changes = [
        f"{signed(record['change'][k])} [{signed(low)} to {signed(high)}]"
        for k, (low, high) in zip(ks, ends, strict=True)
    ]
    table.add_row("change", *changes, f"{record['macs']['ratio']:.2f}x fewer", style="dim")
    said = Text.assemble(("sieved against dense: ", "bold"), lost(record))
    return Group(header(record), "", table, "", said, Text(f"{INTERVALS} Change: percentage points.", style="dim"))


INTERVALS = f"In brackets: 95 % intervals, of shares {SHARES}'s, of changes and means by {DIFFERENCES} over the images."


def lost(record: Record) -> str:
    """How far a sieved model is from its dense one, of what `record.compared` tells."""
    found = [f"cosine {_mean(record, 'cosine')}"]
    ends = between(record["agreement_low"], record["agreement_high"])
    if record.get("neighbours") is not None:
        near = between(record["neighbours_low"], record["neighbours_high"])
        found.append(f"same nearest neighbour {record['neighbours']:.1f}% {near}")
    if record.get("kind") == "class-map":
        found = [
            f"same class {record['agreement']:.1f}% of the pixels {ends}",
            f"KL {_mean(record, 'kl')} nats",
            *found,
        ]
    elif record.get("kind") == "depth":
        found = [
            f"{record['agreement']:.1f}% of the pixels within a factor of 1.25 {ends}",
            f"relative error {_mean(record, 'divergence')}",
            *found,
        ]
    elif record["agreement"] is not None:
        count = record["images"]
        same = f"{round(record['agreement'] * count / 100)} of {count}"
        found = [f"same class {same}, {record['agreement']:.1f}% {ends}", f"KL {_mean(record, 'kl')} nats", *found]
    return ", ".join(found)


def _mean(record: Record, name: str) -> str:
    low, high = record[f"{name}_low"], record[f"{name}_high"]
    return f"{record[name]:.4f}" + ("" if low is None else f" [{low:.4f}-{high:.4f}]")


def between(low: float | None, high: float | None) -> str:
    """The interval of a percentage; nothing where there is none."""
    return "" if low is None else f"[{low:.1f}-{high:.1f}]"


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def header(record: Record) -> RenderableType:
    """The lines above a table: model, recipe, machine, and what the recipe does."""
    grid = Table.grid(padding=(0, 2))
    kind = "weights from file" if record["weights"] else "pretrained" if record["pretrained"] else "random weights"
    grid.add_row("model", Text(f"{record['model']}, {sides(record)}, {kind}", style="bold"))
    grid.add_row("recipe", Text(short_recipe(record["recipe"]) or "(empty)", style="bold"))
    if record.get("recipe_is_default"):
        grid.add_row("", Text(f"the default: {SAID}; --recipe gives another", style="dim"))
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
        who = f"{workers} worker{'s' if workers > 1 else ''}" if workers else "this process"
        grid.add_row("data", Text(f"{record['data']}, {pictures} {data_word(record)} decoded by {who}"))
    if "files" in record:
        grid.add_row("files", files_line(record["files"]))
    macs = record["macs"]
    proposal = f", proposal {giga(macs['proposal'])} included" if macs["proposal"] else ""
    grid.add_row("MACs", f"{giga(macs['dense'])} → {giga(macs['sieved'])} G {a_unit(record)}{proposal}")
    if record["stages"]:
        grid.add_row("pixels", _pixels(record["stages"]))
    else:
        grid.add_row("tokens", _tokens(record["tokens"]["dense"], record["tokens"]["per_block"]))
    return grid


def reads_videos(record: Record) -> bool:
    """Whether the model of a record reads clips of videos, and not images."""
    return "T" in record.get("layout", "")


def a_unit(record: Record) -> str:
    """What MACs and milliseconds are of."""
    return "a clip" if reads_videos(record) else "an image"


def data_word(record: Record) -> str:
    """What the data of a record is made of, in the plural."""
    return "videos" if reads_videos(record) else "pictures"


def sides(record: Record) -> str:
    """The size of what the model reads: "224 x 224", or "16 frames of 224 x 224"."""
    size = " x ".join(map(str, record["input_size"][-2:]))
    return f"{record['input_size'][record['layout'].index('T')]} frames of {size}" if reads_videos(record) else size


def _prepared(preprocessing: Record) -> str:
    """How images or videos became tensors."""
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
    """What the point-wise operators of each stage run on."""
    said = []
    for stage in stages:
        first, last = stage["per_block"][0], stage["per_block"][-1]
        said.append(f"{stage['pixels']} → {first}" + (f" to {last}" if first != last else ""))
    return f"{', '.join(said)} by stage"


def units(record: Record) -> str:
    """What a recipe leaves out on the host of a record."""
    return "pixels" if record["stages"] else "tokens"


def _tokens(dense: int, per_block: list[int]) -> str:
    """What each block's MLP reads, prefix included."""
    first, last, depth = per_block[0], per_block[-1], len(per_block)
    if len(set(per_block)) == 1:
        return f"{dense} → {first} in all {depth} blocks"
    return f"{dense} → {first} in the first block, {last} in the last of {depth}"


def print_whole(view: RenderableType) -> None:
    """Print to stdout. In a file or a pipe a table is as wide as its cells, since nobody can widen the window there."""
    console = Console(highlight=False)
    for part in [view] if console.is_terminal else _parts(view):
        if isinstance(part, Table) and part.box is not None and not console.is_terminal:
            whole = console.measure(part, options=console.options.update(max_width=WIDEST)).maximum
            Console(highlight=False, width=max(console.width, whole)).print(part)
        else:
            console.print(part)


def _parts(view: RenderableType) -> Iterator[RenderableType]:
    if isinstance(view, Group):
        for part in view.renderables:
            yield from _parts(part)
    else:
        yield view


def new_table(first: str, *columns: str, text: Sequence[int] = ()) -> Table:
    """A table of figures under a head. Columns `text`, and a first one without a name, hold words.

    Where there is no room for all, words go on in a second line; figures stay whole.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for place, name in enumerate((first, *columns)):
        words = place in text or not (place or name)
        justify: JustifyMethod = "left" if words else "right"
        table.add_column(name, justify=justify, no_wrap=not words, overflow="fold" if words else "ellipsis")
    return table


def with_spread(ratio: float, low: float, high: float, style: str = "") -> Text:
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
    """Three significant digits at least, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def brief(recipe: str, most: int = 100) -> str:
    """Recipe text for a page or a cell: files by their names, and what is long by its methods alone."""
    named = re.sub(r"(weights=)(['\"])(.*?)\2", lambda found: found[1] + PurePath(found[3]).name, recipe)
    if len(named) <= most:
        return named
    return " + ".join(part.partition("(")[0] for part in re.split(r"(?<=\))\s\+\s", named))


def short_recipe(text: str, most: int = 400) -> str:
    """Recipe text that fits a table: one that names every patch of every block does not."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 4 :]}"

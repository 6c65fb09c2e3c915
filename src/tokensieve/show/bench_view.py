"""The output of `tokensieve bench`: a row for each batch size or step, explanations, and the loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .cascade_view import cascade_runs
from .eval_view import INTERVALS, lost
from .tables import a_unit, data_word, header, new_table, short, times, units, with_spread

Record = dict[str, Any]


def bench_view(record: Record) -> RenderableType:
    """The record of `tokensieve bench`: the setup, a row for each batch size or step, explanations."""
    if record.get("cascade"):
        return Group(header(record), "", *cascade_runs(record), "", *_loss(record))
    return _waterfall_view(record) if record["waterfall"] else _runs_view(record)


def _runs_view(record: Record) -> RenderableType:
    macs, decoding = record["macs"], record["decoding"]
    map_alone = not macs["proposal"] and any(run["proposal_share"] for run in record["runs"])
    table = new_table(
        "batch", "MACs", "limit", "measured", "of limit", "map" if map_alone else "proposal", f"ms {a_unit(record)}"
    )
    memory_table = new_table("batch", "peak MiB, dense", "peak MiB, sieved")
    pictures = new_table("batch", f"{data_word(record)} a second", "dense", "sieved")
    for run in record["runs"]:
        seconds, images = run["seconds"], run["batch"]
        milliseconds = " → ".join(short(1000 * seconds[name] / images) for name in ("dense", "sieved"))
        table.add_row(
            str(images),
            times(macs["ratio"]),
            times(run["limit"]),
            with_spread(run["ratio"], run["low"], run["high"], style="bold"),
            f"{100 * run['of_limit']:.0f}%",
            f"{100 * run['proposal_share']:.1f}%" if macs["proposal"] or run["proposal_share"] else "none",
            milliseconds,
        )
        if run["memory_bytes"]:
            memory_table.add_row(
                str(images), *(short(run["memory_bytes"][name] / 2**20) for name in ("dense", "sieved"))
            )
        if decoding:
            rates = decoding["per_second"], *run["images_per_second"].values()
            pictures.add_row(str(images), *map(short, rates))
    tables = [piece for view in (table, memory_table, pictures) if view.row_count for piece in ("", view)]
    legend = (
        "MACs and speed: dense divided by sieved, proposal included. "
        f"Limit: the host on as many {units(record)}, without the cost of selection and proposal."
    )
    verdicts = _verdicts((f"batch {run['batch']}", run["verdict"]) for run in record["runs"])
    return Group(header(record), *tables, Text(legend, style="dim"), "", verdicts, "", *_loss(record))


def _loss(record: Record) -> list[RenderableType]:
    """The loss of the recipe, or how to measure it."""
    if record["loss"] is not None:
        text = Text.assemble(
            ("loss ", "bold"), f"on {record['loss']['images']} {data_word(record)}: {lost(record['loss'])}"
        )
        return [text, Text(INTERVALS, style="dim")]
    needed = [
        *(["weights (--pretrained or --weights FILE)"] if not (record["pretrained"] or record["weights"]) else []),
        *([f"{data_word(record)} (--data FOLDER)"] if record["data"] is None else []),
    ]
    return [Text.assemble(("loss ", "bold"), f"not measured: give {' and '.join(needed)}, or use tokensieve eval.")]


def _waterfall_view(record: Record) -> RenderableType:
    rows, decoding = record["waterfall"], record["decoding"]
    table = new_table("", "ms", "over dense", "this step", "limit", "of limit", "MiB")
    table.padding = (0, 1, 0, 0)
    steps = []
    for row in rows:
        first, skipped = row["step"] == "dense", "reason" in row
        name = row["step"] if first else f"+ {row['step']}"
        if row["step"] == "batch" and not skipped:
            name += f" {row['batch']}"
        steps.append((name, row["verdict"]))
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
        f"Each row adds one step to the row before, at batch {rows[0]['batch']} until the last. ms: {a_unit(record)}. "
        "Over dense, limit: the first row's time divided by the row's, and by the slicing limit's in the same "
        "precision, compilation and batch. MiB: peak memory without the weights."
    )
    parts: list[RenderableType] = [header(record), "", table, Text(legend, style="dim"), ""]
    details = Table.grid(padding=(0, 2))
    changed = [f"{name} {short(100 * row['difference'])}%" for row, name in _measured(rows, steps, "difference")]
    if changed:
        details.add_row("outputs", f"largest difference from the recipe in fp32: {', '.join(changed)}")
    agreed = [f"{name} {row['agreement']:.1f}%" for row, name in _measured(rows, steps, "agreement")]
    if agreed:
        count = min(rows[0]["compared"], decoding["pictures"])
        details.add_row("classes", f"same as the dense model's on {count} {data_word(record)}: {', '.join(agreed)}")
    if decoding:
        rates = [f"{name} {short(row['images_per_second'])}" for row, name in _measured(rows, steps, "batch")]
        details.add_row(data_word(record), f"a second: decoding {short(decoding['per_second'])}, {', '.join(rates)}")
    if details.row_count:
        parts += [details, ""]
    return Group(*parts, _verdicts((name, sentences) for name, sentences in steps if sentences))


def _measured(rows: list[Record], steps: list[tuple[str, Any]], figure: str) -> list[tuple[Record, str]]:
    """The rows that have a figure, with their names."""
    return [
        (row, name.removeprefix("+ "))
        for row, (name, _) in zip(rows, steps, strict=True)
        if row.get(figure) is not None
    ]


def _verdicts(verdicts: Iterable[tuple[str, list[str]]]) -> RenderableType:
    """The explanations of the rows of a table: the result, then its reasons."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    for name, (result, *reasons) in verdicts:
        grid.add_row(name, Text.assemble((result, "bold"), *(f" {text}" for text in reasons)))
    return grid

"""The output of `tokensieve demo` for all tasks: the figures, the table of all recipes, the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..measure.intervals import SHARES
from .page import Fact, Report, Section, Table
from .tables import between, brief, data_word, giga, header, new_table, units

Record = dict[str, Any]
RANDOM, RANDOM_PIXELS, MERGING = "random patches", "random pixels", "merging alone"
BASELINES = (RANDOM, RANDOM_PIXELS, MERGING)
"""The labels of the baselines; see `demo_classify.baselines`."""
FIGURES = {"top1": ("right", "right answers"), "miou": ("mIoU", "mean IoU")}
"""Figure -> its name in a table header, and in a sentence."""


def demo_report(record: Record, sections: Sequence[Section]) -> Report:
    """The page: the figures, the table of all recipes, the pictures."""
    sieved, *baselines = record["rows"]
    name = FIGURES[record["figure"]][1]
    included = ", proposal included" if record["macs"]["proposal"] else ""
    facts = [
        Fact(f"{sieved['macs_ratio']:.2f}x", f"fewer MACs{included}"),
        Fact(f"{sieved['ratio']:.2f}x", f"faster, measured; slicing alone gives {sieved['limit']:.2f}x"),
    ]
    if sieved["right"] is not None:
        ends = between(sieved["right_low"], sieved["right_high"])
        label = f"{name} {ends}; the dense model {sieved['dense_right']:.1f} %"
        facts.append(Fact(f"{sieved['right']:.1f} %", label))
        facts += [
            Fact(f"{row['right']:.1f} %", f"{name} with {row['label']}", alert=True)
            for row in baselines
            if row["label"] in (RANDOM, RANDOM_PIXELS)
        ]
    elif sieved["same"] is None and sieved["agreement"] is not None:
        ends = between(sieved["agreement_low"], sieved["agreement_high"])
        facts.append(Fact(f"{sieved['agreement']:.1f} %", f"of the pixels as in the dense map {ends}"))
    elif sieved["agreement"] is not None:
        ends = between(sieved["agreement_low"], sieved["agreement_high"])
        facts.append(
            Fact(f"{sieved['same']} of {record['pictures']}", f"answers as the dense model's, in percent {ends}")
        )
    head, rows = _cells(record)
    caption = f"{record['pictures']} {data_word(record)}; speed at batch {record['batch']}, all models in turn in one "
    caption += "process. "
    interval = SHARES if record["figure"] == "top1" else "the bootstrap"
    caption += (
        f"In brackets: of shares {interval}'s 95 % interval, of speed the 10th and 90th percentile of the rounds."
    )
    table = Table(head, tuple(map(tuple, rows)), caption)
    lead = f"{record['model']} under {brief(record['recipe']) or 'the empty recipe'}, beside the dense model."
    if sieved["same"] is not None:
        lead += f" {sieved['same']} of {record['pictures']} answers are the dense model's."
    machine = f"{record['machine']}, {record['threads']} threads, {record['dtype']}"
    sections = [Section("Beside the dense model", table=table), *sections]
    return Report(
        "What the model reads, and what it costs", lead, tuple(facts), tuple(sections), (f"Measured on {machine}.",)
    )


def demo_view(record: Record) -> RenderableType:
    """The text that the command prints: the setup, the table, the files."""
    head, rows = _cells(record)
    table = new_table(*head)
    for row in rows:
        table.add_row(*row)
    legend = (
        "Measured and limit: times faster than the dense model; the limit is the host on as many "
        f"{units(record)}, without the cost of selection."
    )
    paths = [Text(path, style="bold") for path in record["out"]]
    return Group(header(record), "", table, "", Text(legend, style="dim"), "", *paths)


def _cells(record: Record) -> tuple[tuple[str, ...], list[list[str]]]:
    """Head and rows of the table, the dense model first; with accuracy and agreement if they exist."""
    rows, scored = record["rows"], record["rows"][0]["right"] is not None
    agreeing = record["rows"][0]["agreement"] is not None
    head = [
        "",
        *([FIGURES[record["figure"]][0]] if scored else []),
        "agrees" if agreeing else "cosine",
        "GMAC",
        "fewer",
        "measured",
        "limit",
    ]
    first = ["dense", *([f"{rows[0]['dense_right']:.1f}%"] if scored else []), "", giga(record["macs"]["dense"])]
    cells = [[*first, "", "", ""]]
    for row in rows:
        same = f"{row['cosine']:.3f}"
        if agreeing:
            has_count = row["same"] is not None
            same = f"{row['same']} of {record['pictures']}" if has_count else f"{row['agreement']:.1f}%"
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

"""What `tokensieve bench` prints of a cascade."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.text import Text

from .tables import a_unit, data_word, new_table, percent, short, times, with_spread

Record = dict[str, Any]


def cascade_runs(record: Record) -> list[RenderableType]:
    """A row for each batch size: how long it takes beside the dense model, on average and at worst."""
    table = new_table(
        "batch", "MACs", "measured", f"ms {a_unit(record)}", "p50 a batch", "p99 a batch", "read again", "batches"
    )
    for run in record["runs"]:
        dense, ours, batch = run["dense"], run["cascade"], run["batch"]
        again = [share for share in run["shares"] if share][1:]
        table.add_row(
            str(batch),
            times(record["macs"]["ratio"]),
            with_spread(run["ratio"], run["low"], run["high"], style="bold"),
            " → ".join(short(1000 * each["mean"] / batch) for each in (dense, ours)),
            " → ".join(short(1000 * each["p50"]) for each in (dense, ours)),
            " → ".join(short(1000 * each["p99"]) for each in (dense, ours)),
            ", ".join(map(percent, again)) or "none",
            str(run["batches"]),
        )
    legend = (
        "Dense → cascade, in ms. Measured: dense time over the cascade's, of all batches together; in brackets the "
        f"10th and 90th percentile over batches. Read again: the share of the {data_word(record)} that went on to the "
        "next reading, on which MACs and time depend."
    )
    return [table, Text(legend, style="dim")]

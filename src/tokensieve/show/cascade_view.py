"""The output of `tokensieve bench` for a cascade."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.text import Text

from .tables import a_unit, data_word, new_table, percent, short, times, with_spread

Record = dict[str, Any]


def cascade_runs(record: Record) -> list[RenderableType]:
    """A row for each batch size: time of the cascade and of the dense model, mean and percentiles."""
    table = new_table(
        "batch", "MACs", "measured", f"ms {a_unit(record)}", "p50 a batch", "p99 a batch", "read again", "batches"
    )
    for run in record["runs"]:
        latencies, batch = (run["dense"], run["cascade"]), run["batch"]
        later_shares = [share for share in run["shares"] if share][1:]
        table.add_row(
            str(batch),
            times(record["macs"]["ratio"]),
            with_spread(run["ratio"], run["low"], run["high"], style="bold"),
            " → ".join(short(1000 * latency["mean"] / batch) for latency in latencies),
            " → ".join(short(1000 * latency["p50"]) for latency in latencies),
            " → ".join(short(1000 * latency["p99"]) for latency in latencies),
            ", ".join(map(percent, later_shares)) or "none",
            str(run["batches"]),
        )
    legend = (
        "Dense → cascade, in ms. Measured: dense time divided by the cascade's, over all batches; in brackets the 10th "
        f"and 90th percentile over batches. Read again: the share of the {data_word(record)} that went on to each "
        "later recipe, on which MACs and time depend."
    )
    return [table, Text(legend, style="dim")]

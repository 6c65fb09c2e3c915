"""The output of `tokensieve eval`: both models' scores and their agreement."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..measure.intervals import DIFFERENCES, SHARES
from .tables import a_unit, between, giga, header, new_table

Record = dict[str, Any]


def eval_view(record: Record) -> RenderableType:
    """The record of `tokensieve eval`: the setup, both models' scores, their agreement."""
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
    text = Text.assemble(("sieved against dense: ", "bold"), lost(record))
    return Group(header(record), "", table, "", text, Text(f"{INTERVALS} Change: percentage points.", style="dim"))


INTERVALS = f"In brackets: 95 % intervals, of shares {SHARES}'s, of changes and means by {DIFFERENCES} over the images."


def lost(record: Record) -> str:
    """The difference between a sieved and its dense model as text, from `record.compared`."""
    parts = [f"cosine {_mean(record, 'cosine')}"]
    ends = between(record["agreement_low"], record["agreement_high"])
    if record.get("neighbours") is not None:
        neighbour_ends = between(record["neighbours_low"], record["neighbours_high"])
        parts.append(f"same nearest neighbour {record['neighbours']:.1f}% {neighbour_ends}")
    if record.get("kind") == "class-map":
        parts = [
            f"same class {record['agreement']:.1f}% of the pixels {ends}",
            f"KL {_mean(record, 'kl')} nats",
            *parts,
        ]
    elif record.get("kind") == "depth":
        parts = [
            f"{record['agreement']:.1f}% of the pixels within a factor of 1.25 {ends}",
            f"relative error {_mean(record, 'divergence')}",
            *parts,
        ]
    elif record["agreement"] is not None:
        count = record["images"]
        same = f"{round(record['agreement'] * count / 100)} of {count}"
        parts = [f"same class {same}, {record['agreement']:.1f}% {ends}", f"KL {_mean(record, 'kl')} nats", *parts]
    return ", ".join(parts)


def _mean(record: Record, name: str) -> str:
    low, high = record[f"{name}_low"], record[f"{name}_high"]
    return f"{record[name]:.4f}" + ("" if low is None else f" [{low:.4f}-{high:.4f}]")


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")

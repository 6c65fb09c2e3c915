"""The output of `tokensieve run`."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .messages import duration


def run_view(record: dict[str, Any]) -> RenderableType:
    """The number of rows, the speed, and the output folder."""
    grid = Table.grid(padding=(0, 2))
    before = f", {record['before']} of them before" if record["before"] else ""
    grid.add_row("rows", f"{record['rows']} of {record['items']} items{before}")
    grid.add_row("errors", f"{record['errors']}, {record['skipped']} files skipped")
    if record["per_second"]:
        grid.add_row("speed", f"{record['per_second']:.4g} a second, {duration(record['seconds'])}")
        grid.add_row("waiting", f"{100 * record['waited']:.0f} % of the model's time, for items")
    return Group(grid, "", Text(f"written to {record['out']}", style="bold"))


def estimate_view(record: dict[str, Any]) -> RenderableType:
    """The estimated time of a job, and the speeds that limit it."""
    grid = Table.grid(padding=(0, 2))
    grid.add_row("items", f"{record['left']} left of {record['items']}, {record['shards']} files")
    grid.add_row("decoding", f"{record['decoded_per_second']:.4g} a second, alone")
    grid.add_row("model", f"{record['model_per_second']:.4g} a second, alone")
    grid.add_row("time", Text(f"{duration(record['seconds'])}, at {record['per_second']:.4g} a second", style="bold"))
    grid.add_row("rows", f"{record['bytes'] / 2**20:.1f} MiB in all")
    parts: list[RenderableType] = [grid]
    if record["notes"]:
        parts += ["", *map(Text, record["notes"])]
    return Group(*parts)

"""The output of `tokensieve train`."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .files import files_line
from .tables import new_table

COLUMNS = {
    "validation_miou": "validation mIoU",
    "validation_top1": "validation top-1",
    "heldout_likeness": "agreement at half of the tokens",
}
"""Figure in the log by which a training is judged -> its name in a table."""


def train_view(record: dict[str, Any]) -> RenderableType:
    """A row for each trained model, and the paths of its weights."""
    last_row = record["trained"][0]["log"][-1]
    figure = next(name for name in COLUMNS if name in last_row)
    column = COLUMNS[figure]
    table = new_table("", "images", "minutes", column)
    for trained in record["trained"]:
        last = trained["log"][-1]
        minutes, right = f"{last['seconds'] / 60:.0f}", f"{last[figure]:.1f}%"
        table.add_row(trained["model"], f"{last['images']:.0f}", minutes, right)
    files = Table.grid(padding=(0, 2))
    for name, counts in record["data"].items():
        files.add_row(name, files_line(counts["files"]))
    parts: list[RenderableType] = [table, ""]
    if record["data"]:
        parts += [files, ""]
    written = [trained[name] for trained in record["trained"] for name in ("weights", "recipe") if name in trained]
    return Group(*parts, *(Text(path, style="bold") for path in written))

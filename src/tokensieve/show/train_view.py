"""What `tokensieve train` prints when it is done."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .files import files_line
from .tables import new_table

COLUMNS = {
    "validation_miou": "validation mIoU",
    "validation_top1": "right on validation images",
    "heldout_likeness": "alike at half of the tokens",
}
"""What a training is judged by -> what a table calls it."""


def train_view(record: dict[str, Any]) -> RenderableType:
    """A row for each trained model, and where its weights are."""
    last_row = record["trained"][0]["log"][-1]
    figure = next(name for name in COLUMNS if name in last_row)
    column = COLUMNS[figure]
    table = new_table("", "images", "minutes", column)
    for trained in record["trained"]:
        last = trained["log"][-1]
        minutes, right = f"{last['seconds'] / 60:.0f}", f"{last[figure]:.1f}%"
        table.add_row(trained["model"], f"{last['images']:.0f}", minutes, right)
    files = Table.grid(padding=(0, 2))
    for name, read in record["data"].items():
        files.add_row(name, files_line(read["files"]))
    parts: list[RenderableType] = [table, ""]
    if record["data"]:
        parts += [files, ""]
    written = [trained[name] for trained in record["trained"] for name in ("weights", "recipe") if name in trained]
    return Group(*parts, *(Text(path, style="bold") for path in written))

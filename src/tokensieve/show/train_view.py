"""What `tokensieve train` prints when it is done."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .files import files_line
from .tables import new_table


def train_view(record: dict[str, Any]) -> RenderableType:
    """A row for each trained model, and where its weights are."""
    dense = any("validation_miou" in trained["log"][-1] for trained in record["trained"])
    figure = "validation_miou" if dense else "validation_top1"
    column = "validation mIoU" if dense else "right on validation images"
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
    return Group(*parts, *(Text(trained["weights"], style="bold") for trained in record["trained"]))

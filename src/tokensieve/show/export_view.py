"""The output of `tokensieve export`."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .tables import header


def cascade_view(record: dict[str, Any]) -> RenderableType:
    """The setup, the file with the thresholds, the file of each member, and the largest difference from PyTorch."""
    grid = Table.grid(padding=(0, 2))
    kind = "exported programs" if record["format"] == "program" else "ONNX"
    grid.add_row("thresholds", Text(record["path"], style="bold"))
    for index, member in enumerate(record["members"]):
        size = f"{member['nodes']} operators, {member['bytes'] / 2**20:.1f} MiB"
        grid.add_row("" if index else "members", f"{PurePath(member['path']).name}, {size}")
    grid.add_row("", f"{kind}, {record['bytes'] / 2**20:.1f} MiB in all")
    tolerance = f"(allowed {record['tolerance']:g})"
    grid.add_row(
        "checked", f"all members as one cascade: largest difference from PyTorch {record['difference']:.1e} {tolerance}"
    )
    return Group(header(record), "", grid)


def export_view(record: dict[str, Any]) -> RenderableType:
    """The setup, the file with its inputs and outputs, and the largest difference from PyTorch."""
    grid = Table.grid(padding=(0, 2))
    kind = "exported program" if record["opset"] is None else f"ONNX, opset {record['opset']}"
    grid.add_row("file", Text(record["path"], style="bold"))
    grid.add_row("", f"{kind}, {record['nodes']} operators, {record['bytes'] / 2**20:.1f} MiB")
    for name in ("inputs", "outputs"):
        for tensor, shape in record[name].items():
            grid.add_row(name.removesuffix("s"), f"{tensor} ({', '.join(map(str, shape))})")
    differences = ", ".join(f"{value:.1e} at batch {batch}" for batch, value in record["differences"].items())
    grid.add_row("checked", f"largest difference from PyTorch {differences} (allowed {record['tolerance']:g})")
    return Group(header(record), "", grid)

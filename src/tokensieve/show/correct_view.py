"""What `tokensieve correct` prints."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from .tables import header, new_table


def correct_view(record: dict[str, Any]) -> RenderableType:
    """The loss before and after, and where recipe and weights are; or that nothing was to be mended."""
    table = new_table("", "loss")
    table.add_row("as it was", f"{record['loss']:.4f}")
    if record["ridge"] is None:
        said = "No correction helps on these pictures: the recipe was written as it was."
    else:
        table.add_row("corrected", f"{record['corrected_loss']:.4f}")
        said = f"Fitted on {record['images']} pictures, each in {record['views']} views; ridge {record['ridge']:g}."
    legend = "loss: mean KL(dense || sieved), or 1 - cosine of embeddings; corrected: of each picture by a correction "
    legend += "that was fitted without it."
    written = [Text(path, style="bold") for path in (record["out"], record["correction"]) if path]
    return Group(header(record), "", table, Text(legend, style="dim"), "", Text(said), "", *written)

"""What `tokensieve correct` prints."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from .tables import header, new_table


def correct_view(record: dict[str, Any]) -> RenderableType:
    """The divergence before and after, and where recipe and weights are; or that nothing was to be mended."""
    classes = record["agreement"] is not None
    table = new_table("", "divergence", *(["same class"] if classes else []))

    def row(title: str, start: str) -> None:
        same = [f"{record[f'{start}agreement']:.1f}%"] if classes else []
        table.add_row(title, f"{record[f'{start}divergence']:.4f}", *same)

    row("as it was", "")
    if record["ridge"] is None:
        sentence = "No correction helps on these pictures: the recipe was written as it was."
    else:
        row("corrected", "corrected_")
        sentence = f"Fitted on {record['images']} pictures, each in {record['views']} views; ridge {record['ridge']:g}."
    legend = (
        "divergence: mean KL(dense || sieved), or 1 - cosine of embeddings; corrected: each picture by a correction "
    )
    legend += "that was fitted without it."
    written = [Text(path, style="bold") for path in (record["out"], record["correction"]) if path]
    return Group(header(record), "", table, Text(legend, style="dim"), "", Text(sentence), "", *written)

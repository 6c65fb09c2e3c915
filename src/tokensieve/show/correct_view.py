"""The output of `tokensieve correct`."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from .tables import header, new_table


def correct_view(record: dict[str, Any]) -> RenderableType:
    """The divergence before and after, and the paths of recipe and weights; or a note that no correction helps."""
    classes = record["agreement"] is not None
    table = new_table("", "divergence", *(["same class"] if classes else []))

    def row(title: str, prefix: str) -> None:
        same = [f"{record[f'{prefix}agreement']:.1f}%"] if classes else []
        table.add_row(title, f"{record[f'{prefix}divergence']:.4f}", *same)

    row("as it was", "")
    if record["ridge"] is None:
        sentence = "No correction helps on these pictures: the recipe was written unchanged."
    else:
        row("corrected", "corrected_")
        sentence = f"Fitted on {record['images']} pictures, each in {record['views']} views; ridge {record['ridge']:g}."
    legend = (
        "divergence: mean KL(dense || sieved), or 1 - cosine for embeddings; corrected: each picture with a correction "
    )
    legend += "fitted on the other pictures."
    written = [Text(path, style="bold") for path in (record["out"], record["correction"]) if path]
    return Group(header(record), "", table, Text(legend, style="dim"), "", Text(sentence), "", *written)

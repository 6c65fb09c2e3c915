"""The output of `tokensieve tune`."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..measure.comparison import KINDS, divergence_title
from .tables import header, new_table, times, with_spread

Record = dict[str, Any]

SAME = {"classes": "same class", "class-map": "same class", "depth": "within 1.25x"}
"""Kind of output -> the name of its agreement in a table header."""
RIGHT = {"classes": "top-1", "class-map": "mIoU", "depth": "delta < 1.25"}
"""Kind of output -> the name of its accuracy."""


def tune_view(record: Record) -> RenderableType:
    """The setup, the front with the single methods at the recommended budget, and a summary in sentences."""
    front = record["front"]
    best, has_heldout = front["best"], front["best"]["heldout"] is not None
    classes = best["search"]["agreement"] is not None
    kind = KINDS[best["search"].get("kind", "classes")]
    unit = divergence_title(front["objective"])
    same, right = SAME.get(kind.name, ""), RIGHT.get(kind.name, "")
    head = ["MACs", "measured", unit, *(["held out"] if has_heldout else []), *([same] if classes else [])]
    scored = "heldout" if has_heldout else "search"
    labelled = front["dense"]["accuracy"].get(scored) is not None
    table = new_table("", "", *head, *([right] if labelled else []), text=(1,))
    table.padding = (0, 1, 0, 0)
    for point in front["points"]:
        if point["dominated"] and point["budget"] != best["budget"]:
            continue
        recommended = point["recipe"] == best["recipe"]
        title = f"{point['title']}{' alone' if point['kind'] == 'single' else ''}"
        speed = point["speed"]
        row: list[Any] = [
            ">" if recommended else "",
            title,
            times(point["ratio"]),
            "" if speed is None else with_spread(speed["ratio"], speed["low"], speed["high"]),
            f"{point['search']['divergence']:.3g}",
        ]
        if has_heldout:
            row.append(f"{point['heldout']['divergence']:.3g}")
        if classes:
            row.append(f"{point[scored]['agreement']:.1f}%")
        if labelled:
            row.append(f"{point[scored]['accuracy']:.1f}%")
        table.add_row(*row, style="bold" if recommended else "dim" if point["dominated"] else "")
    also = f", as is {same}" if same else ""
    legend = (
        f"MACs and speed: dense divided by sieved, proposal included. {unit}: mean over "
        f"{best['search']['images']} images of the search"
        + (f"; held out{also}: {best['heldout']['images']} others." if has_heldout else ".")
        + " Dim: another recipe does not cost more and loses less."
    )
    if labelled:
        legend += f" Dense {right}: {front['dense']['accuracy'][scored]:.1f}%."
    parts: list[RenderableType] = [header(record), "", table, Text(legend, style="dim"), "", Text(front["summary"])]
    if record["out"]:
        parts += ["", Text(f"{record['out']}/best.json", style="bold")]
    return Group(*parts)

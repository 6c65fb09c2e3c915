"""The output of `tokensieve segment`."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from .files import files_line
from .tables import new_table


def segment_view(record: dict[str, Any]) -> RenderableType:
    """MACs and scores of the dense model and under the recipe, with the IoU of each class, and the output folder."""
    has_recipe = record["recipe"] is not None
    scores, dense, cost = record["scores"], record["dense"], record["macs"]
    columns = ["dense", "sieved"] if has_recipe else [""]
    table = new_table("", *columns)
    table.add_row(
        "GMAC a crop", *(f"{cost[name] / 1e9:.3g}" for name in (("dense", "sieved") if has_recipe else ("sieved",)))
    )
    sides = [dense, scores] if has_recipe else [scores]
    if scores is not None:
        for title, name in (("mIoU", "miou"), ("pixel accuracy", "pixel_accuracy")):
            table.add_row(title, *(f"{side[name]:.1f}%" for side in sides))
        for index, name in enumerate(record["classes"]):
            values = [side["iou"][index] for side in sides]
            table.add_row(f"  {name}", *("-" if value is None else f"{value:.1f}%" for value in values))
    parts: list[RenderableType] = [Text(record["segmenter"], style="bold")]
    if has_recipe:
        parts.append(Text(record["recipe"]))
    parts += ["", table, ""]
    if record["agreement"] is not None:
        parts.append(Text(f"The same class as the dense segmenter's at {record['agreement']:.1f} % of the pixels."))
    parts.append(Text(files_line(record["files"])))
    if record["out"]:
        parts.append(Text(f"written to {record['out']}", style="bold"))
    return Group(*parts)

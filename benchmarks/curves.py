"""What pictures of answers over MACs have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MACS_LABEL = "MACs, % of the dense model's (proposal included)"


def draw_curves(axes: Any, rows: Sequence[Mapping[str, str]], colours: Mapping[str, str], figure: str) -> None:
    """A line for each method in `colours`, over its share of the MACs in the first row, which is the dense model's.

    Args:
        axes: matplotlib's.
        rows: of results/*.csv, with the columns `method`, `mmac` and `figure`, in percent.
        colours: method -> colour.
        figure: the column that is drawn; the dense model's is a dashed line across.
    """
    dense = float(rows[0][figure])
    axes.axhline(dense, color="#16191d", linewidth=1, linestyle=(0, (4, 3)))
    axes.text(99, dense + 1.2, f"dense {dense:.1f} %", ha="right", va="bottom", fontsize=9)
    for method, colour in colours.items():
        points = sorted((row for row in rows if row["method"] == method), key=lambda row: float(row["mmac"]))
        shares = [100 * float(row["mmac"]) / float(rows[0]["mmac"]) for row in points]
        figures = [float(row[figure]) for row in points]
        axes.plot(shares, figures, "o-", color=colour, linewidth=2, markersize=4.5, label=method)
    axes.set(xlim=(20, 100))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: Path) -> None:
    """Write a picture, in a folder that is made where there is none."""
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)

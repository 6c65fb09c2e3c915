"""results/dtop.csv as a picture, docs/pictures/dtop.png: mIoU over MACs, a panel for each kind of heads."""

from __future__ import annotations

from typing import Any

import matplotlib

from results import ROOT, read

matplotlib.use("Agg")
from matplotlib.figure import Figure

HEADS = {"segvit": "SegViT", "setr": "SETR, naive"}
COLOURS = {
    "direct": ("@Direct", "#0072b2"),
    "finetune": ("@Finetune", "#d55e00"),
    "finetune_heads": ("@Finetune, heads", "#e69f00"),
    "retrain": ("@Retrain", "#009e73"),
    "tome": ("ToMe, restored", "#777777"),
}
MARKS = {
    "guarded": ("guarded, restored", "s"),
    "papr": ("PaPr, nearest patch", "v"),
    "papr, zero": ("PaPr, zeros", "^"),
    "static exits": ("static exits", "D"),
    "random exits": ("random exits", "X"),
    "dtop + tome": ("DToP + ToMe", "P"),
    "dtop + guarded": ("DToP + guarded", "p"),
    "dtop + evit": ("DToP + EViT", "h"),
}
"""Of what runs at the MACs of @Direct alone."""
DEPTH = 6.0
"""Points of mIoU below the base that are drawn; what loses more is named at the bottom."""


def plot(lost: float) -> None:
    """Lines for what was trained and for merging, marks for the baselines; dotted, `lost` points below the base."""
    rows = [row for row in read("dtop.csv") if row["val_miou"]]
    heads = [head for head in HEADS if any(row["head"] == head for row in rows)]
    figure = Figure(figsize=(4.0 * len(heads) + 1.8, 3.6), dpi=160, layout="constrained")
    panels = figure.subplots(1, len(heads), squeeze=False)[0]
    for axes, head in zip(panels, heads, strict=True):
        _panel(axes, [row for row in rows if row["head"] == head], lost)
        axes.set_title(HEADS[head])
    panels[0].set_ylabel("mIoU on test pictures, %")
    told = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    names = ["without exits", "trained on", *(label for label, _ in [*COLOURS.values(), *MARKS.values()])]
    shown = [name for name in names if name in told]
    figure.legend([told[name] for name in shown], shown, loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(ROOT / "docs" / "pictures" / "dtop.png")


def _panel(axes: Any, rows: list[dict[str, str]], lost: float) -> None:
    base = next(row for row in rows if row["variant"] == "base")
    top = float(base["test_miou"])
    axes.plot(float(base["gmac"]), top, "k*", markersize=10, label="without exits")
    for row in (row for row in rows if row["variant"] == "longer"):
        axes.plot(float(row["gmac"]), float(row["test_miou"]), "k*", markerfacecolor="white", label="trained on")
    for variant, (label, colour) in COLOURS.items():
        points = sorted((float(row["gmac"]), float(row["test_miou"])) for row in rows if row["variant"] == variant)
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=3, label=label)
    below = []
    for variant, (label, mark) in MARKS.items():
        for row in (row for row in rows if row["variant"] == variant):
            face = "#cc79a7" if variant.startswith("dtop") else "white"
            style = {"markersize": 5, "markerfacecolor": face, "markeredgecolor": "#444444", "linestyle": "none"}
            axes.plot(float(row["gmac"]), float(row["test_miou"]), mark, label=label, zorder=3, **style)
            if float(row["test_miou"]) < top - DEPTH:
                below.append(f"{label} {float(row['test_miou']):.1f}")
    axes.axhline(top - lost, color="black", linewidth=0.5, linestyle=":")
    best = max(float(row["test_miou"]) for row in rows)
    lowest = min(float(row["test_miou"]) for row in rows)
    axes.set_ylim(max(top - DEPTH, lowest - 0.3) - 0.2, best + 0.5)
    if below:
        words = "below: " + ", ".join(below)
        axes.text(0.98, 0.02, words, transform=axes.transAxes, ha="right", va="bottom", fontsize=7, color="#444444")
    axes.set_xlabel("GMAC a window, all heads included")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)

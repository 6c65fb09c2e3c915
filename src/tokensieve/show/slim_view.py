"""The output and the plot of `tokensieve slim`: the patches that each block needs."""

from __future__ import annotations

from math import ceil, prod
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from rich.console import Group, RenderableType
from rich.text import Text
from torch import Tensor

from ..search.slimming import Slimmed
from .tables import header, new_table, times

_INK, _SOFT, _KEPT, _MAP, _VEIL = "#16191d", "#59626d", "#0072b2", "cividis", 0.8
COLUMNS = 6


def slim_view(record: dict[str, Any]) -> RenderableType:
    """The record of `tokensieve slim`: the setup, a row for each block, the saving, the paths of the files."""
    count = prod(record["recipe_json"]["methods"][0]["grid"])
    title = f"patch_slimming, form {record['form']}, {count} patches → {record['patches'][-1]}"
    table = new_table("block", "patches", "of all", "error")
    for block, (left, error) in enumerate(zip(record["patches"], record["errors"], strict=True)):
        table.add_row(str(block), str(left), f"{100 * left / count:.0f}%", f"{error:.4f}" if error else "none")
    saved = f"{100 * record['saving']:.1f}% of the MACs saved ({times(record['macs']['ratio'])} fewer)"
    details = f", tolerance {record['tolerance']:.4g}, nothing trained"
    legend = "patches: kept after the block, the same for all pictures. error: change of the first activations that "
    legend += "the selection affects, relative to the dense model's activations."
    written = [Text(path, style="bold") for path in (record["out"], record["plot"]) if path]
    text = Text.assemble((saved, "bold"), details)
    return Group(header({**record, "recipe": title}), "", table, Text(legend, style="dim"), "", text, "", *written)


def slim_plot(slimmed: Slimmed, name: str) -> Figure:
    """The share of patches kept for each block, above maps of their significance where the dropped ones are faded."""
    method, depth = slimmed.method, len(slimmed.counts)
    assert method.grid is not None
    rows, count = ceil(depth / COLUMNS), prod(method.grid)
    chart = Figure(figsize=(9, 2.9 + 1.75 * rows), layout="constrained")
    parts: Any = chart.subfigures(2, 1, height_ratios=(2.7, 0.2 + 1.75 * rows))
    upper, lower = parts
    axes = upper.subplots()
    bars = axes.bar(range(depth), [100 * kept / count for kept in slimmed.counts], color=_KEPT, width=0.7)
    axes.bar_label(bars, [str(kept) for kept in slimmed.counts], padding=2, color=_INK, fontsize=9)
    axes.set(xticks=range(depth), xlabel="block", ylabel="patches kept, %", ylim=(0, 112), yticks=(0, 25, 50, 75, 100))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        f"{name}, form {method.form}: {100 * slimmed.saving:.0f} % of the MACs saved "
        f"({slimmed.images} pictures, tolerance {slimmed.tolerance:.3g})",
        loc="left",
        fontsize=11,
    )
    lower.suptitle(
        "Rank of each patch by significance, mean over pictures; faded: dropped", x=0.01, ha="left", fontsize=10
    )
    panels = lower.subplots(rows, COLUMNS, squeeze=False).flatten()
    for block, panel in enumerate(panels):
        panel.set_axis_off()
        if block < depth:
            veil = np.ones((count, 4))  # transparent white over dropped patches
            veil[:, 3] = _VEIL
            veil[list(method.patches[block]), 3] = 0
            panel.imshow(_ranks(slimmed.scores[block], method.grid), cmap=_MAP, vmin=0, vmax=1)
            panel.imshow(veil.reshape(-1, method.grid[-1], 4))
            panel.set_title(f"block {block}: {slimmed.counts[block]}", fontsize=9, color=_INK, pad=3)
    key = lower.colorbar(ScalarMappable(Normalize(0, 1), _MAP), ax=panels.tolist(), shrink=0.8, aspect=18, pad=0.01)
    key.set_ticks([0, 1], labels=["least", "most"], fontsize=9, color=_SOFT)
    key.outline.set_visible(False)
    return chart


def _ranks(scores: Tensor, grid: tuple[int, ...]) -> Any:
    """Scores of one block as ranks in [0, 1], since the values span orders of magnitude."""
    ranks = scores.argsort(stable=True).argsort().double() / max(len(scores) - 1, 1)
    return ranks.reshape(-1, grid[-1]).numpy()

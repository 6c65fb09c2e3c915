"""Plot of a Pareto front: the loss of recipes against their MACs and their time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from ..search.front import Front, Point

# Okabe and Ito's colours, which colour-blind readers can distinguish.
SEARCHED = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000")
SINGLE = "#8a929b"
FAR = 12
"""Recipes that lose more than this many times as much as the recommended one are outside of the plot's range."""


def front_plot(front: Front) -> Figure:
    """Two panels with the divergence as the shared y axis: against MACs per image, and against time relative to the
    dense model if it was measured.

    Searched families are lines with filled markers, single methods have grey markers, the recommended recipe has a
    ring, and the dense model is at divergence 0.
    """
    chart = Figure(figsize=(10.5, 4.4), layout="constrained")
    left, right = chart.subplots(1, 2, sharey=True)
    timed = [point for point in front.points if point.speed is not None]
    _draw(left, front, front.points, lambda point: 100 * _macs(point) / front.dense_macs, 100.0)
    _draw(right, front, timed, lambda point: 100 / point.speed.ratio, 100.0, spread=True)
    included = ", proposal included" if front.settings.get("include_proposal", True) else ""
    left.set_xlabel(f"MACs an image, % of {front.dense_macs / 1e9:.3g} G{included}")
    right.set_xlabel("time of a batch, % of the dense model's")
    unit = front.objective
    if unit.startswith("kl"):
        unit = f"KL(dense || sieved){unit.removeprefix('kl')}, nats"
    left.set_ylabel(f"{unit},\nimages held out" if front.best.heldout else f"{unit},\nsearch images")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e3e6ea", linewidth=0.6)
        axes.set_axisbelow(True)
    # A square root scale separates small divergences and, unlike a logarithm, contains the dense model's 0.
    left.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    worst = max(_divergence(point) for point in front.points)
    top = min(worst, FAR * _divergence(front.best)) or worst
    beyond = sum(_divergence(point) > 1.1 * top for point in front.points)
    if beyond:
        left.text(0.98, 0.97, f"above: {beyond}", transform=left.transAxes, ha="right", va="top", color="#59626d")
    left.set_ylim(0, 1.1 * top or 1.0)
    left.set_yticks(_ticks(top))
    handles, labels = left.get_legend_handles_labels()
    chart.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    return chart


def _draw(
    axes: Any, front: Front, points: Sequence[Point], coordinate: Any, dense: float, spread: bool = False
) -> None:
    axes.plot(dense, 0, "*", color="#000000", markersize=13, clip_on=False, zorder=5, label="dense")
    searched = sorted({_line(point) for point in front.points if point.kind in ("searched", "cascade")})
    singles = sorted({point.title for point in front.points if point.kind == "single"})
    for title, colour in zip(searched, cycle(SEARCHED), strict=False):
        series = sorted((point for point in points if _line(point) == title), key=coordinate)
        xs = [coordinate(point) for point in series]
        axes.plot(xs, [_divergence(point) for point in series], "o-", color=colour, markersize=5, zorder=4, label=title)
        if spread:
            _spread(axes, series, colour)
    for title, marker in zip(singles, cycle("s^Dv<>Pxph"), strict=False):
        series = sorted((point for point in points if point.title == title), key=coordinate)
        xs = [coordinate(point) for point in series]
        style = {"color": SINGLE, "linestyle": ":", "linewidth": 0.8, "markersize": 6, "markeredgecolor": "#59626d"}
        axes.plot(
            xs, [_divergence(point) for point in series], marker=marker, zorder=3, label=f"{title} alone", **style
        )
        if spread:
            _spread(axes, series, SINGLE)
    if front.best in points:
        ring = {"markerfacecolor": "none", "markeredgecolor": "#000000", "markeredgewidth": 1.4, "linestyle": "none"}
        axes.plot(
            coordinate(front.best), _divergence(front.best), "o", markersize=14, zorder=6, label="recommended", **ring
        )


def _line(point: Point) -> str:
    """The name of a point's line; all cascades are on one line."""
    return point.family if point.kind == "cascade" else point.title


def _spread(axes: Any, points: Sequence[Point], colour: str) -> None:
    for point in points:
        assert point.speed is not None
        ends = 100 / point.speed.high, 100 / point.speed.low
        axes.plot(ends, [_divergence(point)] * 2, color=colour, linewidth=1, alpha=0.6, zorder=2)


def _divergence(point: Point) -> float:
    """The divergence on the held-out images, or on the search images if there are none."""
    return point.search.divergence if point.heldout is None else point.heldout.divergence


def _macs(point: Point) -> float:
    """MACs per image; if they depend on images, on those whose divergence is plotted."""
    return point.macs if point.heldout_macs is None else point.heldout_macs


def _ticks(top: float) -> list[float]:
    """Round numbers from 0 up that are far enough apart on a square root scale."""
    base = 10.0 ** np.floor(np.log10(top)) if top > 0 else 1.0
    steps = [0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 7, 10]
    return [0.0, *(step * base for step in steps if 0.02 * top <= step * base <= 1.1 * top)]

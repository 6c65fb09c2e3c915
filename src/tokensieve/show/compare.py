"""Compares rankings on the same pictures: keep ratios and proposals in a grid, or significance maps in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from math import prod
from statistics import fmean, median
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..errors import InputError
from ..measure import macs
from ..measure.outputs import evaluating
from ..measure.speed import interleaved
from ..stream import Sieved, Trace
from .explain import Verdict
from .page import Panel, Plot, Section, Table
from .pictures import heat, kept, photo, stack
from .tables import percent, short
from .variants import Variants

HEIGHT = 224
"""Height of a panel in pixels, smaller than in pages with one picture per row."""


@dataclass(frozen=True)
class Cost:
    """Cost of a significance map for one picture, absolute and as a share of the dense host's."""

    macs: float
    share_of_macs: float
    seconds: float
    share_of_time: float


@torch.no_grad()
def map_costs(fasts: Mapping[str, Sieved], dense: nn.Module, image: Tensor, seconds: float = 3.0) -> dict[str, Cost]:
    """MACs and time of each significance map and of the dense host for one image (3, H, W), measured in turn.

    Args:
        fasts: name -> sieved model, whose map is measured.
        dense: the dense host.
        image: (3, H, W).
        seconds: time to spend on measuring; every map is computed at least three times.

    Returns:
        A `Cost` for each name, and one for "dense", the host itself.
    """
    parameter = next(dense.parameters())
    images = image[None].to(parameter.device, parameter.dtype)
    calls: dict[str, Any] = {"dense": partial(dense, images)}
    for name, fast in fasts.items():
        calls[name] = fast.map_call(images)
    with evaluating(dense, *fasts.values()):
        times = interleaved(calls, seconds=seconds, min_rounds=3, max_rounds=50)
        size = tuple(image.shape)
        dense_macs = macs(dense, size)
        counts = {name: macs(fast, size) - macs(fast, size, proposal=False) for name, fast in fasts.items()}
    costs = {}
    for name, count in {"dense": dense_macs, **counts}.items():
        share = median(map_time / dense_time for map_time, dense_time in zip(times[name], times["dense"], strict=True))
        costs[name] = Cost(count, count / dense_macs, median(times[name]), share)
    return costs


def grid_section(
    title: str, image: Tensor, mean: Sequence[float], std: Sequence[float], variants: Variants[tuple[str, float]]
) -> tuple[Section, dict[str, Any]]:
    """A picture (3, H, W) under each (proposal, keep ratio), with a row per proposal and a column per ratio; and the
    record."""
    results = variants.run(image)
    picture = photo(image, mean, std, HEIGHT)
    first = next(iter(results.values()))[1]
    rows: dict[str, list[Panel | None]] = {}
    for (name, keep), (trace, verdict) in results.items():
        if name not in rows:
            input_panel = (
                Panel(picture, "Input", "" if first is None else f"dense: {first.dense}") if not rows else None
            )
            rows[name] = [input_panel]
            maps = [other.significance for (owner, _), (other, _) in results.items() if owner == name]
            heat_map = next((heat(picture, significance[0]) for significance in maps if significance is not None), None)
            alt = f"Significance map of {name}"
            rows[name].append(None if heat_map is None else Panel(heat_map, name, "significance map", alt))
        panel = picture
        if trace.masks:
            mask = trace.masks[0]
            panel = kept(picture, mask.kept[0], mask.grid)
        alt = f"Patches kept at {ratio_text(keep)} by {name}"
        caption, alert = ("", False) if verdict is None else (_prediction_text(verdict), not verdict.same)
        rows[name].append(Panel(panel, f"keep {ratio_text(keep)}", caption, alt, alert))
    cells = [
        {"proposal": name, "keep": keep, "kept": _count(trace), **({} if verdict is None else verdict.record())}
        for (name, keep), (trace, verdict) in results.items()
    ]
    return Section(title, panels=tuple(map(tuple, rows.values()))), {"cells": cells}


def compare_section(
    title: str,
    image: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    variants: Variants[str],
    costs: Mapping[str, Cost],
) -> tuple[Section, dict[str, Any]]:
    """A picture (3, H, W) with each map above the patches that it keeps; and the record."""
    results = variants.run(image)
    picture = photo(image, mean, std, HEIGHT)
    panels: list[Panel] = []
    entries = []
    for name, (trace, verdict) in results.items():
        if verdict is None:
            raise InputError(
                "--compare needs a host with a classifier: it compares the confidence in the dense prediction."
            )
        if not panels:
            panels.append(Panel(picture, "Input", f"dense: {verdict.dense}", "The picture as the model reads it"))
        assert trace.significance is not None
        mask = trace.masks[0]
        stacked = stack([heat(picture, trace.significance[0]), kept(picture, mask.kept[0], mask.grid)])
        note = f"{percent(verdict.confidence)} for {verdict.dense.label}\n"
        note += "same prediction" if verdict.same else f"now {verdict.sieved}"
        caption = f"{name}, {short(1000 * costs[name].seconds)} ms"
        panels.append(Panel(stacked, caption, note, f"Map of {name}, and patches kept", alert=not verdict.same))
        entries.append({"map": name, "kept": _count(trace), **verdict.record()})
    return Section(title, panels=(tuple(panels),)), {"maps": entries}


def grid_table(variants: Variants[tuple[str, float]], size: Sequence[int]) -> tuple[Table, list[dict[str, Any]]]:
    """A table over all pictures, of `size` (3, H, W), with a row per proposal and keep ratio; and its record."""
    dense_macs, rows, entries = macs(variants.dense, size), [], []
    for (name, keep), fast in variants.fasts.items():
        total = macs(fast, size)
        entry = {
            "proposal": name,
            "keep": keep,
            **variants.summary((name, keep)),
            "macs": total,
            "ratio": dense_macs / total,
        }
        rows.append((f"{name}, keep {ratio_text(keep)}", *_scores(entry), f"{dense_macs / total:.2f}x"))
        entries.append(entry)
    head = ("ranking", "answers kept", "confidence in the dense answer", "fewer MACs")
    return Table(head, tuple(rows), "All pictures; MACs with the proposal's."), entries


def compare_table(variants: Variants[str], costs: Mapping[str, Cost]) -> tuple[Table, list[dict[str, Any]]]:
    """A table over all pictures with a row for the dense host and each map; and its record, the dense host first."""
    first = next(iter(variants.verdicts.values()))
    entries: list[dict[str, Any]] = [
        {"map": "dense", "answers_kept": 1.0, "confidence": fmean(verdict.dense.probability for verdict in first)},
        *({"map": name, **variants.summary(name)} for name in variants.fasts),
    ]
    rows = []
    for entry in entries:
        entry |= asdict(costs[entry["map"]])
        name = "dense host, no map" if entry["map"] == "dense" else entry["map"]
        share = percent(entry["share_of_macs"]) if entry["macs"] else "none"
        time = short(1000 * entry["seconds"]), percent(entry["share_of_time"])
        rows.append((name, *_scores(entry), share, *time))
    head = ("map", "answers kept", "confidence in the dense answer", "MACs", "ms a picture", "of the dense time")
    caption = "All pictures. MACs and time of the map alone, one picture at a time, as shares of the dense host's."
    return Table(head, tuple(rows), caption), entries


def compare_plot(entries: Sequence[Mapping[str, Any]]) -> Plot:
    """Plot of the maps of `compare_table`: their time against the confidence in the dense prediction."""
    dense, *maps = entries
    chart = Figure(figsize=(6.4, 3.8))
    axes = chart.subplots()
    axes.axhline(100 * dense["confidence"], color="#59626d", linestyle="--", linewidth=1, label="dense host")
    # Each map has a marker and a colour in a legend: labels beside close points would overlap.
    for entry, marker, colour in zip(maps, cycle("os^Dv<>P"), cycle(_COLOURS), strict=False):
        point = 1000 * entry["seconds"], 100 * entry["confidence"]
        axes.plot(*point, marker, color=colour, markersize=8, clip_on=False, zorder=3, label=entry["map"])
    axes.set_xscale("log")
    axes.margins(x=0.1)
    axes.set_ylim(0, 105 * max(entry["confidence"] for entry in entries))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("time of the map, ms a picture")
    axes.set_ylabel("mean confidence in\nthe dense answer, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    alt = "; ".join(f"{e['map']} {percent(e['confidence'])} at {short(1000 * e['seconds'])} ms" for e in maps)
    return Plot.of(chart, f"Confidence in the dense answer against the time of the map: {alt}.")


# Okabe and Ito's colours, which colour-blind readers can distinguish.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d1f")


def ratio_text(keep: Any) -> str:
    """A keep ratio, or the keep ratios of all stages, as text."""
    return ", ".join(f"{share:g}" for share in keep) if isinstance(keep, tuple) else f"{keep:g}"


def _count(trace: Trace) -> int | None:
    """Number of patches kept; for a host with stages, of pixels in the first stage that drops any, or None."""
    if trace.masks:
        return trace.masks[0].kept.shape[1]
    assert trace.tokens is not None
    return None if isinstance(trace.kept, list) else prod(trace.tokens.grid)


def _prediction_text(verdict: Verdict) -> str:
    return str(verdict.sieved) if verdict.same else f"now {verdict.sieved}"


def _scores(entry: Mapping[str, Any]) -> tuple[str, str]:
    same_share, confidence = entry["answers_kept"], entry["confidence"]
    return ("", "") if same_share is None else (percent(same_share), percent(confidence))

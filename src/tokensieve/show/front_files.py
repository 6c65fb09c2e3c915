"""Writes the results of a search to a folder: recipe files, a table, a plot and everything as JSON."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._files import draft, make_folder, same_file
from ..methods.corrected import CORRECTION
from ..recipe import recipes_with

if TYPE_CHECKING:
    from ..search.front import Front, Point


def save_front(front: Front, folder: str | os.PathLike[str]) -> Path:
    """Write best.json, the recommended recipe, a file for every point of the front, front.csv, .json and .png.

    The folder is made if its parent exists; files of the same names are replaced. Paths of weights are relative to it.
    The correction.safetensors of an earlier search is removed, unless a recipe in the folder names it.

    Raises:
        InputError: it cannot be written.
    """
    from .front_plot import front_plot  # imported only if needed: importing matplotlib is slow

    folder = make_folder(folder)
    for name, point in {"best": front.recommended, **{_file_name(point): point for point in front.pareto}}.items():
        point.recipe.save(folder / f"{name}.json")
    with draft(folder / "front.csv") as file, file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(_row(front.best, folder)))
        writer.writeheader()
        writer.writerows(_row(point, folder) for point in (*front.points, front.corrected) if point is not None)
    with draft(folder / "front.png") as file:
        front_plot(front).savefig(file, format="png", dpi=150)
    with draft(folder / "front.json") as file:
        file.write_text(front.to_json(folder) + "\n", encoding="utf-8")
    old_weights, paths = folder / CORRECTION, [] if front.corrected is None else front.corrected.recipe.paths()
    unused = not any(same_file(old_weights, path) for path in paths)
    if old_weights.is_file() and unused and not recipes_with(old_weights):
        old_weights.unlink()
    return folder


def _file_name(point: Point) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", f"{point.ratio:.2f}x {point.title}".lower())


def _row(point: Point, folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = {
        "title": point.title,
        "kind": point.kind,
        "budget": point.budget,
        "ratio": point.ratio,
        "macs": point.macs,
        "heldout_macs": point.heldout_macs,
    }
    for split in ("search", "heldout"):
        figures = getattr(point, split)
        for name in ("divergence", "agreement", "accuracy", "images"):
            row[f"{split}_{name}"] = None if figures is None else getattr(figures, name)
    for name in ("ratio", "low", "high"):
        row[f"speed_{name}"] = None if point.speed is None else getattr(point.speed, name)
    return {**row, "dominated": point.dominated, "recipe": str(point.recipe.relative_to(folder))}

"""The bundled segmenter on scenes: mean IoU over MACs, by what is left out -> results/scene_segmenter.csv and pictures.

    python benchmarks/scene_segmenter.py [--scenes 500]
    python benchmarks/scene_segmenter.py --plot     # the pictures alone, from the committed figures and weights

Its patches leave early (DToP, none of it trained for that) at several thresholds; at the MACs of each, ToMe and random
patches, restored. MACs are means over the first scenes.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from curves import draw_curves, save
from results import ROOT, read, write
from tokensieve import Recipe, sieve
from tokensieve.data import AsTensor, SceneMaps, load_batches
from tokensieve.errors import RecipeError
from tokensieve.measure import fidelity, macs
from tokensieve.measure.budget import drop_to, merge_to
from tokensieve.segmentation import open_trained
from tokensieve.show.explain import explain
from tokensieve.show.gallery import how_to_read
from tokensieve.show.page import Report, Section, write_png
from tokensieve.show.segments import exit_counts
from tokensieve.show.sheet import sheet

NAME = "nano_segmenter"
THRESHOLDS = (0.999, 0.99, 0.95, 0.9, 0.8, 0.7, 0.6)
SEED = 2  # scenes that training never looked at, on the way or otherwise
COUNTED = 100
METHODS = {"DToP": "#0072b2", "ToMe, restored": "#cc79a7", "random patches, restored": "#7a7a7a"}
PLOT, EXITS = (ROOT / "docs" / "pictures" / f"{name}.png" for name in ("scene_segmenter", "exits"))
SHOWN, AT, HEIGHT, BLANK = (1, 3, 6), 0.95, 224, 72
"""Scenes of the picture, their threshold, a panel's pixels, and those above the first row."""


def measure(count: int) -> list[dict[str, Any]]:
    model, plan = open_trained(NAME)
    assert plan.mean is not None and plan.std is not None  # noqa: PT018
    batches = list(load_batches(SceneMaps("val", count, SEED, AsTensor(plan.mean, plan.std)), 50))
    some = torch.cat([batch.images for batch in batches])[:COUNTED]
    size = tuple(some.shape[1:])
    whole = macs(model, size)
    rows = []

    def row(method: str, setting: float | str, recipe: Recipe | str) -> float:
        fast = sieve(model, recipe)
        told = fidelity(fast, model, batches, labels=True)
        cost = macs(fast, images=some) if fast.plan.varies else macs(fast, size)
        assert told.accuracy is not None
        made: dict[str, Any] = {
            "method": method, "setting": setting, "recipe": str(fast.recipe), "mmac": cost / 1e6,
            "macs_ratio": whole / cost, **told.accuracy.figures, "agreement": told.agreement, "kl": told.kl,
            "scenes": count,
        }  # fmt: skip
        if fast.plan.varies:
            with torch.no_grad():
                trace = fast.trace(some)
            counts = [exit_counts(trace, index) for index in range(len(some))]
            patches = sum(counts[0].values()) * len(counts)
            made |= {f"left_behind_{block}": sum(each[block] for each in counts) / patches for block in counts[0]}
        rows.append(made)
        print(made, file=sys.stderr, flush=True)
        return cost

    row("dense", "", "")
    for threshold in THRESHOLDS:
        cost = row("DToP", threshold, f"dtop(threshold={threshold})")
        for method, baseline in (("ToMe, restored", merge_to), ("random patches, restored", drop_to)):
            try:
                row(method, threshold, baseline(model, cost, size))
            except RecipeError as error:
                print(error, file=sys.stderr)
    return rows


def plot() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = read("scene_segmenter.csv")
    figure, axes = plt.subplots(figsize=(8, 4.2), dpi=160)
    draw_curves(axes, rows, METHODS, "miou")
    axes.set(xlabel="MACs, % of the dense model's (all heads included)", ylabel="mean IoU, %")
    axes.set_ylim(0, 1.08 * float(rows[0]["miou"]))
    axes.legend(frameon=False, loc="lower right")
    save(figure, PLOT)


def picture() -> None:
    """The rows of `tokensieve show`, without its title."""
    model, plan = open_trained(NAME)
    assert plan.mean is not None and plan.std is not None  # noqa: PT018
    scenes = SceneMaps("val", 10, SEED, AsTensor(plan.mean, plan.std))
    images = torch.stack([scenes[index][0] for index in SHOWN])
    told = explain(
        sieve(model, f"dtop(threshold={AT})"), model, images, plan.mean, plan.std, plan.classes, height=HEIGHT
    )
    sections = [Section("", facts=one.facts, panels=(one.panels,)) for one in told]
    drawn = sheet(Report("", sections=tuple(sections), notes=tuple(how_to_read(sections))))
    write_png(EXITS, drawn.crop((0, BLANK, *drawn.size)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--plot", action="store_true")
    args = parser.parse_args()
    if not args.plot:
        write("scene_segmenter.csv", measure(args.scenes))
    plot()
    picture()
    return 0


if __name__ == "__main__":
    sys.exit(main())

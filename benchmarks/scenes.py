"""The bundled pair on scenes: right answers over MACs, by what chooses the tokens -> results/scenes.csv and a plot.

    python benchmarks/scenes.py [--scenes 2000] [--draws 5]
    python benchmarks/scenes.py --plot          # docs/pictures/scenes.png from the committed figures

Merging, and both in one stream, are given exactly the MACs that PaPr takes at each keep ratio, its proposal included.
"""

from __future__ import annotations

import argparse
import sys
from statistics import fmean

import torch

from curves import MACS_LABEL, draw_curves, save
from results import ROOT, read, write
from tokensieve import sieve
from tokensieve.data import Preprocessing, Scenes
from tokensieve.errors import RecipeError
from tokensieve.measure import fidelity, macs
from tokensieve.measure.budget import merge_to
from tokensieve.measure.outputs import collect_outputs
from tokensieve.zoo import create

KEEPS = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
SEED = 2  # scenes that training never looked at, on the way or otherwise
METHODS = {
    "PaPr, nano proposal": "#0072b2",
    "PaPr and ToMe": "#009e73",
    "ToMe": "#cc79a7",
    "centre": "#e69f00",
    "random": "#7a7a7a",
}
PICTURE = ROOT / "docs" / "pictures" / "scenes.png"


def measure(count: int, draws: int) -> list[dict]:
    model, mean, std = create("nano_vit")
    size = (3, *Preprocessing.of(model).input_size)
    scenes = Scenes("validation", count, seed=SEED).batch(range(count))
    normalised = (scenes.images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    loader = list(zip(normalised.split(100), scenes.labels.split(100), strict=True))
    whole, dense = macs(model, size), collect_outputs(model, loader)

    def row(method: str, keep: float, recipes: list) -> dict:
        fasts = [sieve(model, recipe, mean=mean, std=std) for recipe in recipes]
        told = [fidelity(fast, dense, loader, k=1) for fast in fasts]
        right = [one.accuracy.top[1] for one in told]
        host, total = macs(fasts[0], size, proposal=False), macs(fasts[0], size)
        made = {
            "method": method, "keep": keep, "recipe": str(fasts[0].recipe), "mmac_host": host / 1e6,
            "mmac": total / 1e6, "macs_ratio": whole / total, "top1": fmean(right), "top1_low": min(right),
            "top1_high": max(right), "agreement": fmean(one.agreement for one in told),
            "kl": fmean(one.kl for one in told), "scenes": count, "draws": len(recipes),
        }  # fmt: skip
        print(made, flush=True)
        return made

    rows = [row("dense", 1.0, [""])]
    for keep in KEEPS:
        ours = f"papr(keep={keep}, proposal=nano_convnet)"
        rows.append(row("PaPr, nano proposal", keep, [ours]))
        budget, proposal = 1e6 * rows[-1]["mmac"], 1e6 * (rows[-1]["mmac"] - rows[-1]["mmac_host"])
        rows.append(row("random", keep, [f"random(keep={keep}, seed={seed})" for seed in range(draws)]))
        rows.append(row("centre", keep, [f"papr(keep={keep}, significance=centre)"]))
        try:
            rows.append(row("ToMe", keep, [merge_to(model, budget, size)]))
        except RecipeError as error:
            print(error)
        before = f"papr(keep={(1 + keep) / 2:.2f}, proposal=nano_convnet)"
        rows.append(row("PaPr and ToMe", keep, [merge_to(model, budget - proposal, size, before)]))
    return rows


def plot() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=160)
    draw_curves(axes, read("scenes.csv"), METHODS, "top1")
    axes.set(xlabel=MACS_LABEL, ylabel="right answers, %", ylim=(0, 104))
    axes.legend(frameon=False, loc="lower right")
    save(figure, PICTURE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--plot", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(2)
    if not args.plot:
        write("scenes.csv", measure(args.scenes, args.draws))
    plot()
    return 0


if __name__ == "__main__":
    sys.exit(main())

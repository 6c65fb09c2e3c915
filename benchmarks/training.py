"""The curves of the bundled models' training, from its committed logs -> docs/pictures/training.png.

python benchmarks/training.py
"""

from __future__ import annotations

import sys

import matplotlib

from results import ROOT
from tokensieve.train.loop import read_log
from tokensieve.train.nano import SEEN

matplotlib.use("Agg")

NAMES = {
    "nano_vit": ("nano ViT", "#0072b2"),
    "nano_convnet": ("nano ConvNet", "#e69f00"),
    "nano_convnext": ("nano ConvNeXt", "#009e73"),
}


def main() -> int:
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), dpi=160)
    for name in SEEN:
        label, colour = NAMES[name]
        rows = read_log(ROOT / "results", name)
        scenes = [row["images"] / 1000 for row in rows]
        left.plot(scenes, [row["loss"] for row in rows], "o-", color=colour, markersize=3, label=label)
        right.plot(scenes, [row["train_top1"] for row in rows], ":", color=colour)
        right.plot(scenes, [row["validation_top1"] for row in rows], "o-", color=colour, markersize=3, label=label)
    left.set(xlabel="scenes seen, thousands", ylabel="loss, training", ylim=(0, None))
    right.set(xlabel="scenes seen, thousands", ylabel="right answers, %", ylim=(0, 100))
    right.text(0.97, 0.05, "solid: validation, dotted: training", transform=right.transAxes, ha="right", fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "pictures" / "training.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a host with stages still gets right when point-wise operators skip pixels -> results/hierarchical.csv, a plot.

    python benchmarks/hierarchical.py [--photographs FOLDER] [--draws 3] [--scenes 1000]
    python benchmarks/hierarchical.py --plot    # docs/pictures/hierarchical.png from the committed figures

On scenes the bundled nano ConvNeXt, ranked by the bundled proposal. On the 1,500 photographs of imagenette_val models
that `tokensieve train NAME --images imagenette_train.tar --validation imagenette_val.tar` trained, whose weights lie in
FOLDER, ranked by SqueezeNet at their size and at 224 pixels. Both backgrounds, beside the centre and random pixels.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from results import ROOT, SHARED, update
from tokensieve import sieve
from tokensieve.data import Preprocessing, Scenes, image_set, load_batches
from tokensieve.measure import fidelity, macs
from tokensieve.measure.outputs import collect_outputs
from tokensieve.zoo import create

KEEPS = (0.8, 0.7, 0.65, 0.6, 0.5, 0.4, 0.3)
SEED = 2  # scenes that training never looked at, on the way or otherwise
TABLE, PICTURE = "hierarchical.csv", ROOT / "docs" / "pictures" / "hierarchical.png"
COLOURS = {"proposal": "#0072b2", "proposal at 224": "#009e73", "random": "#7a7a7a", "centre": "#e69f00"}
Loader = list[tuple[Tensor, Tensor]]


def measure(
    data: str,
    name: str,
    model: nn.Module,
    mean: Any,
    std: Any,
    size: int,
    proposal: str,
    loader: Loader,
    draws: int,
    sources: tuple[str, ...] = ("proposal", "centre", "random"),
) -> list[dict[str, Any]]:
    """A row for the dense model, and one for each keep ratio, background and source of significance."""
    shape, dense = (3, size, size), collect_outputs(model, loader)
    whole = macs(model, shape)

    def row(source: str, keep: float, background: str, recipes: Iterable[str]) -> dict[str, Any]:
        fasts = [sieve(model, recipe, mean=mean, std=std) for recipe in recipes]
        told = [fidelity(fast, dense, loader, k=1) for fast in fasts]
        right = [one.accuracy.top[1] for one in told]
        made = {
            "data": data, "host": name, "source": source, "background": background, "keep": keep,
            "recipe": str(fasts[0].recipe).replace(f"{SHARED}/", "../shared/"), "top1": fmean(right),
            "top1_low": min(right), "top1_high": max(right), "agreement": fmean(one.agreement for one in told),
            "kl": fmean(one.kl for one in told), "host_macs_ratio": whole / macs(fasts[0], shape, proposal=False),
            "macs_ratio": whole / macs(fasts[0], shape), "dense_gmac": whole / 1e9, "pixels": size,
            "pictures": sum(len(labels) for _, labels in loader), "draws": len(fasts),
        }  # fmt: skip
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in made.items() if k != "recipe"}, flush=True)
        return made

    rows = [row("dense", 1.0, "", [""])]
    asks = {
        "proposal": [proposal],
        "proposal at 224": [f"{proposal}, proposal_size=224"],
        "centre": ["significance=centre"],
        "random": [f"significance=random, seed={seed}" for seed in range(draws)],
    }
    for source in sources:
        for background in ("zero", "keep"):
            for keep in KEEPS:
                recipes = [f"papr(keep={keep}, background={background}, {ask})" for ask in asks[source]]
                rows.append(row(source, keep, background, recipes))
    return rows


def on_scenes(count: int, draws: int) -> list[dict[str, Any]]:
    model, mean, std = create("nano_convnext")
    scenes = Scenes("validation", count, seed=SEED).batch(range(count))
    images = (scenes.images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    loader = list(zip(images.split(100), scenes.labels.split(100), strict=True))
    size = Preprocessing.of(model).input_size[0]
    return measure("scenes", "nano_convnext", model, mean, std, size, "proposal=nano_convnet", loader, draws)


def on_photographs(
    folder: Path, name: str, size: int, args: dict[str, Any], draws: int, sources: tuple[str, ...]
) -> list[dict[str, Any]]:
    model, mean, std = create(name, weights=folder / f"{name}.safetensors", args={"num_classes": 10, **args})
    pictures = image_set(SHARED / "data" / "imagenette_val.tar", Preprocessing((size, size), mean, std))
    loader = [(batch.images, batch.labels) for batch in load_batches(pictures, 100)]
    weights = SHARED / "weights" / "squeezenet1_1.safetensors"
    proposal = f"proposal=squeezenet1_1, proposal_weights='{weights}'"
    return measure("photographs", name, model, mean, std, size, proposal, loader, draws, sources)


def plot() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with (ROOT / "results" / TABLE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    panels = list(dict.fromkeys((row["data"], row["host"]) for row in rows))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 4), dpi=160, sharey=True, squeeze=False)
    for (data, host), panel in zip(panels, axes[0], strict=True):
        own = [row for row in rows if (row["data"], row["host"]) == (data, host)]
        panel.axhline(float(own[0]["top1"]), color="#16191d", linewidth=1, linestyle=(0, (4, 3)))
        for source, colour in COLOURS.items():
            for background, style in (("zero", "-"), ("keep", ":")):
                line = [row for row in own if (row["source"], row["background"]) == (source, background)]
                x, y = ([float(row[key]) for row in line] for key in ("keep", "top1"))
                panel.plot(
                    x, y, style, marker="o", color=colour, markersize=4, label=f"{source}, background {background}"
                )
        panel.set(title=f"{host} on {data}", xlabel="keep ratio of pixels", ylim=(0, 102))
        panel.invert_xaxis()
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("right answers, %")
    figure.legend(*axes[0][0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="lower center", ncols=3)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(PICTURE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photographs", type=Path, help="folder of weights that were trained on photographs")
    parser.add_argument("--hosts", default="nano_convnext", help="whose weights they are, by name")
    parser.add_argument("--args", default="{}", help="JSON, by host: arguments they were built with")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--scenes", type=int, default=1000, help="0 leaves their rows as they are")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--sources", default=",".join(COLOURS), help="of the maps on photographs")
    parser.add_argument("--plot", action="store_true")
    args = parser.parse_args()
    if not args.plot:
        rows = on_scenes(args.scenes, args.draws) if args.scenes else []
        settings = json.loads(args.args)
        for name in args.hosts.split(",") if args.photographs else ():
            rows += on_photographs(
                args.photographs, name, args.size, settings.get(name, {}), args.draws, tuple(args.sources.split(","))
            )
        update(TABLE, rows, "data", "host", "source", "background", "recipe")
    plot()
    return 0


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())

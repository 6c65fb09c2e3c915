"""Every method at the same MACs -> results/compare.csv and docs/pictures/compare.png.

    python benchmarks/compare_methods.py [--host deit_tiny|nano_vit] [--limit N] [--saved 25,35,45,55,65]
    python benchmarks/compare_methods.py --time        # on a quiet machine: measured time, into the rows that are there
    python benchmarks/compare_methods.py --plot        # the picture from the committed figures

DeiT-Tiny on 1,750 photographs (imagenette_val and imagenet_val_a, scored 1000-way, prepared as timm prepares them for
this model unless --preprocessing says otherwise), the bundled pair on scenes. Each recipe takes as many of the host's
MACs as the others; a proposal's come on top in one row (`counted` host) and are part of the budget in another
(`counted` all). Nothing is trained for what it does here: DynamicViT has random predictors, for its cost alone, and
EViT and ATS were published with trained weights, so their rows are unfair to them. Times stay with their recipes.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from results import ROOT, SHARED, write
from tokensieve import Recipe, RecipeError, Sieved, sieve, slim
from tokensieve.data import Preprocessing, Scenes, image_set, load_batches
from tokensieve.measure import fidelity, macs, speed
from tokensieve.measure.outputs import collect_outputs
from tokensieve.search.costs import Costs
from tokensieve.search.families import SINGLES, Proposed, Scheduled
from tokensieve.search.fit import Fit
from tokensieve.zoo import create

WEIGHTS, DATA = SHARED / "weights", SHARED / "data"
RESULTS = ROOT / "results" / "compare.csv"
PICTURE = ROOT / "docs" / "pictures" / "compare.png"
UNFAIR = {"evit": "published with trained weights", "ats": "published with trained weights",
          "dynamicvit": "random predictors: for its cost alone"}  # fmt: skip
OURS = {"guarded": "#d62828", "guarded + readout": "black"}
SPEED_AT = 45
"""The saving at which time is measured."""
BATCH = 16


@dataclass
class Study:
    """A host, labelled images as it reads them, images to search on, and a proposal for it."""

    name: str
    model: nn.Module
    size: tuple[int, int, int]
    loader: list[tuple[Tensor, Tensor]]
    search: list[Tensor]
    proposal: dict[str, Any]
    mean: Any = None
    std: Any = None


def deit_tiny(limit: int | None, preprocessing: str = "timm", search_on: int = 250) -> Study:
    model = create("deit_tiny_patch16_224", weights=WEIGHTS / "deit_tiny_patch16_224.safetensors").model.eval()
    prepared, loader = Preprocessing.named(preprocessing, model), []
    for folder in (DATA / "imagenet_val_a", DATA / "imagenette_val.tar"):
        pictures = image_set(folder, prepared, classes=DATA / "imagenet_classes.json", limit=limit)
        loader += [(batch.images, batch.labels) for batch in load_batches(pictures, 50)]
    train = image_set(DATA / "imagenette_train.tar", prepared, limit=search_on)
    search = [batch.images for batch in load_batches(train, 32)]
    weights = str(WEIGHTS / "squeezenet1_1.safetensors")
    return Study(
        "deit_tiny", model, (3, 224, 224), loader, search, {"proposal": "squeezenet1_1", "proposal_weights": weights}
    )


def bundled(limit: int | None, preprocessing: str = "timm") -> Study:
    model, mean, std = create("nano_vit")  # scenes are made at the size it reads: nothing is resized
    count = limit or 1000

    def normalised(split: str, count: int) -> tuple[Tensor, Tensor]:
        scenes = Scenes(split, count, seed=2).batch(range(count))
        return (scenes.images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None], scenes.labels

    images, labels = normalised("validation", count)
    loader = list(zip(images.split(100), labels.split(100), strict=True))
    search = list(normalised("train", 250)[0].split(32))
    return Study("nano_vit", model, tuple(images.shape[1:]), loader, search, {"proposal": "nano_convnet"}, mean, std)


HOSTS = {"deit_tiny": deit_tiny, "nano_vit": bundled}
NAMED = ("host", "saved", "method", "counted", "recipe")
TIMED = ("batch", "ratio", "ratio_low", "ratio_high", "limit")


def recipes(study: Study, saved: int) -> Iterator[tuple[str, str, Recipe]]:
    """Method, what is counted, and the recipe that takes the host's MACs less `saved` per cent."""
    costs = Costs(sieve(study.model), study.size)
    fit = Fit(costs, costs.dense * (1 - saved / 100))
    dear = sieve(study.model, Recipe.of(Proposed(study.proposal).recipe({}, {}, fit)), mean=study.mean, std=study.std)
    left = fit.target - (macs(dear, study.size) - macs(dear, study.size, proposal=False))
    yield "papr", "host", dear.recipe
    yield "papr", "all", Proposed(study.proposal).recipe({}, {}, Fit(costs, left))
    yield "papr, centre", "host", Proposed({"significance": "centre"}).recipe({}, {}, fit)
    for name, family in SINGLES.items():
        if name != "ats":
            yield name, "host", family.recipe({}, family.variants()[0], fit)
    yield "ats", "host", sampled(study, fit.target)
    yield "dynamicvit", "host", fit.count(1, 999, lambda n: Recipe.parse(f"dynamicvit(keep={n / 1000})"))
    yield "patch_slimming", "host", slim(study.model, study.search[:2], saving=saved / 100).recipe
    exact = Fit(costs, fit.target, readout=True)
    yield "tome + readout", "host", Scheduled("tome").recipe({}, {}, exact)
    yield "guarded + readout", "host", Scheduled("guarded").recipe({}, {}, exact)


def sampled(study: Study, target: float) -> Recipe:
    """ATS keeps another number in each image: the most tokens at which the mean over the search images fits."""
    images, low, high = study.search[0], 2, 400
    while high - low > 1:
        middle = (low + high) // 2
        cost = macs(sieve(study.model, f"ats(tokens={middle})"), images=images)
        low, high = (middle, high) if cost <= target else (low, middle)
    return Recipe.parse(f"ats(tokens={low})")


def at_saving(study: Study, saved: int) -> Iterator[tuple[str, str, Recipe]]:
    """`recipes`, up to the first that cannot save so much."""
    try:
        yield from recipes(study, saved)
    except RecipeError as error:
        print(f"{study.name}, {saved} % saved: {error}", file=sys.stderr, flush=True)


def opened(study: Study, method: str, recipe: Recipe) -> Sieved:
    return sieve(study.model, recipe, mean=study.mean, std=study.std, pretrained=method != "dynamicvit")


@torch.no_grad()
def measure(study: Study, savings: list[int], rows: list[dict[str, Any]]) -> None:
    dense = collect_outputs(study.model, study.loader)
    labels = torch.cat([labels for _, labels in study.loader])
    right = float((dense.argmax(1) == labels).double().mean())
    whole = macs(study.model, study.size)
    timed = {tuple(row[key] for key in NAMED): {key: row.get(key, "") for key in TIMED} for row in read()}
    for saved in savings:
        for method, counted, recipe in at_saving(study, saved):
            draws = [recipe] if method != "random" else [recipe_of_seed(recipe, seed) for seed in range(3)]
            fasts = [opened(study, method, one) for one in draws]
            told = [fidelity(fast, dense, study.loader, k=1) for fast in fasts]
            cost = {} if method != "ats" else {"images": study.search[0]}
            row: dict[str, Any] = {
                "host": study.name, "saved": saved, "method": method, "counted": counted,
                "gmac_host": macs(fasts[0], study.size, proposal=False, **cost) / 1e9,
                "gmac": macs(fasts[0], study.size, **cost) / 1e9, "gmac_dense": whole / 1e9,
                "top1_dense": 100 * right, "top1": fmean(one.accuracy.top[1] for one in told),
                "agreement": fmean(one.agreement for one in told), "kl": fmean(one.kl for one in told),
                "images": told[0].count, "unfair": UNFAIR.get(method, ""),
                "recipe": shown(recipe),
            }  # fmt: skip
            rows.append(row | timed.get(tuple(str(row[key]) for key in NAMED), {}))
            write("compare.csv", rows)
            print(
                f"{study.name:10} {saved} % {method:18} {counted:5} {row['gmac']:.3f} GMAC  top-1 {row['top1']:.1f}  "
                f"agreement {row['agreement']:.1f}  KL {row['kl']:.4f}",
                flush=True,
            )


def add_time(hosts: list[str]) -> None:
    """Time against dense and the slicing limit, for the recipes of one saving, into compare.csv."""
    rows = read()
    for host in hosts:
        study = HOSTS[host](BATCH)
        images = torch.cat([images for images, _ in study.loader])[:BATCH]
        for method, counted, recipe in at_saving(study, SPEED_AT):
            took = speed(opened(study, method, recipe), study.model, images)
            told = {"batch": BATCH, "ratio": took.ratio, "ratio_low": took.low, "ratio_high": took.high}
            told |= {"limit": took.limit}
            for row in rows:
                if (row["host"], row["method"], row["counted"], row["saved"]) == (host, method, counted, str(SPEED_AT)):
                    row |= told
            print(f"{host:10} {method:18} {counted:5} {took.ratio:.2f}x, limit {took.limit:.2f}x", flush=True)
            write("compare.csv", rows)


def read() -> list[dict[str, Any]]:
    """The rows that are there."""
    if not RESULTS.is_file():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def recipe_of_seed(recipe: Recipe, seed: int) -> Recipe:
    return Recipe.parse(str(recipe).replace(")", f", seed={seed})"))


def shown(recipe: Recipe) -> str:
    text = str(recipe).replace(f"{SHARED}/", "../shared/")
    return text if len(text) < 300 else text[:120] + " ..."


def plot() -> None:
    import matplotlib.pyplot as plt

    rows = read()
    hosts = {"deit_tiny": "DeiT-Tiny, photographs", "nano_vit": "bundled pair, scenes"}
    present = [host for host in hosts if any(row["host"] == host for row in rows)]
    figure, axes = plt.subplots(1, len(present), figsize=(5.6 * len(present) + 2, 5.4), squeeze=False)
    tab = plt.get_cmap("tab20").colors
    colours = [colour for number, colour in enumerate(tab) if number not in (6, 7)]  # red is taken
    told = [row for row in rows if row["counted"] == "host" and row["method"] != "dynamicvit"]
    middle = [row for row in told if row["host"] == present[0] and row["saved"] == str(SPEED_AT)]
    methods = [row["method"] for row in sorted(middle, key=lambda row: float(row["kl"]))]
    for axis, host in zip(axes[0], present, strict=True):
        for number, method in enumerate(methods):
            mine = [row for row in told if row["host"] == host and row["method"] == method]
            ours = method in OURS
            axis.plot(
                [float(row["gmac_host"]) / float(row["gmac_dense"]) * 100 for row in mine],
                [max(float(row["kl"]), 1e-5) for row in mine],
                marker="os^Dv"[number % 5], markersize=6 if ours else 4, linewidth=3 if ours else 1.2,
                color=OURS.get(method, colours[number % len(colours)]), linestyle="--" if method in UNFAIR else "-",
                zorder=3 if ours else 2, label=method + (" (untrained)" if method in UNFAIR else ""),
            )  # fmt: skip
        axis.set(
            yscale="log", title=hosts[host], xlabel="the host's MACs, % of dense", ylabel="KL from the dense model"
        )
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    figure.set_layout_engine("constrained")
    figure.savefig(PICTURE, dpi=110)
    print(PICTURE.relative_to(ROOT), file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--host", choices=HOSTS, action="append")
    parser.add_argument("--limit", type=int, help="images of each set; default all 1,750, and 1,000 scenes")
    parser.add_argument("--saved", default="25,35,45,55,65", help="per cent of the host's MACs")
    parser.add_argument("--preprocessing", choices=("timm", "papers"), default="timm")
    parser.add_argument("--time", action="store_true", help="measured time alone, for the recipes of compare.csv")
    parser.add_argument("--plot", action="store_true", help="the picture alone")
    args = parser.parse_args()
    hosts = [host for host in args.host or HOSTS if host != "deit_tiny" or WEIGHTS.is_dir()]
    if "deit_tiny" not in hosts and "deit_tiny" in (args.host or HOSTS):
        print(f"deit_tiny is skipped: its weights are expected in {WEIGHTS}.", file=sys.stderr)
    if args.time:
        add_time(hosts)
    elif not args.plot:
        savings = args.saved.split(",")
        rows = [row for row in read() if row["host"] not in hosts or row["saved"] not in savings]
        for host in hosts:
            measure(HOSTS[host](args.limit, args.preprocessing), [int(saved) for saved in savings], rows)
    plot()
    return 0


if __name__ == "__main__":
    sys.exit(main())

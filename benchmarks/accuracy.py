"""Accuracy with pretrained weights on 250 ImageNet validation photographs -> results/accuracy.csv and overlap.csv.

    python benchmarks/accuracy.py [--quick]
    python benchmarks/accuracy.py --preprocessing papers      # -> results/accuracy_papers.csv, compared with a sketch

DeiT-Tiny under PaPr (SqueezeNet, MobileNetV2, the CAM family, random, centre), ToMe, and both; top-k; the overlap of
kept sets between proposals. Scored 1000-way. The photographs are prepared as timm prepares them for this model, or as
the papers do (resized to exactly 224 pixels), which is what the sketch's figures belong to.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from results import SHARED, provenance, write
from tokensieve import PaPr, Recipe, ToMe, sieve
from tokensieve.data import Preprocessing, image_set, load_batches
from tokensieve.measure import macs
from tokensieve.measure.comparison import kl_divergence
from tokensieve.zoo import create

WEIGHTS = SHARED / "weights"
RATIOS = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
KS = tuple(range(1, 11))

SQUEEZENET = PaPr(keep=1, proposal="squeezenet1_1", proposal_weights=WEIGHTS / "squeezenet1_1.safetensors")
MOBILENET = PaPr(
    keep=1,
    proposal="mobilenetv2_100",
    proposal_weights=WEIGHTS / "mobilenetv2_100.safetensors",
    proposal_args={"pad_type": "same", "pretrained_cfg_overlay": {"mean": (0.5,) * 3, "std": (0.5,) * 3}},
)
# top-1 / agreement measured with an independent sketch before this project existed, in the papers' preprocessing
SKETCH = {
    "squeezenet1_1": ("68.0 95.2", "67.2 91.6", "65.6 87.6", "64.8 84.0", "60.8 74.8", "54.8 64.4"),
    "mobilenetv2_100": ("66.8 94.4", "66.4 90.8", "64.8 82.8", "60.8 78.8", "56.4 70.0", "49.6 58.8"),
    "random, draw 0": ("66.4 84.4", "64.4 80.0", "62.4 74.4", "56.8 66.8", "45.2 54.0", "30.4 33.6"),
}
CAMS = ("cam", "grad-cam", "grad-cam++", "eigen-cam", "score-cam")


class Study:
    """The dense model, the photographs, and its answers to them."""

    def __init__(self, preprocessing: str = "timm") -> None:
        loaded = create("deit_tiny_patch16_224", weights=WEIGHTS / "deit_tiny_patch16_224.safetensors")
        self.model = loaded.model.eval()
        photographs = image_set(
            SHARED / "data" / "imagenet_val_a",
            Preprocessing.named(preprocessing, self.model),
            classes=SHARED / "data" / "imagenet_classes.json",
        )
        batches = list(load_batches(photographs, 50))
        self.images = torch.cat([batch.images for batch in batches])
        self.labels = torch.cat([batch.labels for batch in batches])
        self.dense = self.answers(self.model)
        self.gmac = macs(self.model) / 1e9

    def answers(self, model: torch.nn.Module) -> Tensor:
        return torch.cat([model(part) for part in self.images.split(50)])

    def score(self, recipe: Recipe | PaPr | ToMe, maps: Tensor | None = None) -> dict[str, Any]:
        """Top-k, agreement, KL and cost of a recipe; `maps` (250, 196) replaces what its proposal would compute."""
        recipe = Recipe.of(recipe)
        outputs = []
        for start in range(0, len(self.images), 50):
            applied = recipe
            if maps is not None:
                part = maps[start : start + 50]
                applied = Recipe(tuple(replace(m, significance=part) if isinstance(m, PaPr) else m for m in recipe))
            outputs.append(sieve(self.model, applied)(self.images[start : start + 50]))
        output = torch.cat(outputs)
        ranked = output.argsort(dim=1, descending=True, stable=True)[:, : max(KS)]
        hits = (ranked == self.labels[:, None]).cumsum(1).double().mean(0) * 100
        fast = sieve(self.model, recipe)
        return {
            "recipe": str(recipe).replace(f"{SHARED}/", "../shared/"),
            **{f"top{k}": float(hits[k - 1]) for k in KS},
            "agreement": float((output.argmax(1) == self.dense.argmax(1)).double().mean() * 100),
            "kl": float(kl_divergence(self.dense.double(), output.double()).mean()),
            "gmac_host": macs(fast, proposal=False) / 1e9,
            "gmac_with_proposal": macs(fast) / 1e9,
            "gmac_dense": self.gmac,
        }

    def map(self, source: PaPr) -> Tensor:
        significance = sieve(self.model, replace(source, keep=0.5)).significance
        return torch.cat([significance(part, (14, 14)) for part in self.images.split(10)])


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="leave out Score-CAM, which takes most of the time")
    parser.add_argument("--preprocessing", choices=("timm", "papers"), default="timm")
    args = parser.parse_args()
    quick, papers = args.quick, args.preprocessing == "papers"
    if not WEIGHTS.is_dir():
        print(f"The weights and photographs are expected in {SHARED}; nothing to measure.", file=sys.stderr)
        return 2
    study, rows = Study(args.preprocessing), []

    def row(table: str, source: str, scored: dict[str, Any], sketch: str = "") -> None:
        sketch = sketch if papers else ""
        beside = dict(zip(("sketch_top1", "sketch_agreement"), map(float, sketch.split()), strict=False))
        rows.append({"table": table, "source": source, **scored, **beside})
        print(f"{table:10} {source:24} {scored['recipe'][:48]:48} top-1 {scored['top1']:5.1f}  "
              f"agreement {scored['agreement']:5.1f}  KL {scored['kl']:.3f}  {sketch}", flush=True)  # fmt: skip

    row("dense", "", study.score(Recipe()))
    maps = {"squeezenet1_1": study.map(SQUEEZENET), "mobilenetv2_100": study.map(MOBILENET)}
    for name, method in (("squeezenet1_1", SQUEEZENET), ("mobilenetv2_100", MOBILENET)):
        for keep, sketch in zip(RATIOS, SKETCH[name], strict=True):
            # the ready map saves time; the first ratio runs the proposal itself, to show that both are one
            ready = None if keep == RATIOS[0] else maps[name]
            row("papr", name, study.score(replace(method, keep=keep), ready), sketch)
    for layer in (7, 10, 11):  # finer and earlier maps of the same network
        source = replace(SQUEEZENET, layer=layer)
        maps[f"squeezenet1_1 layer {layer}"] = study.map(source)
        for keep in (0.7, 0.5, 0.4):
            row("layer", f"squeezenet1_1 layer {layer}", study.score(replace(source, keep=keep), study.map(source)))

    draws = [torch.rand(250, 196, generator=torch.Generator().manual_seed(seed)) for seed in range(10)]
    for keep, sketch in zip(RATIOS, SKETCH["random, draw 0"], strict=True):
        random = PaPr(keep=keep, significance="random")
        scored = [study.score(random, draw) for draw in draws]
        row("random", "random, draw 0", scored[0], sketch)
        means = {key: mean(one[key] for one in scored) for key in scored[0] if key != "recipe"}
        ends = {f"{key}_{end.__name__}": end(one[key] for one in scored)
                for key in ("top1", "agreement") for end in (min, max)}  # fmt: skip
        row("random", "random, mean of 10 draws", {"recipe": str(Recipe.of(random)), **means, **ends})
    maps["centre"] = study.map(PaPr(keep=1, significance="centre"))
    for keep in RATIOS:
        row("centre", "centre", study.score(PaPr(keep=keep, significance="centre")))

    for cam in CAMS[:-1] if quick else CAMS:
        source = replace(SQUEEZENET, significance=cam)
        maps[cam] = study.map(source)
        for keep in (0.7, 0.5, 0.4, 0.3):
            row("cam", f"squeezenet1_1 {cam}", study.score(replace(source, keep=keep), maps[cam]))

    for r in (4, 8, 13, 16):
        row("tome", "", study.score(ToMe(r=r)))
    for keep in (1, 0.9, 0.8, 0.7, 0.6, 0.5):
        for r in (0, 4, 8, 13):
            row("papr+tome", "squeezenet1_1", study.score(replace(SQUEEZENET, keep=keep) + ToMe(r=r),
                                                         maps["squeezenet1_1"]))  # fmt: skip
    for order in ("raster", "significance"):
        method = replace(SQUEEZENET, keep=0.7, order=order) + ToMe(r=12, layers=slice(6, 12))
        row("order", f"squeezenet1_1, {order}", study.score(method, maps["squeezenet1_1"]))
    print(provenance()["machine"])
    if papers:
        write("accuracy_papers.csv", rows)
        return check(rows)
    write("accuracy.csv", rows)
    write("overlap.csv", overlaps({**maps, "random": draws[0]}))
    return 0


def overlaps(maps: dict[str, Tensor], keep: float = 0.5) -> list[dict[str, Any]]:
    """Share of the kept set that two maps have in common, mean over photographs; `keep` for two random sets."""
    count = int(197 * keep)
    kept = {
        name: torch.zeros_like(values, dtype=torch.bool).scatter(
            1, values.argsort(dim=1, descending=True, stable=True)[:, :count], True
        )
        for name, values in maps.items()
    }
    return [
        {"a": a, "b": b, "keep": keep, "overlap": float((kept[a] & kept[b]).sum(1).double().mean() / count)}
        for i, a in enumerate(kept)
        for b in list(kept)[i + 1 :]
    ]


def check(rows: list[dict[str, Any]]) -> int:
    """Compare with the sketch: 0.8 points for the two networks and the same random draw."""
    compared = [row for row in rows if "sketch_top1" in row]
    far = [row for row in compared if abs(row["top1"] - row["sketch_top1"]) > 0.8 + 1e-9]
    for row in far:
        print(f"more than 0.8 points from the sketch: {row['source']} {row['recipe']}: {row['top1']:.1f}")
    print(f"{len(compared) - len(far)} of {len(compared)} rows within 0.8 points of the sketch")
    return 1 if far else 0


if __name__ == "__main__":
    sys.exit(main())

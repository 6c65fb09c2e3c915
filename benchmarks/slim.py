"""Patch Slimming searched on 64 photographs, against PaPr and ToMe at the same MACs -> results/slim.csv.

    python benchmarks/slim.py [--saving 0.25] [--granularity 5] [--limit N]

DeiT-Tiny; the search sees training photographs without their labels. Judged on 250 ImageNet validation photographs
(imagenet_val_a) and on 1,500 others of ten classes (imagenette_val), scored 1000-way. PaPr once with the proposal's
MACs within the budget and once with the host's alone, and without any proposal; the last block's readout, which Patch
Slimming's form A contains, is also given to the others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch

from results import SHARED, write
from tokensieve import PaPr, Recipe, sieve
from tokensieve.data import Preprocessing, image_set, load_batches
from tokensieve.measure import fidelity, macs
from tokensieve.measure.budget import merge_to
from tokensieve.measure.outputs import collect_outputs
from tokensieve.search.slimming import Slimmed, slim
from tokensieve.zoo import create

WEIGHTS, DATA = SHARED / "weights", SHARED / "data"
SIZE = (3, 224, 224)
SQUEEZENET = PaPr(keep=1, proposal="squeezenet1_1", proposal_weights=WEIGHTS / "squeezenet1_1.safetensors")
SETS = {"imagenet_val_a": DATA / "imagenet_val_a", "imagenette_val": DATA / "imagenette_val.tar"}


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--saving", type=float, default=0.25, help="share of the MACs to save at least")
    parser.add_argument("--granularity", type=int, default=5)
    parser.add_argument("--limit", type=int, help="photographs of each set, evenly spread; default all")
    parser.add_argument("--preprocessing", choices=("timm", "papers"), default="timm")
    args = parser.parse_args()
    if not WEIGHTS.is_dir():
        print(f"The weights and photographs are expected in {SHARED}; nothing to measure.", file=sys.stderr)
        return 2
    model = create("deit_tiny_patch16_224", weights=WEIGHTS / "deit_tiny_patch16_224.safetensors").model.eval()
    prepared = Preprocessing.named(args.preprocessing, model)
    whole = macs(model, SIZE)

    searched, recipes = {}, dict[str, Recipe]()
    photographs = load_batches(image_set(DATA / "imagenette_train.tar", prepared, limit=64), 32)
    for name, form, approx in (("form A", "A", None), ("form B", "B", None), ("form A, head_mean", "A", "head_mean")):
        start = perf_counter()
        found = slim(
            model, photographs, saving=args.saving, granularity=args.granularity, form=form, approx=approx, report=print
        )
        searched[f"patch_slimming, {name}"] = (found, perf_counter() - start)
        recipes[f"patch_slimming, {name}"] = found.recipe
    # Everything gets the MACs that form A has left.
    target = macs(sieve(model, recipes["patch_slimming, form A"]), SIZE)
    centre = PaPr(keep=1, significance="centre")
    random = PaPr(keep=1, significance="random")
    recipes |= {
        "papr, squeezenet, its MACs in the budget": at(target, model, SQUEEZENET, proposal=True),
        "papr, squeezenet, its MACs on top": at(target, model, SQUEEZENET, proposal=False),
        "papr, centre": at(target, model, centre),
        "papr, random": at(target, model, random),
        "tome": merge_to(model, target, SIZE),
        "papr, squeezenet, its MACs on top + readout": at(target, model, SQUEEZENET, "readout()", proposal=False),
        "papr, centre + readout": at(target, model, centre, "readout()"),
        "tome + readout": merge_to(model, target, SIZE, "readout()"),
    }
    rows = []
    for photographs_of, folder in SETS.items():
        pictures = image_set(folder, prepared, classes=DATA / "imagenet_classes.json", limit=args.limit)
        dense = collect_outputs(model, load_batches(pictures, 50))
        for name, recipe in {"dense": Recipe(), **recipes}.items():
            fast = sieve(model, recipe)
            result = fidelity(fast, dense, load_batches(pictures, 50), k=1)
            assert result.accuracy is not None
            row: dict[str, Any] = {
                "photographs": photographs_of, "count": result.count, "method": name,
                "gmac": macs(fast, SIZE) / 1e9, "gmac_host": macs(fast, SIZE, proposal=False) / 1e9,
                "saving": 1 - macs(fast, SIZE) / whole, "top1": result.accuracy.top[1],
                "agreement": result.agreement, "agreement_stderr": result.agreement_stderr, "kl": result.kl,
                **(told(*searched[name]) if name in searched else {}),
                "recipe": "" if name in searched else str(recipe).replace(f"{SHARED}/", "../shared/"),
            }  # fmt: skip
            rows.append(row)
            print(f"{photographs_of:15} {name:44} {row['gmac']:.3f} GMAC  top-1 {row['top1']:.1f}  "
                  f"agreement {row['agreement']:.1f}  KL {row['kl']:.4f}", flush=True)  # fmt: skip
    write("slim.csv", rows)
    return 0


def told(found: Slimmed, seconds: float) -> dict[str, Any]:
    return {
        "patches": " ".join(map(str, found.counts)),
        "tolerance": found.tolerance,
        "searched_on": found.images,
        "search_seconds": seconds,
    }


def at(target: float, model: torch.nn.Module, method: PaPr, after: str = "", proposal: bool = False) -> Recipe:
    """The recipe with the largest keep ratio, in steps of one patch, that fits `target` MACs."""

    def recipe(patches: int) -> Recipe:
        return replace(method, keep=(patches + 0.5) / 197) + after

    return recipe(largest(lambda count: macs(sieve(model, recipe(count)), SIZE, proposal=proposal) <= target))


def largest(fits: Callable[[int], bool], low: int = 1, high: int = 196) -> int:
    """The largest number in [low, high) that fits, where smaller ones fit as well."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


if __name__ == "__main__":
    sys.exit(main())

"""Dense heads under methods that were never trained for them -> results/dense_heads.csv.

    python benchmarks/dense_heads.py [--limit 250]
    python benchmarks/dense_heads.py --time    # on a quiet machine: ToMe's time beside the dense model's and the limit

`macs`: Depth Anything's small and base settings at 518 pixels, random weights, dense and under ToMe; backbone, neck and
head together. `error`: how far the four levels that a DPT head reads are from the dense model's once they are back on
the grid, || restored - dense || / || dense || for each photograph, and their mean; DeiT-Tiny's patches behind blocks 2,
5, 8 and 11 on ImageNet's validation photographs; `kept_macs` are the backbone's with the proposal.
`time`: the small settings, one image, random weights, dense, sieved and the slicing limit in turns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from accuracy import SQUEEZENET, WEIGHTS
from results import SHARED, update
from tokensieve import Recipe, sieve
from tokensieve.data import Preprocessing, image_set, load_batches
from tokensieve.measure import macs, speed
from tokensieve.zoo import create

TABLE = "dense_heads.csv"
SIDE = 518
PATCHES = (SIDE // 14) ** 2
SIZES = {
    "small": {"hidden_size": 384, "num_attention_heads": 6, "neck": [48, 96, 192, 384], "fusion": 64},
    "base": {"hidden_size": 768, "num_attention_heads": 12, "neck": [96, 192, 384, 768], "fusion": 128},
}
LEVELS = (2, 5, 8, 11)
MERGES = (10, 20, 40, 60, 80)
KEY = ("what", "model", "recipe", "fill", "level")


def depth_anything(name: str) -> nn.Module:
    """Of Depth Anything's published settings, with random weights."""
    size = SIZES[name]
    backbone = Dinov2Config(
        hidden_size=size["hidden_size"],
        num_attention_heads=size["num_attention_heads"],
        num_hidden_layers=12,
        image_size=SIDE,
        patch_size=14,
        out_features=["stage9", "stage10", "stage11", "stage12"],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=size["hidden_size"],
        neck_hidden_sizes=size["neck"],
        fusion_hidden_size=size["fusion"],
        head_hidden_size=32,
    )
    return DepthAnythingForDepthEstimation(config).eval()


def counted() -> list[dict[str, Any]]:
    """MACs of whole models, on the meta device: they follow from shapes."""
    rows = []
    for name in SIZES:
        with torch.device("meta"):
            model = depth_anything(name)
        whole = macs(model, (3, SIDE, SIDE))
        backbone = macs(model.backbone, (3, SIDE, SIDE))
        parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        for recipe in ("", *(f"tome(r={r})" for r in MERGES)):
            told = macs(sieve(model, recipe), (3, SIDE, SIDE))
            row = {
                "what": "macs", "model": f"depth_anything_{name}", "recipe": recipe or "dense", "fill": "",
                "level": "all",
                "pixels": SIDE, "million_parameters": parameters, "gmac": told / 1e9, "kept_macs": told / whole,
                "head_gmac": (whole - backbone) / 1e9, "merged_share": share_merged(recipe, PATCHES, 12),
            }  # fmt: skip
            print(row, flush=True)
            rows.append(row)
    return rows


def share_merged(recipe: str, patches: int, depth: int) -> float:
    """Of the patches, how many are merged away behind the last block."""
    rates = [getattr(method, "r", 0) for method in Recipe.parse(recipe)] if recipe else []
    return min(sum(rate for rate in rates if isinstance(rate, int)) * depth / patches, 1.0)


def recipes() -> list[tuple[Recipe, str]]:
    """Recipe and fill; PaPr's proposal is the smallest that weights are at hand for."""
    papr = [Recipe.of(replace(SQUEEZENET, keep=keep)) for keep in (0.9, 0.75, 0.5, 0.25)]
    rates = (2, 4, 8, 13)
    texts = [f"{name}(r={r})" for name in ("tome", "guarded") for r in rates]
    texts += [f"pitome(r={r}, margin=0.75)" for r in rates]  # the margin for DeiT
    merging = [Recipe.parse(text) for text in texts]
    return [(recipe, "nearest") for recipe in (*merging, *papr)] + [(recipe, "zero") for recipe in papr]


@torch.no_grad()
def errors(limit: int | None) -> Iterator[list[dict[str, Any]]]:
    """Relative errors of the maps that a DPT head would read, for each recipe."""
    model = create("deit_tiny_patch16_224", weights=WEIGHTS / "deit_tiny_patch16_224.safetensors").model.eval()
    data = SHARED / "data"
    photographs = image_set(
        data / "imagenet_val_a", Preprocessing.of(model), classes=data / "imagenet_classes.json", limit=limit
    )
    batches = [batch.images for batch in load_batches(photographs, 25)]
    count = sum(len(images) for images in batches)
    wanted: dict[str, Any] = {"indices": list(LEVELS), "intermediates_only": True}
    dense = [model.forward_intermediates(images, **wanted) for images in batches]
    whole = macs(model)
    for recipe, fill in recipes():
        rows: list[dict[str, Any]] = []
        fast = sieve(model, recipe)
        found: list[list[Tensor]] = [[] for _ in LEVELS]
        for images, exact in zip(batches, dense, strict=True):
            restored = fast.forward_intermediates(images, **wanted, restore=True, fill=fill)
            for level, (one, other) in enumerate(zip(restored, exact, strict=True)):
                found[level].append(apart(one, other))
        per_level = {str(block): torch.cat(values) for block, values in zip(LEVELS, found, strict=True)}
        per_level["all"] = torch.stack(list(per_level.values())).mean(0)
        for level, values in per_level.items():
            rows.append(
                {
                    "what": "error", "model": "deit_tiny_patch16_224", "level": level, "fill": fill,
                    "recipe": str(fast.recipe).replace(f"{SHARED}/", "../shared/"), "pixels": 224, "images": count,
                    "kept_macs": macs(fast) / whole, "relative_error": float(values.mean()),
                    "relative_error_low": float(values.quantile(0.05)),
                    "relative_error_high": float(values.quantile(0.95)),
                }
            )  # fmt: skip
        print(f"{rows[-1]['recipe'][:60]:60} {fill:8} {rows[-1]['kept_macs']:.3f} {rows[-1]['relative_error']:.3f}")
        yield rows


def apart(restored: Tensor, exact: Tensor) -> Tensor:
    """|| restored - exact || / || exact || of each image: (B,)."""
    return (restored - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)


def timed(seconds: float) -> list[dict[str, Any]]:
    """ToMe's time on the small settings, as ratios to the dense model's in the same run."""
    torch.manual_seed(0)
    model, images, rows = depth_anything("small"), torch.randn(1, 3, SIDE, SIDE), []
    for r in MERGES[1:4]:
        fast = sieve(model, f"tome(r={r})")
        told = speed(fast, model, images, seconds=seconds)
        row = {
            "what": "time", "model": "depth_anything_small", "recipe": f"tome(r={r})", "fill": "", "level": "all",
            "pixels": SIDE, "kept_macs": macs(fast, (3, SIDE, SIDE)) / macs(model, (3, SIDE, SIDE)),
            "ratio": told.ratio, "ratio_low": told.low, "ratio_high": told.high, "limit": told.limit,
        }  # fmt: skip
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit", type=int, help="photographs; default all")
    parser.add_argument("--time", action="store_true", help="the time alone, for the rows of dense_heads.csv")
    parser.add_argument("--seconds", type=float, default=30, help="of each measurement of time")
    args = parser.parse_args()
    for rows in [timed(args.seconds)] if args.time else chain([counted()], errors(args.limit)):
        update(TABLE, [row | {"transformers": transformers.__version__} for row in rows], *KEY)
    return 0


if __name__ == "__main__":
    sys.exit(main())

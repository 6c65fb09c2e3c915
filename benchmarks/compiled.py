"""Inductor: compiled sieved model against compiled dense model -> results/compile.csv.

    python benchmarks/compiled.py [--host vit_base_patch16_224] [--depth 12] [--batches 8,4]

One graph with a dynamic batch; the second batch size must not compile again. Ratios are to the compiled dense model.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from statistics import median

import timm
import torch
from torch import nn
from torch._dynamo.utils import counters

from results import speed_columns, write
from tokensieve import sieve
from tokensieve.measure import SlicingLimit
from tokensieve.measure.speed import interleaved, summarise

RECIPES = ("papr(keep=0.5)", "tome(r=13)", "papr(keep=0.8) + tome(r=8)")


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, fullgraph=True, dynamic=None)


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--host", default="vit_base_patch16_224")
    parser.add_argument("--batches", default="8,4")
    parser.add_argument("--recipes", default=";".join(RECIPES), help="joined by ;")
    parser.add_argument("--out", default="compile.csv")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = timm.create_model(args.host).eval()
    batches = [torch.randn(int(batch), 3, 224, 224) for batch in args.batches.split(",")]
    for images in batches:
        torch._dynamo.mark_dynamic(images, 0)
    rows = []
    for recipe in args.recipes.split(";"):
        # Else dynamo, seeing the same code with other numbers, takes the token counts for dynamic as well.
        torch._dynamo.reset()
        dense, fast = compiled(model), sieve(model, recipe, pretrained=False)
        quick, limit = compiled(fast), compiled(SlicingLimit(fast))
        for turn, images in enumerate(batches):
            graphs = counters["stats"]["unique_graphs"]
            difference = (quick(images) - fast(images)).abs().max().item()
            # the second size must run on the first one's graph
            recompiled = bool(turn) and counters["stats"]["unique_graphs"] > graphs
            times = interleaved(
                {"dense": partial(dense, images), "sieved": partial(quick, images), "limit": partial(limit, images),
                 "eager": partial(model, images)},
                seconds=10, min_rounds=args.rounds, max_rounds=50,
            )  # fmt: skip
            speed = summarise({key: times[key] for key in ("dense", "sieved", "limit")}, images.shape[0])
            rows.append(
                {
                    "host": args.host, "recipe": recipe, "batch": images.shape[0], "dtype": "fp32",
                    "difference": difference, "recompiled": recompiled, **speed_columns(speed),
                    "dense_compiled_over_eager": median(times["eager"]) / speed.seconds["dense"],
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
            write(args.out, rows)
    return 1 if any(row["difference"] > 1e-4 or row["recompiled"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

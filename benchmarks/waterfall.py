"""What the recipe, bf16, the compiler and a larger batch each add to the row before -> results/waterfall.csv.

    python benchmarks/waterfall.py [--host vit_base_patch16_224] [--batches 8,32] [--prepack]

All rows of a recipe and their slicing limits run interleaved. Ratios are of the time an image, to the dense model in
fp32 at the first batch.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import partial
from typing import Any

import timm
import torch

from results import write
from tokensieve import sieve
from tokensieve.measure.waterfall import Row, Skipped, waterfall

RECIPES = ("papr(keep=0.5)", "tome(r=13)")
LEFT_OUT = ("seconds", "attention", "agreement", "compared")


def columns(row: Row | Skipped) -> dict[str, Any]:
    found = {key: value for key, value in asdict(row).items() if key not in LEFT_OUT}
    if isinstance(row, Row):
        found |= {"attention": " ".join(row.attention)}
        found |= {f"seconds_{name}": value for name, value in row.seconds.items()}
    return found


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--host", default="vit_base_patch16_224")
    parser.add_argument("--recipes", default=";".join(RECIPES), help="joined by ;")
    parser.add_argument("--batches", default="8,32", help="of all rows but the last, and of the last")
    parser.add_argument("--prepack", action="store_true", help="a row with weights packed once")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="waterfall.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = timm.create_model(args.host).eval()
    batch, larger = map(int, args.batches.split(","))
    images = torch.randn(larger, 3, *model.patch_embed.img_size)
    rows = []
    for recipe in args.recipes.split(";"):
        fall = waterfall(
            sieve(model, recipe, pretrained=False), model, images, batch=batch, prepacked=args.prepack,
            seconds=args.seconds, min_rounds=args.rounds, progress=partial(print, file=sys.stderr, flush=True),
        )  # fmt: skip
        for row in fall.rows:
            rows.append({"host": args.host, "recipe": recipe, **columns(row), "rounds": fall.recipe.rounds})
            print(rows[-1], flush=True)
        write(args.out, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

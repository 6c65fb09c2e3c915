"""MACs of DINOv2's ViTs at 518 pixels under some recipes -> results/embeddings.csv.

    python benchmarks/embeddings.py [--hosts vit_small_patch14_dinov2,vit_base_patch14_dinov2]

Random weights: MACs depend on shapes alone.
"""

from __future__ import annotations

import argparse
import sys

import timm

from results import write
from tokensieve import sieve
from tokensieve.measure import macs

RECIPES = (
    "",
    "tome(r=40)",
    "tome(r=70)",
    "tome(r=100)",
    "papr(keep=0.5)",
    "papr(keep=0.5, proposal_size=224)",
    "papr(keep=0.7, proposal_size=224) + tome(r=30)",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hosts", default="vit_small_patch14_dinov2,vit_base_patch14_dinov2")
    rows = []
    for host in parser.parse_args().hosts.split(","):
        model = timm.create_model(host, img_size=518).eval()
        dense = macs(model, (3, 518, 518))
        for recipe in RECIPES:
            fast = sieve(model, recipe, pretrained=False)
            total = macs(fast, (3, 518, 518))
            last = fast.plan.reads(37 * 37)[-1].mlp
            rows.append({"host": host, "recipe": recipe, "gmac": total / 1e9, "macs_ratio": dense / total,
                         "proposal_gmac": (total - macs(fast, (3, 518, 518), proposal=False)) / 1e9,
                         "tokens_last_block": last})  # fmt: skip
            print(rows[-1], flush=True)
    write("embeddings.csv", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""onnxruntime: sieved against dense and limit, all as ONNX files -> results/onnx.csv.

    python benchmarks/exported.py [--hosts vit_small_patch16_224,nano_vit] [--batches 1,8]    # other hosts' rows stay

Differences are from PyTorch, on random images at batch 1 and 5. Weights are bundled, or random where none are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from results import speed_columns, update
from tokensieve import InputError, export_onnx, sieve, zoo
from tokensieve.data import Preprocessing
from tokensieve.export.onnx_graph import runner
from tokensieve.measure import SlicingLimit, macs
from tokensieve.measure.speed import interleaved, summarise

RECIPES = {
    "vit_small_patch16_224": ("papr(keep=0.5)", "tome(r=13)", "papr(keep=0.8) + tome(r=8)"),
    "nano_vit": (
        "papr(keep=0.5, proposal=nano_convnet)",
        "tome(r=8)",
        "papr(keep=0.8, proposal=nano_convnet) + tome(r=8)",
    ),
    "convnext_tiny": ("papr(keep=0.65)",),
    "swin_tiny_patch4_window7_224": ("papr(keep=0.65)",),
}


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hosts", default=",".join(RECIPES))
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--recipes", help="joined by ; instead of each host's own")
    parser.add_argument("--out", default="onnx.csv")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(2)
    rows = []
    for host in args.hosts.split(","):
        bundled = host in zoo.BUNDLED
        try:
            model, mean, std = zoo.create(host, pretrained=bundled)
        except InputError as error:
            print(f"{host} is skipped: {error}", file=sys.stderr)
            continue
        size = (3, *Preprocessing.of(model, mean, std).input_size)
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            put = partial(export_onnx, input_size=size, mean=mean, std=std)
            put(model, place / "dense.onnx")
            for recipe in args.recipes.split(";") if args.recipes else RECIPES[host]:
                fast = sieve(model, recipe, mean=mean, std=std, pretrained=bundled)
                exported = put(fast, place / "sieved.onnx")
                put(SlicingLimit(fast), place / "limit.onnx")
                files = {name: runner(place / f"{name}.onnx") for name in ("dense", "sieved", "limit")}
                for batch in map(int, args.batches.split(",")):
                    images = torch.randn(batch, *size)
                    calls = {name: partial(run, images) for name, run in files.items()}
                    times = interleaved(calls, seconds=args.seconds, min_rounds=args.rounds, max_rounds=100)
                    speed = summarise(times, batch)
                    rows.append(
                        {
                            "host": host,
                            "recipe": recipe,
                            "batch": batch,
                            "macs_ratio": macs(model, size) / macs(fast, size),
                            **speed_columns(speed),
                            **{f"difference_b{count}": value for count, value in exported.differences.items()},
                            "nodes": exported.nodes,
                            "file_mb": exported.bytes / 1e6,
                        }
                    )
                    print(rows[-1], flush=True)
                    update(args.out, rows, "host", "recipe", "batch")
    return 0


if __name__ == "__main__":
    sys.exit(main())

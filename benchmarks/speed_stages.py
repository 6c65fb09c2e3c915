"""Speed on hosts with stages, dense, sieved and limit interleaved in one process -> results/speed_stages.csv.

    python benchmarks/speed_stages.py [--hosts convnext_base,swin_base_patch4_window7_224] [--batches 1,8,32]
                                      [--prepack] [--out speed_stages.csv]

The limit runs the point-wise operators on a slice of as many pixels of each map; choosing and putting back are free.
Random weights: speed does not depend on them. `pointwise_share` is what the papers' first argument is about: the part
of the dense model's MACs that the point-wise operators of all blocks take.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

import timm
import torch
from torch import nn

from results import speed_columns, write
from tokensieve import prepack, sieve
from tokensieve.measure import SlicingLimit, macs
from tokensieve.measure.speed import interleaved, summarise

HOSTS = ("convnext_base", "swin_base_patch4_window7_224")
KEEPS = (0.65, 0.5, 0.3)
SIZE = (3, 224, 224)


def pointwise_share(model: nn.Module) -> float:
    """From recipes that leave half of one stage's pixels out: MACs are linear in their number."""
    dense, total = macs(model, SIZE), 0.0
    for stage, (height, width) in enumerate(sieve(model).sizes(torch.zeros(1, *SIZE))):
        fast = sieve(model, f"papr(keep=0.5, significance=centre, stages=({stage},))")
        left_out = 1 - int(height * width * 0.5) / (height * width)
        total += (dense - macs(fast, SIZE)) / left_out
    return total / dense


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hosts", default=",".join(HOSTS))
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--keeps", default=",".join(map(str, KEEPS)))
    parser.add_argument("--rounds", type=int, default=5, help="at least so many")
    parser.add_argument("--seconds", type=float, default=40, help="and for so long, for each host and batch")
    parser.add_argument("--prepack", action="store_true", help="weights packed for the CPU, dense model too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="speed_stages.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    for host in args.hosts.split(","):
        model = timm.create_model(host).eval()
        share = pointwise_share(model)
        model = prepack(model) if args.prepack else model
        fasts = {
            keep: sieve(model, f"papr(keep={keep})", pretrained=False) for keep in map(float, args.keeps.split(","))
        }
        for batch in map(int, args.batches.split(",")):
            images = torch.randn(batch, *SIZE)
            calls = {"dense": partial(model, images)}
            for keep, fast in fasts.items():
                calls |= {f"sieved {keep}": partial(fast, images), f"limit {keep}": partial(SlicingLimit(fast), images)}
            calls["proposal"] = next(iter(fasts.values())).map_call(images)
            times = interleaved(calls, seconds=args.seconds, min_rounds=args.rounds, max_rounds=60)
            for keep, fast in fasts.items():
                mine = {name: times[f"{name} {keep}"] for name in ("sieved", "limit")}
                speed = summarise({"dense": times["dense"], **mine, "proposal": times["proposal"]}, batch)
                rows.append(
                    {
                        "host": host, "recipe": str(fast.recipe), "batch": batch,
                        "prepacked": args.prepack, "pointwise_share": share,
                        "macs_ratio": macs(model, SIZE) / macs(fast, SIZE), **speed_columns(speed),
                        "of_limit_low": speed.of_limit_low, "of_limit_high": speed.of_limit_high,
                        "proposal_share": speed.proposal_share, "rounds": speed.rounds,
                    }
                )  # fmt: skip
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
            write(args.out, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

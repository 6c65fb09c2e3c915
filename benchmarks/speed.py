"""Speed as ratios: dense, sieved and slicing limit interleaved in one process -> results/speed.csv.

    python benchmarks/speed.py [--hosts vit_small_patch16_224,...] [--batches 1,8,32] [--dtypes fp32,bf16]
                               [--rounds 5] [--prepack] [--out speed.csv]

Every round runs every contestant once, in turns forwards and backwards. Random weights: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from results import speed_columns, write
from tokensieve import prepack, sieve
from tokensieve.forward.walk import Reads
from tokensieve.measure import SlicingLimit, macs, peak_memory
from tokensieve.measure.speed import interleaved, summarise

HOSTS = ("vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def recipes(host: str) -> dict[str, str]:
    """PaPr without a proposal (a centre prior ranks), with MobileOne-S0, and ToMe at the papers' r for this depth."""
    return {
        "papr, no proposal": "papr(keep=0.5, significance=centre)",
        "papr, mobileone_s0": "papr(keep=0.5)",
        "tome": f"tome(r={8 if 'large' in host else 13})",
    }


class BlockLimit(SlicingLimit):
    """A stricter ceiling for what acts inside blocks: each block, attention too, on the tokens that its MLP reads.

    Its attention reads fewer tokens than any method that decides by this block's keys can spare it.
    """

    def forward(self, images: Tensor) -> Tensor:
        (fast,) = self._fast
        counts = [reads.mlp for reads in fast.reads(images)]
        return fast.stream.limit(images, [Reads(n, n, n, n) for n in counts])


def measure(host: str, model: nn.Module, batch: int, dtype: str, rounds: int, seconds: float) -> list[dict[str, Any]]:
    images = torch.randn(batch, 3, 224, 224).to(DTYPES[dtype])
    sieved = {name: sieve(model, text, pretrained=False) for name, text in recipes(host).items()}
    calls = {"dense": partial(model, images)}
    for name, fast in sieved.items():
        calls[f"sieved {name}"] = partial(fast, images)
        calls[f"limit {name}"] = partial(SlicingLimit(fast), images)
    calls["block limit tome"] = partial(BlockLimit(sieved["tome"]), images)
    calls["proposal"] = partial(sieved["papr, mobileone_s0"].significance, images, (14, 14))
    times = interleaved(calls, seconds=seconds, min_rounds=rounds, max_rounds=100)
    weigh = batch <= 8  # activations grow with the batch; the large ones would only take time
    rows, dense_peak = [], peak_memory(calls["dense"]) / 2**20 if weigh else None
    for name, fast in sieved.items():
        mine = {"dense": times["dense"], "sieved": times[f"sieved {name}"], "limit": times[f"limit {name}"]}
        if "mobileone" in name:
            mine["proposal"] = times["proposal"]
        speed = summarise(mine, batch)
        row: dict[str, Any] = {
            "host": host, "recipe": str(fast.recipe), "batch": batch, "dtype": dtype,
            "packed": any(type(part).__name__ == "PackedLinear" for part in model.modules()),
            "macs_ratio": macs(model) / macs(fast) if dtype == "fp32" else "",
            **speed_columns(speed), "of_limit_low": speed.of_limit_low, "of_limit_high": speed.of_limit_high,
            "proposal_share": speed.proposal_share, "rounds": speed.rounds,
        }  # fmt: skip
        if name == "tome":
            strict = summarise({**mine, "limit": times["block limit tome"]}, batch)
            row |= {"block_limit": strict.limit, "of_block_limit": strict.of_limit}
        row |= {
            "peak_memory_dense_mb": dense_peak,
            "peak_memory_mb": peak_memory(calls[f"sieved {name}"]) / 2**20 if weigh else None,
            **{f"seconds_{key}": value for key, value in speed.seconds.items()},
        }
        rows.append(row)
        print(f"{host:24} {row['recipe']:38} batch {batch:2} {dtype}{' packed' if row['packed'] else ''}  "
              f"limit {speed.limit:.3f}  ratio {speed.ratio:.3f} [{speed.low:.3f} {speed.high:.3f}]  "
              f"of limit {speed.of_limit:.3f} [{speed.of_limit_low:.3f} {speed.of_limit_high:.3f}]  "
              f"proposal {speed.proposal_share:.4f}  block limit {row.get('of_block_limit', 0):.3f}  "
              f"memory {row['peak_memory_mb'] or 0:.0f}/{dense_peak or 0:.0f} MB", flush=True)  # fmt: skip
    return rows


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hosts", default=",".join(HOSTS))
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--dtypes", default="fp32,bf16")
    parser.add_argument("--rounds", type=int, default=5, help="at least so many")
    parser.add_argument("--seconds", type=float, default=30, help="and for so long, for each host, batch and dtype")
    parser.add_argument("--prepack", action="store_true", help="weights packed for the CPU, dense model too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="speed.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for host in args.hosts.split(","):
        for dtype in args.dtypes.split(","):
            model = timm.create_model(host).eval().to(DTYPES[dtype])
            model = prepack(model) if args.prepack else model
            for batch in map(int, args.batches.split(",")):
                rows += measure(host, model, batch, dtype, args.rounds, args.seconds)
                write(args.out, rows)  # what is measured stays, should a long run be cut short
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Speed of VideoMAE under PaPr with X3D-S: dense, sieved and slicing limit in turns -> results/video_speed.csv.

    python benchmarks/video_speed.py [--hosts B,L] [--batches 1,2] [--rounds 3] [--seconds 60] [--threads 2] [--small]

For each host and batch everything runs in one process, round by round forwards and backwards: the dense model; under
each keep ratio the recipe as PaPr runs it (X3D-S on 8 x 160 x 160), the same with a map that costs nothing, its slicing
limit, and ToMe at the MACs of the whole, proposal included; and the proposal alone. Weights are random: speed does not
depend on them. `--small` runs small models and one round, and writes nothing: to see that it works.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from results import update
from tokensieve import Recipe, sieve
from tokensieve.data.inputs import InputSpec
from tokensieve.measure import SlicingLimit, macs, peak_memory
from tokensieve.measure.speed import interleaved, summarise
from tokensieve.search.costs import Costs
from tokensieve.search.families import SINGLES
from tokensieve.search.fit import Fit
from tokensieve.zoo import create, without_memory

KEEPS = {"B": (0.45, 0.35), "L": (0.3,)}
NAMES = {"B": "videomae_base", "L": "videomae_large"}
SMALL = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 128, "image_size": 64,
}  # fmt: skip
ASKED = {("B", 0.45): 2.3, ("L", 0.3): 3.6}
"""Host and keep ratio -> how many times as fast as the dense model it should be in all."""


def papr(keep: float, *, proposal: bool = True) -> str:
    """PaPr's own path, or the same with a map that is computed from places alone."""
    made = "proposal=x3d_s, proposal_norm=shared" if proposal else "significance=centre"
    return f"papr(keep={keep}, {made})"


def tome_at(target: float, weightless: nn.Module, spec: InputSpec) -> Recipe:
    """ToMe, the same number in every block, at these MACs."""
    return SINGLES["tome"].recipe({}, {}, Fit(Costs(sieve(weightless), spec), target))


def measure(host: str, batch: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    settings = SMALL if args.small else {}
    torch.manual_seed(0)
    model = create(NAMES[host], pretrained=False, args=settings).model
    with without_memory():
        weightless = create(NAMES[host], pretrained=False, args=settings).model
    spec = InputSpec((16, 3, model.config.image_size, model.config.image_size), "TCHW")
    clips = torch.randn(batch, *spec)
    dense_macs = macs(weightless, spec)
    calls: dict[str, Any] = {"dense": partial(model, clips)}
    facts: dict[float, dict[str, Any]] = {}
    for keep in KEEPS[host]:
        cost = macs(sieve(weightless, papr(keep), pretrained=False).to("meta"), spec)
        tome = tome_at(cost, weightless, spec)
        fast = sieve(model, papr(keep), pretrained=False)
        calls[f"sieved {keep}"] = partial(fast, clips)
        calls[f"free {keep}"] = partial(sieve(model, papr(keep, proposal=False)), clips)
        calls[f"limit {keep}"] = partial(SlicingLimit(fast), clips)
        calls[f"tome {keep}"] = partial(sieve(model, tome), clips)
        calls["proposal"] = fast.map_call(clips)
        facts[keep] = {"macs_ratio": dense_macs / cost, "tome": str(tome)}
    times = interleaved(calls, seconds=args.seconds, min_rounds=args.rounds, max_rounds=100)
    memory = {}
    if batch == min(args.batches):  # it grows with the batch, and takes three calls each
        names = ["dense", *(f"sieved {keep}" for keep in facts)]
        memory = {name: peak_memory(calls[name]) / 2**20 for name in names}
    return [row(host, keep, batch, times, facts[keep], memory) for keep in facts]


def row(
    host: str, keep: float, batch: int, times: dict[str, list[float]], facts: dict[str, Any], memory: dict[str, float]
) -> dict[str, Any]:
    mine = {name: times[f"{name} {keep}"] for name in ("sieved", "free", "limit", "tome")}
    shared = {name: times[name] for name in ("dense", "proposal")}
    speed = summarise({**shared, "sieved": mine["sieved"], "limit": mine["limit"]}, batch)
    # The stream alone: its map is that of places, which takes no time that could be measured.
    stream = summarise({"dense": times["dense"], "sieved": mine["free"], "limit": mine["limit"]}, batch)
    tome = summarise({"dense": times["dense"], "sieved": mine["tome"], "limit": mine["limit"]}, batch)
    found: dict[str, Any] = {
        "host": f"VideoMAE-{host}", "recipe": papr(keep), "batch": batch, "macs_ratio": facts["macs_ratio"],
        "limit": speed.limit, "ratio": speed.ratio, "ratio_low": speed.low, "ratio_high": speed.high,
        "asked": ASKED.get((host, keep), ""), "of_limit": speed.of_limit,
        "stream_of_limit": stream.of_limit, "stream_of_limit_low": stream.of_limit_low,
        "stream_of_limit_high": stream.of_limit_high, "proposal_share_of_dense": speed.proposal_share,
        "proposal_share_of_sieved": median(p / s for p, s in zip(times["proposal"], mine["sieved"], strict=True)),
        "tome": facts["tome"], "tome_ratio": tome.ratio, "tome_ratio_low": tome.low, "tome_ratio_high": tome.high,
        "peak_memory_dense_mb": memory.get("dense"), "peak_memory_mb": memory.get(f"sieved {keep}"),
        "rounds": speed.rounds, **{f"seconds_{name}": median(values) for name, values in {**shared, **mine}.items()},
    }  # fmt: skip
    print(f"{found['host']} keep {keep} batch {batch}: {found['macs_ratio']:.2f}x fewer MACs, "
          f"{speed.ratio:.2f}x [{speed.low:.2f} {speed.high:.2f}] of {speed.limit:.2f}x; the stream alone "
          f"{stream.of_limit:.3f} [{stream.of_limit_low:.3f} {stream.of_limit_high:.3f}] of its limit; the proposal "
          f"{100 * found['proposal_share_of_sieved']:.1f} % of the time; ToMe {tome.ratio:.2f}x; "
          f"memory {memory.get(f'sieved {keep}', 0):.0f}/{memory.get('dense', 0):.0f} MB", flush=True)  # fmt: skip
    return found


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hosts", default="B,L")
    parser.add_argument("--batches", default="1,2")
    parser.add_argument("--rounds", type=int, default=3, help="at least so many")
    parser.add_argument("--seconds", type=float, default=60, help="and for so long, for each host and batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    args.batches = [int(batch) for batch in args.batches.split(",")]
    if args.small:
        args.rounds, args.seconds = 2, 0
    torch.set_num_threads(args.threads)
    for host in args.hosts.split(","):
        for batch in args.batches:
            rows = measure(host, batch, args)
            if not args.small:  # what is measured stays, should a long run be cut short
                update("video_speed.csv", rows, "host", "recipe", "batch")
    return 0


if __name__ == "__main__":
    sys.exit(main())

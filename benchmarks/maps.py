"""Does PaPr's map leave a host more confident than a CAM's? DeiT-Tiny, SqueezeNet, keep 0.4 -> results/maps.csv.

    python benchmarks/maps.py [--keep 0.4] [--draws 5] [--quick]
    python benchmarks/maps.py --time        # on a quiet machine: each map's time, into the rows that are there

On 250 ImageNet validation photographs, on 1,500 of Imagenette, on both, and on those of scikit-image and scikit-learn.
`target` says whose probability is read: the dense host's first answer, or the label. With the label the photographs are
also taken by confidence, as PaPr's paper does: the dense host is sure of the label (probability .5 or more), and the
proposal is not (.2, .05 or less). `cam` asks for the proposal's own first answer, `cam, label` for the label.
Intervals are 95 % percentile bootstraps over photographs; `papr_ahead_by` is the paired difference.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from accuracy import CAMS, SQUEEZENET, WEIGHTS
from results import ROOT, SHARED, write
from tokensieve import PaPr, sieve
from tokensieve.data import Preprocessing, image_set, load_batches, photograph_set
from tokensieve.measure import macs
from tokensieve.measure.intervals import mean_interval
from tokensieve.show.compare import map_costs
from tokensieve.significance import REDUCTIONS, build
from tokensieve.zoo import create

DATA = SHARED / "data"
SETS = {"imagenet_val_a": "imagenet_val_a", "imagenette_val": "imagenette_val.tar"}
MAPS = ("mean", *CAMS, "centre", "random")
SURE, UNSURE = 0.5, (1.0, 0.2, 0.05)
"""Least probability of the label by the host; at most so much by the proposal."""


@dataclass
class Seen:
    """Probabilities of some photographs, by the dense host and under each map."""

    whole: Tensor
    """(B, classes)."""
    sieved: dict[str, Tensor]
    """(draws, B, classes)."""
    labels: Tensor | None = None
    """(B,)."""
    sure: Tensor | None = None
    """(B,) the proposal's probability of the label."""

    @classmethod
    def joined(cls, parts: Sequence[Seen]) -> Seen:
        """The photographs of all parts, under the maps that all parts have."""
        names = [name for name in parts[0].sieved if all(name in part.sieved for part in parts)]
        labelled = all(part.labels is not None for part in parts)
        return cls(
            torch.cat([part.whole for part in parts]),
            {name: torch.cat([part.sieved[name] for part in parts], 1) for name in names},
            torch.cat([part.labels for part in parts]) if labelled else None,
            torch.cat([part.sure for part in parts]) if labelled else None,
        )


@torch.no_grad()
def look(model: nn.Module, batches: Iterable[Any], methods: Mapping[str, PaPr], draws: int, labelled: bool) -> Seen:
    """Run the dense host, and the sieved one under each map; with labels also under CAM's map of the label."""
    config, parts = model.pretrained_cfg, []
    settings = {"proposal": SQUEEZENET.proposal, "proposal_weights": SQUEEZENET.proposal_weights}
    asked = build(**settings, significance="cam", mean=config["mean"], std=config["std"])
    for batch in batches:
        part = Seen(model(batch.images).softmax(1), {})
        every = dict(methods)
        if labelled:
            part.labels = batch.labels
            asked.source.reduction = partial(of_the_label, part)
            every["cam, label"] = replace(methods["mean"], significance=asked(batch.images, (14, 14)))
        for name, method in every.items():
            seeds = [replace(method, seed=seed) for seed in range(draws)] if name == "random" else [method]
            part.sieved[name] = torch.stack([sieve(model, one)(batch.images).softmax(1) for one in seeds])
        parts.append(part)
    return Seen.joined(parts)


def of_the_label(part: Seen, features: Tensor, proposal: Any, _images: Tensor) -> Tensor:
    """CAM's map of each photograph's label; notes the proposal's probability of it."""
    part.sure = proposal.logits(features).softmax(1).gather(1, part.labels[:, None])[:, 0]
    return REDUCTIONS["cam"](features, proposal, target=part.labels)


def interval(values: Tensor) -> tuple[float, float]:
    """95 % of the mean over photographs; without a width where nothing can be drawn anew."""
    return mean_interval(values.numpy()) or (float(values.mean()),) * 2


def rows_of(told: Mapping[str, Any], seen: Seen, targets: Tensor, among: Tensor) -> list[dict[str, Any]]:
    """A row for each map: what is left of the probability of `targets` (B,) on the photographs `among`, bool (B,)."""
    index = targets[:, None]
    before = seen.whole.gather(1, index)[among, 0]
    left = {name: p.gather(2, index.expand(len(p), -1, 1))[:, among, 0].mean(0) for name, p in seen.sieved.items()}
    rows = []
    for name, confidence in left.items():
        ahead = left["mean"] - confidence
        low, high = interval(confidence)
        ahead_low, ahead_high = interval(ahead)
        kept = (seen.sieved[name].argmax(2) == targets)[:, among].double().mean()
        rows.append(
            {
                **told, "count": int(among.sum()), "map": name, "confidence_dense": float(before.mean()),
                "confidence": float(confidence.mean()), "confidence_low": low, "confidence_high": high,
                "answers_kept": float(100 * kept), "papr_ahead_by": float(ahead.mean()),
                "papr_ahead_low": ahead_low, "papr_ahead_high": ahead_high,
                "papr_higher_on": int((ahead > 0).sum()), "papr_lower_on": int((ahead < 0).sum()),
            }
        )  # fmt: skip
        print(
            f"{told['photographs']:16} {told['target']:6} {told['host_at_least']:3} {told['proposal_at_most']:4} "
            f"n {rows[-1]['count']:4} {name:10} {100 * float(confidence.mean()):.1f} % "
            f"[{100 * low:.1f} to {100 * high:.1f}], PaPr {100 * float(ahead.mean()):+.1f} "
            f"[{100 * ahead_low:+.1f} to {100 * ahead_high:+.1f}]",
            flush=True,
        )
    return rows


def add_time(model: nn.Module, prepared: Preprocessing, methods: Mapping[str, PaPr]) -> None:
    """What each map costs in time, as a share of the host's, into maps.csv."""
    path = ROOT / "results" / "maps.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    (shipped,) = load_batches(photograph_set(prepared), 100)
    costs = map_costs({name: sieve(model, method) for name, method in methods.items()}, model, shipped.images[0])
    for row in rows:
        row["share_of_host_time"] = costs[row["map"].partition(",")[0]].share_of_time
    write(path.name, rows)


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keep", type=float, default=0.4)
    parser.add_argument("--draws", type=int, default=5, help="of the random map")
    parser.add_argument("--limit", type=int, help="photographs of each set, evenly spread; default all")
    parser.add_argument("--quick", action="store_true", help="Score-CAM, which takes most of the time, on scikit alone")
    parser.add_argument("--preprocessing", choices=("timm", "papers"), default="timm")
    parser.add_argument("--time", action="store_true", help="the maps' times alone, for the rows of maps.csv")
    args = parser.parse_args()
    model = create("deit_tiny_patch16_224", weights=WEIGHTS / "deit_tiny_patch16_224.safetensors").model.eval()
    prepared = Preprocessing.named(args.preprocessing, model)
    methods = {name: replace(SQUEEZENET, keep=args.keep, significance=name) for name in MAPS}
    if args.time:
        add_time(model, prepared, methods)
        return 0
    sets: dict[str, Any] = {"scikit": photograph_set(prepared)}
    for name, place in SETS.items():
        sets[name] = image_set(DATA / place, prepared, classes=DATA / "imagenet_classes.json", limit=args.limit)
    found: dict[str, Seen] = {}
    for name, photographs in sets.items():
        asked = dict(methods)
        if args.quick and name != "scikit":
            del asked["score-cam"]
        found[name] = look(model, load_batches(photographs, 10), asked, args.draws, labelled=name != "scikit")
        print(f"{name}: {len(found[name].whole)} photographs", flush=True)
    found["both"] = Seen.joined([found[name] for name in SETS])
    rows = []
    for name, seen in found.items():
        told = {"photographs": name, "keep": args.keep, "target": "answer", "host_at_least": 0, "proposal_at_most": 1.0}
        everywhere = torch.ones(len(seen.whole), dtype=torch.bool)
        rows += rows_of(told, seen, seen.whole.argmax(1), everywhere)
        if seen.labels is None or seen.sure is None:
            continue
        told["target"] = "label"
        rows += rows_of(told, seen, seen.labels, everywhere)
        sure = seen.whole.gather(1, seen.labels[:, None])[:, 0] >= SURE
        for most in UNSURE:
            among = sure & (seen.sure <= most)
            told |= {"host_at_least": SURE, "proposal_at_most": most}
            if among.any():
                rows += rows_of(told, seen, seen.labels, among)
    dense = macs(model)
    for row in rows:
        fast = sieve(model, methods[row["map"].partition(",")[0]])
        row["share_of_host_macs"] = (macs(fast) - macs(fast, proposal=False)) / dense
    write("maps.csv" if args.preprocessing == "timm" else "maps_papers.csv", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Does PaPr's map leave a host more confident than a CAM's? DeiT-Tiny, SqueezeNet, keep 0.4 -> results/maps.csv.

    python benchmarks/maps.py [--keep 0.4] [--draws 5] [--quick]
    python benchmarks/maps.py --time        # on a quiet machine: each map's time, into the rows that are there

On 250 ImageNet validation photographs and on those of scikit-image and scikit-learn. `target` says whose probability
is read: the dense host's first answer, or the label. With the label the photographs are also taken by confidence, as
PaPr's paper does: the dense host is sure of the label (probability .5 or more), and the proposal is not (.2, .05 or
less). `cam` asks for the proposal's own first answer, `cam, label` for the label, which nobody knows at inference.
Intervals are 95 % percentile bootstraps over photographs; `papr_ahead_by` is the paired difference.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import Tensor

from accuracy import CAMS, SQUEEZENET, Study
from results import ROOT, write
from tokensieve import PaPr, sieve
from tokensieve.data import Preprocessing, load_batches, photograph_set
from tokensieve.measure import macs
from tokensieve.show.compare import map_costs
from tokensieve.significance import REDUCTIONS, build

MAPS = ("mean", *CAMS, "centre", "random")
SURE, UNSURE = 0.5, (1.0, 0.2, 0.05)
"""Least probability of the label by the host; at most so much by the proposal."""


@torch.no_grad()
def probabilities(model: torch.nn.Module, images: Tensor, method: PaPr) -> Tensor:
    """(B, classes) of the sieved host; a map that is a tensor (B, P) goes with its images."""
    given, parts = method.significance, []
    for start in range(0, len(images), 10):
        part = replace(method, significance=given[start : start + 10]) if isinstance(given, Tensor) else method
        parts.append(sieve(model, part)(images[start : start + 10]).softmax(-1))
    return torch.cat(parts)


@torch.no_grad()
def of_the_label(model: torch.nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """CAM's map (B, 196) of each photograph's label, and the proposal's probability (B,) of that label."""
    config = model.pretrained_cfg
    settings = {"proposal": SQUEEZENET.proposal, "proposal_weights": SQUEEZENET.proposal_weights}
    asked = build(**settings, significance="cam", mean=config["mean"], std=config["std"])
    maps, sure = [], []

    def reduce(features: Tensor, proposal: Any, _images: Tensor) -> Tensor:
        here = labels[len(sure) : len(sure) + len(features)]
        sure.extend(proposal.logits(features).softmax(1).gather(1, here[:, None])[:, 0].tolist())
        return REDUCTIONS["cam"](features, proposal, target=here)

    asked.source.reduction = reduce
    for part in images.split(10):
        maps.append(asked(part, (14, 14)))
    return torch.cat(maps), torch.tensor(sure)


def interval(values: Tensor) -> tuple[float, float]:
    """95 % of the mean, resampled over photographs."""
    if len(values) < 2 or float(values.std()) == 0:
        return float(values.mean()), float(values.mean())
    resampled = bootstrap((values.double().numpy(),), np.mean, method="percentile", rng=np.random.default_rng(0))
    return float(resampled.confidence_interval.low), float(resampled.confidence_interval.high)


def rows_of(
    told: Mapping[str, Any], whole: Tensor, sieved: Mapping[str, Tensor], targets: Tensor, among: Tensor
) -> list[dict[str, Any]]:
    """A row for each map: what is left of the targets' probability on the photographs `among`.

    Args:
        told: columns of every row.
        whole: probabilities (B, classes) of the dense host.
        sieved: the same under each map, (draws, B, classes).
        targets: classes (B,).
        among: bool (B,).
    """
    index = targets[:, None]
    before = whole.gather(1, index)[among, 0]
    left = {name: p.gather(2, index.expand(len(p), -1, 1))[:, among, 0].mean(0) for name, p in sieved.items()}
    rows = []
    for name, confidence in left.items():
        ahead = left["mean"] - confidence
        low, high = interval(confidence)
        ahead_low, ahead_high = interval(ahead)
        kept = (sieved[name].argmax(2) == targets)[:, among].double().mean()
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
            f"{told['photographs']:14} {told['target']:6} {told['proposal_at_most']:4} n {rows[-1]['count']:3} "
            f"{name:12} {100 * float(confidence.mean()):.1f} % [{100 * low:.1f}-{100 * high:.1f}]",
            flush=True,
        )
    return rows


def add_time(study: Study, methods: Mapping[str, PaPr]) -> None:
    """What each map costs in time, as a share of the host's, into maps.csv."""
    path = ROOT / "results" / "maps.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    costs = map_costs({name: sieve(study.model, m) for name, m in methods.items()}, study.model, study.images[0])
    for row in rows:
        row["share_of_host_time"] = costs[row["map"].partition(",")[0]].share_of_time
    write(path.name, rows)


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keep", type=float, default=0.4)
    parser.add_argument("--draws", type=int, default=5, help="of the random map")
    parser.add_argument("--quick", action="store_true", help="Score-CAM, which takes most of the time, on scikit alone")
    parser.add_argument("--preprocessing", choices=("timm", "papers"), default="timm")
    parser.add_argument("--time", action="store_true", help="the maps' times alone, for the rows of maps.csv")
    args = parser.parse_args()
    study, rows = Study(args.preprocessing), []
    model = study.model
    methods = {name: replace(SQUEEZENET, keep=args.keep, significance=name) for name in MAPS}
    if args.time:
        add_time(study, methods)
        return 0
    (shipped,) = load_batches(photograph_set(Preprocessing.named(args.preprocessing, model)), 100)
    dense_macs = macs(model)
    for photographs, images in (("scikit", shipped.images), ("imagenet_val_a", study.images)):
        whole = torch.cat([model(part).softmax(-1) for part in images.split(10)])
        asked = dict(methods)
        if args.quick and photographs != "scikit":
            del asked["score-cam"]
        everywhere = torch.ones(len(images), dtype=torch.bool)
        if photographs != "scikit":
            labelled, sure = of_the_label(model, images, study.labels)
            asked["cam, label"] = replace(methods["mean"], significance=labelled)
        sieved = {}
        for name, method in asked.items():
            draws = [replace(method, seed=seed) for seed in range(args.draws)] if name == "random" else [method]
            sieved[name] = torch.stack([probabilities(model, images, draw) for draw in draws])
        told = {"photographs": photographs, "keep": args.keep, "target": "answer", "host_at_least": 0}
        rows += rows_of({**told, "proposal_at_most": 1.0}, whole, sieved, whole.argmax(1), everywhere)
        if photographs != "scikit":
            told["target"], host = "label", whole.gather(1, study.labels[:, None])[:, 0]
            rows += rows_of({**told, "proposal_at_most": 1.0}, whole, sieved, study.labels, everywhere)
            for most in UNSURE:
                told |= {"host_at_least": SURE, "proposal_at_most": most}
                rows += rows_of(told, whole, sieved, study.labels, (host >= SURE) & (sure <= most))
    for row in rows:
        name = row["map"].partition(",")[0]
        fast = sieve(model, methods[name])
        row["share_of_host_macs"] = (macs(fast) - macs(fast, proposal=False)) / dense_macs
    write("maps.csv" if args.preprocessing == "timm" else "maps_papers.csv", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Does PaPr's map leave a host more confident than a CAM's? DeiT-Tiny, SqueezeNet, keep 0.4 -> results/maps.csv.

    python benchmarks/maps.py [--keep 0.4] [--draws 5] [--quick]

On the photographs of scikit-image and scikit-learn and on 250 ImageNet validation photographs: the probability that the
sieved host gives the dense host's answer, photograph by photograph, and what each map costs for one picture.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import torch
from torch import Tensor

from accuracy import CAMS, SQUEEZENET, Study
from results import write
from tokensieve import PaPr, sieve
from tokensieve.data import Preprocessing, load_batches, photograph_set
from tokensieve.show.compare import map_costs

MAPS = ("mean", *CAMS, "centre", "random")


@torch.no_grad()
def confidences(model: torch.nn.Module, images: Tensor, method: PaPr, answers: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) the probability left for `answers`, and (B,) whether they stay."""
    fast = sieve(model, method)
    probabilities = torch.cat([fast(part).softmax(-1) for part in images.split(10)])
    return probabilities.gather(1, answers[:, None])[:, 0], probabilities.argmax(1) == answers


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keep", type=float, default=0.4)
    parser.add_argument("--draws", type=int, default=5, help="of the random map")
    parser.add_argument("--quick", action="store_true", help="Score-CAM, which takes most of the time, on scikit alone")
    args = parser.parse_args()
    torch.set_num_threads(2)
    study, rows = Study(), []
    model = study.model
    (shipped,) = load_batches(photograph_set(Preprocessing.papers(model)), 100)
    methods = {name: replace(SQUEEZENET, keep=args.keep, significance=name) for name in MAPS}
    costs = map_costs({name: sieve(model, method) for name, method in methods.items()}, model, study.images[0])
    for photographs, images in (("scikit", shipped.images), ("imagenet_val_a", study.images)):
        dense = torch.cat([model(part).softmax(-1) for part in images.split(10)])
        before, answers = dense.max(1)
        left: dict[str, Tensor] = {}
        for name, method in methods.items():
            if args.quick and name == "score-cam" and photographs != "scikit":
                continue
            draws = [replace(method, seed=seed) for seed in range(args.draws)] if name == "random" else [method]
            seen = [confidences(model, images, draw, answers) for draw in draws]
            left[name] = torch.stack([confidence for confidence, _ in seen]).mean(0)
            stay = torch.stack([same for _, same in seen]).double().mean()
            behind = left["mean"] - left[name]  # of PaPr's own map, photograph by photograph
            rows.append(
                {
                    "photographs": photographs, "count": len(images), "keep": args.keep, "map": name,
                    "confidence_dense": float(before.mean()), "confidence": float(left[name].mean()),
                    "answers_kept": float(100 * stay), "papr_ahead_by": float(behind.mean()),
                    "papr_ahead_stderr": float(behind.std() / len(images) ** 0.5),
                    "papr_higher_on": int((behind > 0).sum()), "papr_lower_on": int((behind < 0).sum()),
                    "share_of_host_macs": costs[name].share_of_macs, "share_of_host_time": costs[name].share_of_time,
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
    write("maps.csv", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Which of timm's models open as hosts, and why the others do not -> results/hosts.csv.

    python benchmarks/hosts.py
    python benchmarks/hosts.py --library torchvision  # -> results/hosts_torchvision.csv

Every model is built on the meta device, without weights, and opened. One that opens runs on fewer patches and, where it
can, on merged tokens, and gets a row of its own; those refused for the same reason share a row.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import timm
import torch
import torchvision

from results import write
from tokensieve import sieve
from tokensieve.about.models import built, model_facts
from tokensieve.measure import SlicingLimit
from tokensieve.zoo.models import TORCHVISION


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=["timm", "torchvision"], default="timm")
    library = parser.parse_args().library
    rows, refused = [], defaultdict(list)
    names = timm.list_models()
    if library == "torchvision":
        names = [f"{TORCHVISION}{name}" for name in torchvision.models.list_models()]
    for index, name in enumerate(names):
        facts = model_facts(name, quick=True)
        row = {"models": 1, "class": facts["class"], "opens": facts["opens_as"] == "host"}
        if not row["opens"]:
            reason = facts["reason"].partition(" Models that can:")[0]
            refused[facts["module"], facts["class"], reason].append(name)
        else:
            rows.append(
                {
                    "model": name, "module": facts["module"], **row, "reason": "", "blocks": facts["blocks"],
                    "prefix": facts["prefix"], "merges": facts["merges"], "merges_reason": facts["merges_reason"],
                    "runs": runs(name, facts["merges"]), "parameters": facts["parameters"],
                }
            )  # fmt: skip
        print(f"\r{index + 1} of {len(names)}  {name:60}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for (module, cls, reason), models in refused.items():
        rows.append(
            {"model": " ".join(models), "module": module, "models": len(models), "class": cls, "opens": False,
             "reason": reason}
        )  # fmt: skip
    write("hosts.csv" if library == "timm" else f"hosts_{library}.csv", rows)
    opening = [row for row in rows if row["opens"]]
    broken = [row["model"] for row in opening if not row["runs"]]
    print(f"{len(opening)} of {len(names)} open: {dict(Counter(row['class'] for row in opening))}")
    print(f"{sum(row['merges'] for row in opening)} of them merge; {len(broken)} open and do not run: {broken}")
    return 1 if broken else 0


@torch.no_grad()
def runs(name: str, merges: bool) -> bool:
    """Whether the host gives its own output's shape on fewer tokens, also inside its blocks, and pools by size."""
    model, size = built(name)
    images = torch.zeros(1, *size, device="meta")
    dense: Any = model(images)
    # Ranking and matching compare numbers, which the meta device has none of: the limit reads as many tokens.
    recipes = ["papr(keep=0.5, significance=centre)", *(["tome(r=2)"] if merges else [])]
    fast = [sieve(model, recipe) for recipe in recipes]
    outputs = [SlicingLimit(each)(images) for each in fast]
    if merges:
        host = fast[0].host
        tokens = host.features(host.embed(images))
        outputs.append(host.head(replace(tokens, size=torch.ones(tokens.x.shape[:2], device="meta"))))
    return all(output.shape == dense.shape for output in outputs)


if __name__ == "__main__":
    sys.exit(main())

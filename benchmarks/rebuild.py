"""Speed before and after a rebuild, old and new sources alternating -> results/rebuild.csv.

    python benchmarks/rebuild.py --before REVISION
    python benchmarks/rebuild.py --before REVISION --operators    # no time: fills in the column of operators

`same_operators` is whether both revisions call the same operators of torch as often, with outputs as large: it needs no
quiet machine. Each turn is a process of its own with the sources of one revision in front; in it dense, sieved and
slicing limit are interleaved as `tokensieve bench` does. Turns alternate, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from results import ROOT, read, update

CASES = {
    "vit_base_patch16_224": ("papr(keep=0.5)", "tome(r=13)"),
    "convnext_base": ("papr(keep=0.65)",),
}
TURN = """
import json, sys, timm, torch
from tokensieve import measure, sieve
host, recipe, batch, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
torch.manual_seed(0)
model = timm.create_model(host).eval()
fast = sieve(model, recipe, pretrained=False)
result = measure.speed(fast, model, torch.randn(batch, 3, 224, 224), seconds=seconds)
print(json.dumps([result.ratio, result.of_limit]))
"""
OPERATORS = """
import collections, json, sys, timm, torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tokensieve import sieve
host, recipe, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
calls, sizes = collections.Counter(), collections.Counter()
class Counting(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        calls[str(operator)] += 1
        sizes[str(operator)] += sum(each.numel() for each in tree_leaves(result) if isinstance(each, torch.Tensor))
        return result
torch.manual_seed(0)
fast = sieve(timm.create_model(host).eval(), recipe, pretrained=False)
images = torch.randn(batch, 3, 224, 224)
with torch.no_grad(), Counting():
    fast(images)
print(json.dumps({name: [calls[name], sizes[name]] for name in sorted(calls)}))
"""


def turn(script: str, source: Path, *arguments: str) -> Any:
    """What a script prints with these sources."""
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="revision of the old sources")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--operators", action="store_true", help="count operators instead of taking the time")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    timed = {(row["host"], row["recipe"], row["sources"]): row for row in read("rebuild.csv")}
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", given.before, "src"], cwd=ROOT, capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        sources = {"before": Path(folder) / "src", "after": ROOT / "src"}
        for host, recipes in CASES.items():
            for recipe in recipes:
                if given.operators:
                    old, new = (turn(OPERATORS, source, host, recipe, "2") for source in sources.values())
                    known = {"host": host, "recipe": recipe, "same_operators": old == new}
                    rows += [{**timed.get((host, recipe, name), {}), **known, "sources": name} for name in sources]
                    print(host, recipe, old == new, file=sys.stderr)
                    update("rebuild.csv", rows, "host", "recipe", "sources")
                    continue
                seen: dict[str, list[list[float]]] = {name: [] for name in sources}
                for _ in range(given.turns):
                    for name, source in sources.items():
                        seen[name].append(turn(TURN, source, host, recipe, str(given.batch), str(given.seconds)))
                        print(host, recipe, name, seen[name][-1], file=sys.stderr)
                for name, turns in seen.items():
                    ratios, limits = zip(*turns, strict=True)
                    rows.append(
                        {
                            "host": host, "recipe": recipe, "batch": given.batch, "sources": name,
                            "revision": given.before if name == "before" else "",
                            "ratio": median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios),
                            "of_limit": median(limits), "of_limit_low": min(limits), "of_limit_high": max(limits),
                            "turns": given.turns,
                        }
                    )  # fmt: skip
                update("rebuild.csv", rows, "host", "recipe", "sources")


if __name__ == "__main__":
    main()

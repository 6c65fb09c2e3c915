"""What `tokensieve tune` found, on images that it never saw -> results/tuned_HOST.csv and .json.

    tokensieve tune --model deit_tiny_patch16_224 --weights W --data imagenette_train.tar --limit 250 --macs 1.9 \\
        --proposal squeezenet1_1 --proposal-weights P --holdout 0.2 --trials 500 --out FRONT
    python benchmarks/tuned.py deit_tiny --front FRONT
    python benchmarks/tuned.py deit_tiny --front FRONT --correct
    python benchmarks/tuned.py nano_vit                # searches itself, on 250 scenes of the training split

At each budget the searched recipes and the three methods alone that lost least in the search, on the 1,750 photographs
of compare_methods.py or on 1,000 scenes. The best recipe is kept as results/tuned_HOST.json. With --correct the
searched recipes are judged again with a correction that was fitted on the search's images; the rows join the table's.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from compare_methods import HOSTS, Study
from results import ROOT, SHARED, write
from tokensieve import Recipe, correct, sieve, tune
from tokensieve.measure import fidelity, macs
from tokensieve.measure.outputs import collect_outputs

RIVALS = 3


def chosen(front: dict[str, Any]) -> list[dict[str, Any]]:
    """What is judged, by budget; the wanted one first."""
    points = sorted(front["points"], key=lambda point: point["search"]["divergence"])
    budgets = sorted({point["budget"] for point in points}, key=lambda budget: abs(budget - front["best"]["budget"]))
    found = []
    for budget in budgets:
        here = [point for point in points if point["budget"] == budget]
        found += [point for point in here if point["kind"] == "searched"]
        found += [point for point in here if point["kind"] == "single"][:RIVALS]
    return found


def search(study: Study, trials: int, storage: str | None) -> dict[str, Any]:
    """Without labels, with the study's proposal."""
    name, weights = study.proposal["proposal"], study.proposal.get("proposal_weights")
    front = tune(
        study.model, study.search, macs=1.9, proposals={name: weights}, trials=trials, holdout=0.2, storage=storage,
        mean=study.mean, std=study.std,
        report=lambda told: print(told, file=sys.stderr, flush=True),
    )  # fmt: skip
    print(front.summary)
    return front.record()


class Bench:
    """The dense answers to all images, and a row for each recipe."""

    @torch.no_grad()
    def __init__(self, study: Study) -> None:
        self.study, self.dense = study, collect_outputs(study.model, study.loader)
        labels = torch.cat([labels for _, labels in study.loader])
        self.right = 100 * float((self.dense.argmax(1) == labels).double().mean())

    @torch.no_grad()
    def row(self, recipe: Recipe, point: dict[str, Any], /, **told: Any) -> dict[str, Any]:
        study = self.study
        fast = sieve(study.model, recipe, mean=study.mean, std=study.std)
        found = fidelity(fast, self.dense, study.loader, k=1)
        shown = str(recipe).replace(f"{SHARED}/", "../shared/")
        row = {
            "host": study.name, "budget": point["budget"], "title": point["title"], "kind": point["kind"],
            "macs_ratio": macs(study.model, study.size) / macs(fast, study.size), "kl": found.kl,
            "agreement": found.agreement, "top1": found.accuracy.top[1], "top1_dense": self.right,
            "images": found.count, "kl_search": point["search"]["divergence"],
            "kl_heldout": point["heldout"]["divergence"],
            "dominated_in_search": point["dominated"], "recommended": False, "recipe": shown, **told,
        }  # fmt: skip
        print(
            f"{row['budget']:.2f}x {row['title']:36} {row['kind']:10} KL {row['kl']:.4f}  agreement "
            f"{row['agreement']:.1f}  top-1 {row['top1'] - self.right:+.1f}", flush=True,
        )  # fmt: skip
        return row


def judge(study: Study, front: dict[str, Any], folder: Path | None) -> list[dict[str, Any]]:
    bench, rows = Bench(study), []
    for point in chosen(front):
        recipe = Recipe.from_json(json.dumps(point["recipe_json"]), folder)
        rows.append(bench.row(recipe, point, recommended=point["recipe"] == front["best"]["recipe"]))
        write(f"tuned_{study.name}.csv", rows)
    return rows


def judge_corrected(study: Study, front: dict[str, Any], folder: Path) -> None:
    """Rows for the searched recipes without a proposal, corrected on all images that the search had."""
    table = ROOT / "results" / f"tuned_{study.name}.csv"
    with table.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] != "corrected"]
    bench = Bench(study)
    for point in chosen(front):
        if point["kind"] != "searched" or point["proposal"] is not None:
            continue
        recipe = Recipe.from_json(json.dumps(point["recipe_json"]), folder)
        with tempfile.TemporaryDirectory() as place:
            found = correct(study.model, recipe, study.search, Path(place) / "correction.safetensors")
            told = {
                "kind": "corrected",
                "kl_search": found.corrected_divergence,
                "kl_heldout": None,
                "ridge": found.ridge,
            }
            told["recipe"] = f"{recipe} + corrected(weights=FILE)"
            rows.append(bench.row(found.recipe, {**point, "kind": "corrected"}, **told))
        write(table.name, rows)


def beaten(rows: list[dict[str, Any]]) -> list[str]:
    """Single methods that no searched recipe of as few MACs matches."""
    searched = [row for row in rows if row["kind"] == "searched"]
    return [
        f"{row['title']} at {row['macs_ratio']:.2f}x"
        for row in rows
        if row["kind"] == "single"
        and not any(s["kl"] <= row["kl"] and s["macs_ratio"] >= row["macs_ratio"] - 0.005 for s in searched)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("host", choices=HOSTS)
    parser.add_argument("--front", type=Path, help="folder that `tokensieve tune` wrote; default: search here")
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--storage", help="SQLite file that keeps the search's trials")
    parser.add_argument("--limit", type=int, help="images of each set")
    parser.add_argument("--correct", action="store_true", help="add the searched recipes, corrected")
    parser.add_argument("--preprocessing", choices=("timm", "papers"), default="timm", help="of the search and here")
    args = parser.parse_args()
    study = HOSTS[args.host](args.limit, args.preprocessing)
    if args.correct:
        judge_corrected(study, json.loads((args.front / "front.json").read_text()), args.front)
        return 0
    if args.front is None:
        front = search(study, args.trials, args.storage)
    else:
        front = json.loads((args.front / "front.json").read_text())
    rows = judge(study, front, args.front)
    best = Recipe.from_json(json.dumps(front["best"]["recipe_json"]), args.front)
    best.save(ROOT / "results" / f"tuned_{study.name}.json")
    print("not matched by any searched recipe: " + (", ".join(beaten(rows)) or "no single method"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

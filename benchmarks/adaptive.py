"""Each image as long as it needs, beside the schedules that were searched -> results/adaptive.csv.

    python benchmarks/adaptive.py [--limit N]      # thresholds set on 250 pictures, evaluated on the 1,750
    python benchmarks/adaptive.py --trials 25      # the same, with so many further settings tried at each budget
    python benchmarks/adaptive.py --correct        # the adaptive recipes that are there, with a correction
    python benchmarks/adaptive.py --bf16           # the same with matrix products in bf16, the dense model's too
    python benchmarks/adaptive.py --time           # on a quiet machine: measured time, into the rows that are there

The schedules are those of results/tuned_deit_tiny.csv, without a proposal, at 1.43, 1.67 and 1.9 times fewer MACs. Bars
are set as `tokensieve tune` sets them, on pictures of imagenette_train; MACs are the mean over what is judged. Pictures
as the papers prepare them. The columns with 250 are of imagenet_val_a alone, which the host was not trained on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import optuna
import torch
from torch import Tensor, nn

from compare_methods import Study, deit_tiny
from results import read, write
from tokensieve import Recipe, Sieved, correct, sieve
from tokensieve.measure.speed import interleaved, spread
from tokensieve.search.bars import Thresholds
from tokensieve.search.budget_search import Search
from tokensieve.search.costs import Costs
from tokensieve.search.evaluator import Evaluator
from tokensieve.search.fit import Fit

BUDGETS = ("1.4333", "1.6667", "1.9")
BATCHES = (1, 8, 32)
UNSEEN = 250
"""The first images of the study: imagenet_val_a."""
RESULTS = "adaptive.csv"
CORRECTED = "adaptive, corrected"


def schedules() -> dict[str, Recipe]:
    """By budget what was searched."""
    return {
        row["budget"]: Recipe.parse(row["recipe"])
        for row in read("tuned_deit_tiny.csv")
        if row["kind"] == "searched" and row["title"] == "scheduled-guarded" and row["budget"] in BUDGETS
    }


def evaluator_of(images: Tensor, study: Study) -> Evaluator:
    words: dict[str, Any] = {"mean": study.mean, "std": study.std, "pretrained": True}
    return Evaluator(study.model, images, holdout=0, seed=0, batch=50, check=lambda: None, **words)


def figures(answers: Tensor, dense: Tensor, labels: Tensor) -> dict[str, float]:
    log_p, log_q = dense.log_softmax(1).double(), answers.log_softmax(1).double()
    same = answers.argmax(1) == dense.argmax(1)
    return {
        "kl": float((log_p.exp() * (log_p - log_q)).sum(1).mean()),
        "agreement": 100 * float(same.double().mean()),
        "top1": 100 * float((answers.argmax(1) == labels).double().mean()),
        "top1_dense": 100 * float((dense.argmax(1) == labels).double().mean()),
        "images": len(answers),
    }


@torch.no_grad()
def answered(fast: Sieved, images: Tensor, costs: Costs) -> tuple[Tensor, float]:
    """Its answers, and the mean MACs of an image."""
    answers, total = [], 0
    for some in images.split(50):
        trace = fast.trace(some)
        answers.append(trace.output.float())
        total += sum(costs.of_reads(reads, reads[-1].mlp) for reads in trace.reads_per_image)
    return torch.cat(answers), total / len(images)


def searched(search: Evaluator, costs: Costs, recipe: Recipe, target: float, trials: int) -> Recipe:
    """As `tokensieve tune` does: the thresholds of the schedule, and `trials` further settings around them."""
    ratio = costs.dense / target
    state = Search(
        families=(), fit=lambda ratio: Fit(costs, costs.dense / ratio), evaluator=search,
        storage=optuna.storages.InMemoryStorage(), seed=0,
        report=lambda progress: print(f"  trial {progress.trials}", flush=True),
    )  # fmt: skip
    study = state.study_of(ratio, Thresholds(str(recipe), search))
    state.adapted[ratio] = study
    study.start()
    study.run(study.starts + trials)
    best = study.best()
    assert best is not None
    return best.recipe


def corrected(study: Study, recipe: Recipe) -> Recipe:
    """The recipe with a correction fitted on the pictures of the search, in closed form."""
    found = correct(
        study.model, recipe, study.search, Path(mkdtemp()) / "correction.safetensors", mean=study.mean, std=study.std
    )
    print(
        f"  divergence of the search's pictures {found.divergence:.4f} -> {found.corrected_divergence:.4f}", flush=True
    )
    return found.recipe


def measure(study: Study, precision: str, trials: int, budgets: Sequence[str], correction: bool) -> None:
    """Rows of the adaptive recipes and of the schedules; or of the adaptive ones that are there, with a correction."""
    timed = {(row["budget"], row["method"]): row for row in read(RESULTS)}
    search = evaluator_of(torch.cat(study.search), study)
    costs = Costs(search.empty, study.size)
    images, labels = (torch.cat(parts) for parts in zip(*study.loader, strict=True))
    dense, _ = answered(sieve(study.model), images, costs)
    known, rows, done = schedules(), [], set[tuple[str, str]]()
    for method, budget in product((CORRECTED,) if correction else ("adaptive", "guarded"), budgets):
        recipe = known[budget]
        if method == "adaptive":
            recipe = searched(search, costs, recipe, costs.dense / float(budget), trials)
        if method == CORRECTED:
            recipe = corrected(study, Recipe.parse(timed[budget, "adaptive"]["recipe"]))
        answers, cost = answered(sieve(study.model, recipe), images, costs)
        few = figures(answers[:UNSEEN], dense[:UNSEEN], labels[:UNSEEN])
        row: dict[str, Any] = {
            "budget": budget, "method": method, "macs_ratio": costs.dense / cost,
            **figures(answers, dense, labels), **{f"{name}_250": value for name, value in few.items()},
            "precision": precision, "trials": trials, "searched_on": len(search.images),
            "recipe": str(recipe.with_paths(lambda path: "FILE")),
        }  # fmt: skip
        before, done = timed.get((budget, method), {}), {*done, (budget, method)}
        rows.append(row | {key: value for key, value in before.items() if key.startswith("time")})
        print(
            f"{budget}x {method:9} {row['macs_ratio']:.3f}x  KL {row['kl']:.4f}  agreement {row['agreement']:.1f}  "
            f"top-1 {row['top1'] - row['top1_dense']:+.1f}; 250: {row['kl_250']:.4f} {row['agreement_250']:.1f} "
            f"{row['top1_250'] - row['top1_dense_250']:+.1f}", flush=True,
        )  # fmt: skip
        others = [row for row in timed.values() if (row["budget"], row["method"]) not in done]
        write(RESULTS, sorted([*rows, *others], key=lambda row: (BUDGETS.index(row["budget"]), row["method"])))


@torch.no_grad()
def add_time(study: Study, seconds: float) -> None:
    """Dense, fixed and adaptive in the same rounds, on photographs drawn at random."""
    rows = read(RESULTS)
    images = torch.cat([images for images, _ in study.loader])
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))][: max(BATCHES)]

    def run(model: nn.Module, batch: int) -> None:
        for some in images.split(batch):  # as many images whatever the batch, since each takes its own time
            model(some)

    for batch in BATCHES:
        calls = {"dense": partial(run, study.model, batch)}
        for number, row in enumerate(rows):
            if "FILE" not in row["recipe"]:  # whose correction is one small product more
                calls[str(number)] = partial(run, sieve(study.model, row["recipe"]), batch)
        times = interleaved(calls, seconds=seconds, min_rounds=5, max_rounds=100)
        for number, row in enumerate(rows):
            if str(number) not in times:
                continue
            pairs = zip(times["dense"], times[str(number)], strict=True)
            low, ratio, high = spread([dense / ours for dense, ours in pairs])
            row |= {f"time_{batch}": ratio, f"time_{batch}_low": low, f"time_{batch}_high": high}
            print(f"batch {batch:2} {row['budget']}x {row['method']:9} {ratio:.2f}x [{low:.2f}-{high:.2f}]", flush=True)
        write(RESULTS, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit", type=int, help="images of each set")
    parser.add_argument("--trials", type=int, default=0, help="settings of the thresholds tried around the schedule")
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=BUDGETS)
    parser.add_argument("--search-on", type=int, default=250, help="pictures on which thresholds are set and searched")
    parser.add_argument("--correct", action="store_true", help="rows of the adaptive recipes with a correction")
    parser.add_argument("--bf16", action="store_true", help="matrix products in bf16, everything else in fp32")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--seconds", type=float, default=40, help="of timing, for each batch size")
    args = parser.parse_args()
    if args.time:
        add_time(deit_tiny(32, "papers"), args.seconds)
    else:
        study = deit_tiny(args.limit, "papers", args.search_on)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            measure(study, "bf16 products" if args.bf16 else "fp32", args.trials, args.budgets, args.correct)
    return 0


if __name__ == "__main__":
    sys.exit(main())

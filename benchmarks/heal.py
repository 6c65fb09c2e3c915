"""A searched recipe healed without labels, judged on photographs that it never saw -> results/heal.csv.

    python benchmarks/heal.py train --mode all --folder FOLDER [--epochs 2] [--views 2] [--limit N] [--lr RATE]
    python benchmarks/heal.py judge --mode all --folder FOLDER
    python benchmarks/heal.py judge --mode none
    python benchmarks/heal.py time --mode all --folder FOLDER    # on a quiet machine: measured time, into its rows

DeiT-Tiny under results/tuned_deit_tiny.json (1.9 times fewer MACs), or with `--recipe adaptive` under the adaptive
recipe of results/adaptive.csv that saves as much, healed on the photographs of imagenette_train at exactly 224
pixels. Under the adaptive one the host learns with fixed numbers of merges, and thresholds are then set for what was
learnt. Judged on the 1,750 of compare_methods.py, of which the 250 of imagenet_val_a stand in rows of their own, and
on street scenes (CamVid), of none of the ten classes: whether the model was bent to those. Rows with a promise are of
a cascade, the dense model behind the healed one, calibrated on 500 photographs of imagenette_val and judged on the
others; MACs are those of both readings, nothing shared. Training goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Subset

from compare_methods import DATA, WEIGHTS
from results import ROOT, read, update
from tokensieve import CascadeRecipe, HealSettings, Recipe, sieve
from tokensieve.cascades import Cascade, certify, sureness
from tokensieve.data import Preprocessing, image_set, load_batches
from tokensieve.measure import cascade_speed, macs, speed
from tokensieve.measure.comparison import KINDS
from tokensieve.measure.intervals import agreement_interval, share_interval
from tokensieve.measure.outputs import collect_outputs
from tokensieve.train import train
from tokensieve.train.heal_adaptive import ThresholdSetter
from tokensieve.train.heal_task import prepare
from tokensieve.zoo import create

RECIPE = ROOT / "results" / "tuned_deit_tiny.json"
SETS = {
    "photographs of the ten classes": ("imagenette_val.tar", "imagenet_val_a"),
    "of them those no host was trained on": ("imagenet_val_a",),
    "street scenes": ("camvid.tar",),
}
SCENES = 200
"""Of the street scenes, evenly spread."""
CALIBRATED, BATCH = 500, 32
PROMISES = (0.98, 0.99)
KEY = ("recipe", "mode", "pictures", "judged_on", "promise")


def recipe_of(name: str) -> Recipe:
    """`tuned`: exactly so many tokens in each block; `adaptive`: as many on average."""
    if name == "tuned":
        return Recipe.load(RECIPE)
    (row,) = (row for row in read("adaptive.csv") if (row["budget"], row["method"]) == ("1.9", "adaptive"))
    return Recipe.parse(row["recipe"])


def host() -> nn.Module:
    return create("deit_tiny_patch16_224", weights=WEIGHTS / "deit_tiny_patch16_224.safetensors").model.eval()


def pictures(name: str, model: nn.Module, limit: int | None = None) -> Any:
    prepared = Preprocessing.papers(model)
    if name == "camvid.tar":  # its maps of labels are pictures too
        found = image_set(DATA / name, prepared)
        frames = [index for index in range(len(found)) if "/images/" in found.path(index)]
        return Subset(found, frames[:: max(1, len(frames) // (limit or SCENES))])
    return image_set(DATA / name, prepared, classes=DATA / "imagenet_classes.json", limit=limit)


def heal(args: argparse.Namespace) -> None:
    model = host()
    settings = HealSettings(
        trainable=args.mode, epochs=args.epochs, views=args.views, batch_size=args.batch, lr=args.lr,
        holdout=args.holdout, validations=args.validations, patience=None, precision=args.precision,
    )  # fmt: skip
    known = pictures("imagenette_train.tar", model, args.limit)

    def say(told: Any) -> None:
        print(told, file=sys.stderr, flush=True)

    recipe = recipe_of(args.recipe)
    recipe = ThresholdSetter(model, recipe, known, {}).fixed if args.recipe == "adaptive" else recipe
    config, task = prepare(model, recipe, known, args.folder, settings, say=say)
    train(config, task, args.folder, report=say)


@torch.no_grad()
def judge(args: argparse.Namespace) -> None:
    """Rows for one set of weights; with --cache the dense model's answers are kept for the next one."""
    model, healed = host(), host()
    told: dict[str, Any] = {"recipe": args.recipe, "mode": args.mode, "pictures": 0, "promise": ""}
    if args.mode != "none":
        healed.load_state_dict(load_file(args.folder / "model.safetensors"))
        state = torch.load(args.folder / "model.checkpoint.pt", weights_only=True)
        config, rows = state["config"], state["rows"]
        told |= {"pictures": args.pictures, "epochs": config["epochs"], "lr": config["lr"], "views": args.views}
        told |= {"batch": config["batch_size"], "minutes": rows[-1]["seconds"] / 60, "step": state["best"]["step"]}
    recipe = recipe_of(args.recipe)
    if args.recipe == "adaptive" and args.mode != "none":  # thresholds are set anew for what was learnt
        recipe = ThresholdSetter(model, recipe, pictures("imagenette_train.tar", model), {}).recipe_for(healed)
        recipe.save(args.folder / "adaptive.json")
    fast = sieve(healed, recipe)
    known = pictures("imagenet_val_a", model)
    some = torch.stack([known[row][0] for row in range(len(known))])  # what an adaptive recipe costs depends on them
    told["macs_ratio"] = macs(model, (3, 224, 224)) / macs(fast, images=some)
    answers = {name: both(model, fast, name, args) for names in SETS.values() for name in names}
    kind, found = KINDS["classes"], []
    for title, names in SETS.items():
        dense, sieved, labels = (torch.cat([answers[name][part] for name in names]) for part in range(3))
        same = kind.agreement(dense, sieved)
        low, high = agreement_interval(same)
        row = {
            **told, "judged_on": title, "images": len(dense), "kl": float(kind.divergence(dense, sieved).mean()),
            "agreement": 100 * float(same.mean()), "agreement_low": low, "agreement_high": high,
        }  # fmt: skip
        if names != ("camvid.tar",):
            for name, outputs in (("top1", sieved), ("top1_dense", dense)):
                row[name] = 100 * float((outputs.argmax(1) == labels).double().mean())
        found.append(row)
        print(row, flush=True)
    if args.judged is None:
        found += cascades(answers, told)
    update("heal.csv", found, *KEY)


@torch.no_grad()
def time(args: argparse.Namespace) -> None:
    """Dense over healed, and over the cascades of both, at batch 32 on photographs of imagenette_val."""
    model, healed = host(), host()
    if args.mode != "none":
        healed.load_state_dict(load_file(args.folder / "model.safetensors"))
    known = pictures("imagenette_val.tar", model)
    images = torch.stack([known[row][0] for row in range(0, len(known), len(known) // 128)][:128])
    adapted = args.folder and args.folder / "adaptive.json"
    recipe = Recipe.load(adapted) if args.recipe == "adaptive" and adapted else recipe_of(args.recipe)
    fast, last = sieve(healed, recipe), sieve(model, "readout()")
    rows = [
        row
        for row in read("heal.csv")
        if (row["recipe"], row["mode"]) == (args.recipe, args.mode) and row["judged_on"] != "street scenes"
    ]
    timed: dict[str, dict[str, Any]] = {}
    for promise, row in {row["promise"]: row for row in rows}.items():
        if promise:
            recipe = CascadeRecipe((str(fast.recipe), str(last.recipe)), (float(row["threshold"]),))
            took: Any = cascade_speed(Cascade([fast, last], recipe), model, images, BATCH, seconds=args.seconds)
        else:
            took = speed(fast, model, images[:BATCH], seconds=args.seconds, min_rounds=5)
        timed[promise] = {"speed": took.ratio, "speed_low": took.low, "speed_high": took.high}
        print(promise, timed[promise], flush=True)
    update("heal.csv", [{**row, "batch_timed": BATCH, **timed[row["promise"]]} for row in rows], *KEY)


def cascades(answers: dict[str, tuple[Tensor, Tensor, Tensor]], told: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of cascades: calibrated on some photographs of imagenette_val, judged on the rest and on imagenet_val_a."""
    count = len(answers["imagenette_val.tar"][0])
    calibrated = np.arange(0, count, count / CALIBRATED).astype(int)[:CALIBRATED]
    rest = np.setdiff1d(np.arange(count), calibrated)
    judged = {f"the other {len(rest):,} of imagenette_val": ("imagenette_val.tar", rest),
              "imagenet_val_a": ("imagenet_val_a", np.arange(len(answers["imagenet_val_a"][0])))}  # fmt: skip
    scores, same = _sure_and_same(answers["imagenette_val.tar"], calibrated)
    rows = []
    for promise in PROMISES:
        (threshold,) = certify(scores, same, promise, 0.95).thresholds
        for title, (name, chosen) in judged.items():
            some_scores, some_same = _sure_and_same(answers[name], chosen)
            again = (some_scores[0] < threshold) | (threshold >= 1)
            agree = int((some_same[0] | again).sum())
            dense, sieved, labels = (part[chosen] for part in answers[name])
            right = torch.where(torch.from_numpy(again), dense.argmax(1), sieved.argmax(1)) == labels
            first = 1 / told["macs_ratio"] if threshold < 1 else 0.0
            ends = share_interval(agree, len(chosen))
            rows.append(
                {
                    **told, "judged_on": title, "promise": f"{100 * promise:g} %", "images": len(chosen),
                    "macs_ratio": 1 / (first + float(again.mean())), "threshold": threshold,
                    "read_again": float(again.mean()), "agreement": 100 * agree / len(chosen),
                    "agreement_low": ends.low, "agreement_high": ends.high,
                    "top1": 100 * float(right.double().mean()),
                    "top1_dense": 100 * float((dense.argmax(1) == labels).double().mean()),
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def _sure_and_same(
    answers: tuple[Tensor, Tensor, Tensor], chosen: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """How sure the first reading is, (1, N), and whether each reading has the dense answer, (2, N)."""
    dense, sieved = answers[0][chosen], answers[1][chosen]
    agrees = (sieved.argmax(1) == dense.argmax(1)).numpy()
    return sureness(sieved).double().numpy()[None], np.stack([agrees, np.ones_like(agrees)])


def both(model: nn.Module, fast: nn.Module, name: str, args: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """The answers of the dense and of the sieved model to a set of pictures, and its labels."""
    batches = [(batch.images, batch.labels) for batch in load_batches(pictures(name, model, args.judged), 50)]
    cache = args.cache and args.cache / f"dense-{name}-{args.judged}.pt"
    if cache and cache.is_file():
        dense = torch.load(cache, weights_only=True)
    else:
        dense = collect_outputs(model, batches)
        if cache:
            cache.parent.mkdir(parents=True, exist_ok=True)
            torch.save(dense, cache)
    return dense, collect_outputs(fast, batches), torch.cat([labels for _, labels in batches])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "judge", "time"))
    parser.add_argument("--mode", choices=("none", "all", "lora", "norms"), default="all")
    parser.add_argument("--recipe", choices=("tuned", "adaptive"), default="tuned")
    parser.add_argument("--folder", type=Path, help="where the healed weights are made, or lie")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--holdout", type=float, default=0.077, help="share of the photographs to validate on")
    parser.add_argument("--validations", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--limit", type=int, help="photographs to learn from")
    parser.add_argument("--pictures", type=int, default=6500, help="how many those were, for the row")
    parser.add_argument("--judged", type=int, help="photographs to judge on, of each set")
    parser.add_argument("--cache", type=Path, help="folder that keeps the dense model's answers")
    parser.add_argument("--seconds", type=float, default=25.0, help="of timing, for each")
    args = parser.parse_args()
    {"train": heal, "judge": judge, "time": time}[args.what](args)
    return 0


if __name__ == "__main__":
    sys.exit(main())

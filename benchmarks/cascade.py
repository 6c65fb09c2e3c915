"""Cascades on DeiT-Tiny: what they promise, what they keep, how long they take -> results/cascade.csv.

    python benchmarks/cascade.py answers FOLDER      # every reading's answers, kept in FOLDER; goes on where it ended
    python benchmarks/cascade.py judge FOLDER        # rows of what was promised and kept, of the answers that are there
    python benchmarks/cascade.py tuned FOLDER --recipe best.json      # a row for what `tokensieve tune --agree` found
    python benchmarks/cascade.py time                # on a quiet machine: measured time, into the rows that are there

Calibrated on 500 photographs of imagenette_train, evenly spread, and on all that were answered; judged on those of
imagenette_val and imagenet_val_a that were answered (the column `images`; 1,750 in all), and on the 250 of
imagenet_val_a alone, at exactly 224 pixels, the size they are stored in (`--preprocessing papers`). `kind`: `saving`,
the threshold that on the 500 gives that many times fewer MACs; `plain`, one recipe of as few, the best schedule known
at that budget; `tuned`, found and certified by `tokensieve tune --agree 0.98 --limit 1000 --proposal none --trials 40`
on imagenette_train in 20 minutes of one core; `promise`, calibrated as `tokensieve.cascade` does; `splits`, 100 random
splits, 500 to calibrate and the rest to judge, and how often the promise was broken.
MACs are those of all readings, what they share counted once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compare_methods import DATA, WEIGHTS
from results import read, update
from tokensieve import CascadeRecipe, prepack, sieve
from tokensieve.cascades import Cascade, certify, sureness
from tokensieve.data import Preprocessing, image_set
from tokensieve.measure import cascade_speed, macs, speed
from tokensieve.measure.intervals import share_interval
from tokensieve.measure.macs import reading_macs
from tokensieve.search.costs import Costs
from tokensieve.search.families import Scheduled
from tokensieve.search.fit import Fit
from tokensieve.zoo import create

FIRST = "guarded(r=(0, 0, 0, 46, 46, 27, 16, 9, 10, 0, 0, 0), drop=(0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 2, 0)) + readout()"
"""The first reading: three blocks left alone, strong merging behind."""
LAST = "readout()"
"""The last reading: the dense model but for rounding."""
PLAIN = (1.6, 1.5, 1.4, 1.25)
"""Savings at which a cascade stands beside one recipe."""
SETS = {"val_a": "imagenet_val_a", "val": "imagenette_val.tar", "train": "imagenette_train.tar"}
CALIBRATED, SPLITS = 500, 100
CONFIDENCE = 0.95
PATCHES = 196
BATCH = 25
CHUNK = 250
"""Photographs whose answers are written at a time."""
KEY = ("kind", "wanted", "calibrated_on", "judged_on")


def deit_tiny() -> nn.Module:
    return create("deit_tiny_patch16_224", weights=WEIGHTS / "deit_tiny_patch16_224.safetensors").model.eval()


def photographs(name: str, model: nn.Module) -> Any:
    prepared = Preprocessing.named("papers", model)
    return image_set(DATA / SETS[name], prepared, classes=DATA / "imagenet_classes.json")


def plain(model: nn.Module, saving: float) -> str:
    """One recipe at a saving: the best schedule known, scaled to it."""
    costs = Costs(sieve(model), (3, 224, 224))
    return str(Scheduled().recipe({}, {}, Fit(costs, costs.dense / saving, readout=True)))


def chunks(count: int) -> list[list[int]]:
    """Evenly spread, so that the first ones hold all classes."""
    parts = -(-count // CHUNK)
    return [list(range(part, count, parts)) for part in range(parts)]


def file_of(folder: Path, name: str, part: int, recipe: str) -> Path:
    return folder / f"{name}-{part}-{sha256(recipe.encode()).hexdigest()[:10]}.pt"


@torch.inference_mode()
def answer(folder: Path, names: Sequence[str], recipes: Sequence[str], until: int | None) -> None:
    """The answers of all readings to all photographs, chunk by chunk; what is there is left alone.

    As in a cascade, the blocks that all of them leave alone are computed once.
    """
    model = prepack(deit_tiny())
    streams = {recipe: sieve(model, recipe).stream for recipe in recipes}
    for name in names:
        pictures = photographs(name, model)
        for part, rows in list(enumerate(chunks(len(pictures))))[:until]:
            wanted = [recipe for recipe in recipes if not file_of(folder, name, part, recipe).exists()]
            shared = min((streams[recipe].plan.untouched(PATCHES) for recipe in wanted), default=0)
            outputs: dict[str, list[Tensor]] = {recipe: [] for recipe in wanted}
            labels: list[int] = []
            for start in range(0, len(rows) if wanted else 0, BATCH):
                got = [pictures[row] for row in rows[start : start + BATCH]]
                images = torch.stack([image for image, _ in got])
                labels += [label for _, label in got]
                begun = streams[LAST].begin(images, shared)
                for recipe in wanted:
                    outputs[recipe].append(streams[recipe].answer(images, begun=begun))
            for recipe, found in outputs.items():
                told = {"recipe": recipe, "rows": rows, "labels": torch.tensor(labels), "logits": torch.cat(found)}
                torch.save(told, file_of(folder, name, part, recipe))
            if wanted:
                print(f"{name} {part}: {len(wanted)} readings", file=sys.stderr, flush=True)


@dataclass
class Answers:
    """What the readings answered to the photographs of some sets, in the order of the chunks."""

    folder: Path
    names: tuple[str, ...]
    recipes: tuple[str, ...]
    labels: Tensor = field(init=False)
    """(N,) after `logits` was asked for."""

    @cached_property
    def logits(self) -> list[Tensor]:
        """(N, K) of each reading: of the chunks that all of them have."""
        found: list[list[Tensor]] = [[] for _ in self.recipes]
        self.labels = torch.zeros(0, dtype=torch.int64)
        for name in self.names:
            part = 0
            while all(file_of(self.folder, name, part, recipe).exists() for recipe in self.recipes):
                told = [torch.load(file_of(self.folder, name, part, recipe)) for recipe in self.recipes]
                for place, each in enumerate(told):
                    found[place].append(each["logits"])
                self.labels = torch.cat([self.labels, told[0]["labels"]])
                part += 1
        return [torch.cat(each) for each in found if each]

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        return np.stack([sureness(each).double().numpy() for each in self.logits[:-1]])

    @cached_property
    def same(self) -> NDArray[np.bool_]:
        told = self.logits[-1].argmax(1)
        return np.stack([(each.argmax(1) == told).numpy() for each in self.logits])

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        return np.stack([(each.argmax(1) == self.labels).numpy() for each in self.logits])

    def routed(self, thresholds: Sequence[float]) -> tuple[NDArray[np.intp], tuple[float, ...]]:
        """The reading that answers each photograph, and the share that each reads."""
        who = np.full(self.same.shape[1], len(thresholds))
        going, shares = np.ones(len(who), dtype=bool), []
        for member, threshold in enumerate(thresholds):
            shares.append(going.mean() if threshold < 1 else 0.0)
            accepted = going & (self.scores[member] >= threshold) & (threshold < 1)
            who[accepted], going = member, going & ~accepted
        return who, (*shares, going.mean())

    def row(self, thresholds: Sequence[float], added: Sequence[float], dense: float) -> dict[str, Any]:
        """What a cascade of these thresholds keeps and costs here."""
        who, shares = self.routed(thresholds)
        images = np.arange(len(who))
        same, right = self.same[who, images], self.right[who, images]
        ends = share_interval(int(same.sum()), len(who))
        return {
            "thresholds": " ".join(f"{each:.3f}" for each in thresholds),
            "macs_ratio": dense / sum(share * cost for share, cost in zip(shares, added, strict=True)),
            "read_again": shares[1],
            "agreement": 100 * same.mean(),
            "agreement_low": ends.low,
            "agreement_high": ends.high,
            "top1": 100 * right.mean(),
            "top1_dense": 100 * self.right[-1].mean(),
            "images": len(who),
        }


JUDGED = {"imagenette_val + imagenet_val_a": ("val_a", "val"), "imagenet_val_a": ("val_a",)}


def threshold_for(answers: Answers, added: Sequence[float], dense: float, saving: float) -> float:
    """The highest threshold at which these photographs cost no more than that."""
    scores = np.sort(answers.scores[0])
    again = int(len(scores) * (dense / saving - added[0]) / added[1])
    if again < 0:
        raise SystemExit(f"The first reading alone costs more than {saving:g}x fewer MACs.")
    return float(scores[min(again, len(scores) - 1)])


def judge(folder: Path) -> None:
    model, recipes = deit_tiny(), (FIRST, LAST)
    cascade = Cascade([sieve(model, each) for each in recipes], CascadeRecipe(recipes, (0.5,)))
    added, dense = reading_macs(cascade, 224), macs(model, 224)
    train = Answers(folder, ("train",), recipes)
    count = train.same.shape[1]
    some = np.arange(0, count, count / CALIBRATED).astype(int)[:CALIBRATED]
    few = Answers(folder, ("train",), recipes)
    few.logits = [each[some] for each in train.logits]
    few.labels = train.labels[some]
    told = {"first": FIRST, "last": LAST}
    rows: list[dict[str, Any]] = []
    for judged, names in JUDGED.items():
        here = Answers(folder, names, recipes)
        for saving in PLAIN:
            threshold = threshold_for(few, added, dense, saving)
            name = {"kind": "saving", "wanted": f"{saving:g}x", "calibrated_on": len(some), "judged_on": judged}
            rows.append({**name, **here.row((threshold,), added, dense), **told})
            recipe = plain(model, saving)
            alone = Answers(folder, names, (recipe, LAST))
            if alone.logits and len(alone.logits[0]) == len(here.logits[0]):
                cost = (macs(sieve(model, recipe), 224), 0.0)
                rows.append({**name, "kind": "plain", **alone.row((0.0,), cost, dense), "first": recipe, "last": ""})
        for agree in (0.98, 0.99):
            for those in (few, train):
                found = certify(those.scores, those.same, agree, CONFIDENCE)
                name = {"kind": "promise", "wanted": f"{100 * agree:g} %", "calibrated_on": found.images}
                rows.append({**name, "judged_on": judged, **here.row(found.thresholds, added, dense), **told})
    for agree in (0.98, 0.99):
        rows.append({**splits(train, agree, added, dense), **told})
    update("cascade.csv", rows, *KEY)
    for row in rows:
        print({key: row.get(key) for key in (*KEY, "macs_ratio", "agreement", "top1", "broken")})


def judge_tuned(folder: Path, file: Path) -> None:
    """Rows for a cascade from a file, with its own recipes and thresholds."""
    model, recipe = deit_tiny(), CascadeRecipe.load(file)
    recipes = tuple(map(str, recipe.recipes))
    names = next(iter(JUDGED.values()))
    answer(folder, names, recipes, None)
    cascade = sieve(model, recipe)
    assert isinstance(cascade, Cascade)
    added, dense = reading_macs(cascade, 224), macs(model, 224)
    rows = []
    for judged, names in JUDGED.items():
        name = {"kind": "tuned", "wanted": f"{100 * (recipe.agree or 0):g} %", "calibrated_on": recipe.images}
        here = Answers(folder, names, recipes).row(recipe.thresholds, added, dense)
        rows.append({**name, "judged_on": judged, **here, "first": recipes[0], "last": recipes[-1]})
        print(rows[-1], flush=True)
    update("cascade.csv", rows, *KEY)


def splits(train: Answers, agree: float, added: Sequence[float], dense: float) -> dict[str, Any]:
    """Of random splits, 500 to calibrate and the rest to judge: how often fewer agree than promised."""
    generator, count = np.random.default_rng(0), train.same.shape[1]
    broken, kept, ratios = 0, [], []
    for _ in range(SPLITS):
        order = generator.permutation(count)
        some, rest = order[:CALIBRATED], order[CALIBRATED:]
        found = certify(train.scores[:, some], train.same[:, some], agree, CONFIDENCE)
        who, _ = train.routed(found.thresholds)
        share = train.same[who[rest], rest].mean()
        again = (who[rest] > 0).mean() if found.thresholds[0] < 1 else 1.0
        first = added[0] if found.thresholds[0] < 1 else 0.0
        ratios.append(dense / (first + again * (added[1] if first else dense)))
        broken, kept = broken + (share < agree), [*kept, share]
    return {
        "kind": "splits",
        "wanted": f"{100 * agree:g} %",
        "calibrated_on": CALIBRATED,
        "judged_on": f"the other {count - CALIBRATED} of imagenette_train",
        "macs_ratio": float(np.mean(ratios)),
        "agreement": 100 * float(np.mean(kept)),
        "images": count - CALIBRATED,
        "splits": SPLITS,
        "broken": broken,
        "lowest": 100 * float(np.min(kept)),
    }


@torch.no_grad()
def time(batch: int, seconds: float) -> None:
    """Dense over cascade, and over the plain recipe, at one batch size on photographs of imagenette_val."""
    model = deit_tiny()
    pictures = photographs("val", model)
    images = torch.stack([pictures[row][0] for row in range(0, len(pictures), len(pictures) // 128)][:128])
    rows = [row for row in read("cascade.csv") if row["judged_on"] == next(iter(JUDGED))]
    most = max(int(row["calibrated_on"]) for row in rows)
    rows = [row for row in rows if row["wanted"] in ("1.5x", "1.4x") or int(row["calibrated_on"]) == most > CALIBRATED]
    found = []
    for row in rows:
        if row["kind"] == "plain":
            one = speed(sieve(model, row["first"]), model, images[:batch], seconds=seconds / len(rows), min_rounds=5)
            told = {"speed": one.ratio, "speed_low": one.low, "speed_high": one.high}
        else:
            recipe = CascadeRecipe((row["first"], row["last"]), tuple(map(float, row["thresholds"].split())))
            each = cascade_speed(sieve(model, recipe), model, images, batch, seconds=seconds / len(rows))  # type: ignore[arg-type]
            told = {"speed": each.ratio, "speed_low": each.low, "speed_high": each.high}
            told |= {"p50_ms": 1000 * each.cascade.p50, "p99_ms": 1000 * each.cascade.p99}
            told |= {"dense_p50_ms": 1000 * each.dense.p50, "dense_p99_ms": 1000 * each.dense.p99}
        found.append({**row, "batch": batch, **told})
        print(row["kind"], row["wanted"], told, flush=True)
    update("cascade.csv", found, *KEY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("answers", "judge", "tuned", "time"))
    parser.add_argument("folder", nargs="?", type=Path, help="where the answers are kept")
    parser.add_argument("--sets", default="val_a,train,val", help="of answers: which photographs, in this order")
    parser.add_argument("--chunks", type=int, help="of answers: so many chunks of 250 of each set")
    parser.add_argument("--plain", action="store_true", help="of answers: the plain recipes too")
    parser.add_argument("--recipe", type=Path, help="of tuned: the file of the cascade")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120.0)
    args = parser.parse_args()
    if args.what == "time":
        time(args.batch, args.seconds)
        return
    if args.folder is None:
        parser.error("give the FOLDER of the answers")
    args.folder.mkdir(exist_ok=True)
    if args.what == "judge":
        judge(args.folder)
        return
    if args.what == "tuned":
        judge_tuned(args.folder, args.recipe)
        return
    beside = [plain(deit_tiny(), saving) for saving in PLAIN] if args.plain else []
    answer(args.folder, args.sets.split(","), [LAST, FIRST, *beside], args.chunks)


if __name__ == "__main__":
    main()

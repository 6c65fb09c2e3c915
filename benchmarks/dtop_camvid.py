"""DToP trained on CamVid -> results/dtop.csv and docs/pictures/dtop.png.

    python benchmarks/dtop_camvid.py train segvit            # a base; interrupted, the same command goes on
    python benchmarks/dtop_camvid.py train segvit_finetune   # and each of RUNS; they need their base
    python benchmarks/dtop_camvid.py evaluate                # @Direct at each threshold, the others at two; baselines
    python benchmarks/dtop_camvid.py speed                   # fills in their time
    python benchmarks/dtop_camvid.py plot
    python benchmarks/dtop_camvid.py pictures                # ten test windows, OUT/HEAD.png, to look at

DeiT-Tiny with its ImageNet weights; 367 photographs of 480x360 to learn from, 101 to validate, 233 to test; crops of
240x176; ATM heads of width 192 with 3 heads, or SETR's naive heads, at exits (5, 7, 11). Pictures are scored whole, by
six windows each. MACs are the mean over windows of test pictures, all heads that run included. The threshold at which
a variant is compared is the lowest of the grid that loses no more than 0.5 mIoU on the validation pictures. The row
`longer` is the base trained on without exits, for as many steps as @Finetune takes more than the base. Baselines run on
the base's weights with about the MACs that @Direct takes there, see dtop_baselines.py; ToMe beside every variant.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dtop_baselines import Baselines
from dtop_plot import plot
from results import SHARED, read, update
from tables import LOST, TRAINED, compared_exit
from tokensieve import SieveError, sieve
from tokensieve.data import AsTensor, SegmentationSet, segmentation_set
from tokensieve.forward.walk import Reads
from tokensieve.measure import SlicingLimit, macs
from tokensieve.measure.scores import MapScore, PixelClasses
from tokensieve.measure.speed import interleaved
from tokensieve.segmentation import slide
from tokensieve.segmentation.plan import SegmenterPlan, open_trained
from tokensieve.show.explain import explain
from tokensieve.show.gallery import how_to_read
from tokensieve.show.page import Report, Section, write_png
from tokensieve.show.sheet import sheet
from tokensieve.train import train
from tokensieve.train.segmentation import SegmentSettings, prepare, prepare_dtop

SOURCE = SHARED / "data" / "camvid.tar"
BACKBONE = SHARED / "weights" / "deit_tiny_patch16_224.safetensors"
CROP, STRIDE = (176, 240), (92, 120)
SCORED = (92, 240)
"""Stride of the windows by which the table's figures are scored: each column of a picture once, rows twice."""
EXITS = (5, 7, 11)
THRESHOLDS = {"segvit": (0.6, 0.7, 0.8, 0.9, 0.95), "setr": (0.8, 0.9, 0.95, 0.98, 0.99)}
TRAINED_AT = {"segvit": 0.9, "setr": 0.95}
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "segvit": ("segvit", {"exits": EXITS, "width": 192, "heads": 3}),
    "setr": ("setr_naive", {"levels": EXITS}),
}
BASE = {"steps": 500, "warmup": 50}
FINETUNE = {"steps": 150, "warmup": 15}
ALIKE = {"batch_size": 8, "lr": 1e-4, "head_lr": 10.0, "validate_every": 100, "checkpoint_every": 50}


class Run(NamedTuple):
    """One training: of which head, from what on, what of it learns."""

    head: str
    variant: str
    settings: dict[str, Any]


RUNS = {
    f"{head}{'' if variant == 'base' else '_' + variant}": Run(head, variant, settings)
    for head in HEADS
    for variant, settings in (
        ("base", BASE),
        ("longer", FINETUNE),
        ("finetune", FINETUNE),
        ("finetune_heads", {**FINETUNE, "trainable": "heads"}),
        ("retrain", BASE),
    )
}


def recipe(threshold: float) -> str:
    return f"dtop(threshold={threshold}, keep_per_class=5)"


def opened(split: str, limit: int | None = None) -> SegmentationSet:
    return segmentation_set(SOURCE, "camvid", split, limit=limit)


def weights(name: str, out: Path) -> Path:
    head = HEADS[RUNS[name].head][0]
    return out / name / f"{head if RUNS[name].variant in ('base', 'longer') else head + '_dtop'}.safetensors"


def learn(name: str, out: Path, workers: int) -> None:
    run, folder = RUNS[name], out / name
    head, head_args = HEADS[run.head]
    known, unseen = opened("train"), opened("val", 24)
    plan = SegmenterPlan("deit_tiny_patch16_224", known.classes, head, head_args, crop=CROP, stride=STRIDE)
    settings = SegmentSettings(**{**ALIKE, **run.settings}, workers=workers)
    exits, start = recipe(TRAINED_AT[run.head]), {"backbone_weights": str(BACKBONE)}
    if run.variant == "base":
        config, task = prepare(plan, known, unseen, folder, settings, **start)
    elif run.variant == "longer":
        config, task = prepare(None, known, unseen, folder, settings, base=str(weights(run.head, out)))
    elif run.variant == "retrain":
        config, task = prepare_dtop(plan, exits, known, unseen, folder, settings, **start)
    else:
        base = str(weights(run.head, out))
        config, task = prepare_dtop(None, exits, known, unseen, folder, settings, base=base)
    train(config, task, folder, report=lambda row: print(row, file=sys.stderr, flush=True))


@torch.no_grad()
def scored(model: nn.Module, pictures: SegmentationSet) -> MapScore:
    found = PixelClasses()
    for index in range(len(pictures)):
        image, labels = pictures[index]
        found.update(slide(model, image[None], CROP, SCORED, windows=6), labels[None])
    result: MapScore = found.result()
    return result


def windows(pictures: SegmentationSet, count: int) -> Tensor:
    """Windows, evenly spread over pictures and places."""
    places = [(top, left) for top in (0, 92, 184) for left in (0, 120, 240)]
    found = []
    for number in range(count):
        image, _ = pictures[number * len(pictures) // count]
        top, left = places[number % len(places)]
        found.append(image[:, top : top + CROP[0], left : left + CROP[1]])
    return torch.stack(found)


def variants(head: str, out: Path) -> Iterator[tuple[str, nn.Module]]:
    """What is trained so far: the base, which @Direct is too, and what was trained with exits."""
    for variant in ("base", "finetune", "finetune_heads", "retrain"):
        name = head if variant == "base" else f"{head}_{variant}"
        if weights(name, out).is_file():
            yield ("direct" if variant == "base" else variant), open_trained(weights(name, out))[0]


def evaluate(out: Path, heads: list[str]) -> None:
    for head in heads:
        if not weights(head, out).is_file():
            print(f"{head}: no base yet", file=sys.stderr)
            continue
        base, plan = open_trained(weights(head, out))
        assert plan.mean is not None and plan.std is not None  # noqa: PT018
        sets = {split: opened(split) for split in ("val", "test")}
        for each in sets.values():
            each.transform = AsTensor(plan.mean, plan.std)
        some = windows(sets["test"], 117)
        done = {(row["head"], row["variant"], row["setting"]) for row in read("dtop.csv")}
        dense = macs(base, images=some[:1])

        def row(
            variant: str,
            setting: str,
            model: nn.Module,
            call: Any = None,
            head: str = head,
            sets: dict[str, SegmentationSet] = sets,
            some: Tensor = some,
            dense: float = dense,
        ) -> None:
            told = {split: scored(call or model, pictures) for split, pictures in sets.items()}
            cost = macs(model, images=some)
            figures = {
                f"{split}_{name}": score.figures[name]
                for split, score in told.items()
                for name in ("miou", "pixel_accuracy")
            }
            found = {"head": head, "variant": variant, "setting": setting, **figures}
            found |= {"gmac": cost / 1e9, "macs_saved": 100 * (1 - cost / dense)}
            update("dtop.csv", [found], "head", "variant", "setting")
            print(found, file=sys.stderr, flush=True)

        for variant, name in (("base", head), ("longer", f"{head}_longer")):
            if (head, variant, "") not in done and weights(name, out).is_file():
                row(variant, "", open_trained(weights(name, out))[0])
        for variant, model in variants(head, out):
            grid = THRESHOLDS[head]
            for threshold in grid if variant == "direct" else (grid[0], TRAINED_AT[head]):
                if (head, variant, str(threshold)) not in done:
                    row(variant, str(threshold), sieve(model, recipe(threshold)))
        for each in chosen(head):
            r = merged(base, some[:1], float(each["gmac"]))
            if (head, "tome", f"r={r}") not in done:
                done.add((head, "tome", f"r={r}"))
                row("tome", f"r={r}", sieve(base, f"tome(r={r})"))
        direct = next(each for each in chosen(head) if each["variant"] == "direct")
        beside = Baselines(base, some, float(direct["setting"]), mean=plan.mean, std=plan.std)
        for name, make in beside.makers.items():
            if any(each[:2] == (head, name) for each in done):
                continue
            try:
                baseline = make()
            except SieveError as error:
                print(f"{head}: {name} is left out: {error}", file=sys.stderr, flush=True)
                continue
            row(name, baseline.setting, baseline.model, baseline.call)


def chosen(head: str) -> list[dict[str, Any]]:
    """Of each variant with exits the row at which it is compared."""
    rows = [row for row in read("dtop.csv") if row["head"] == head]
    found = [compared_exit(rows, variant) for variant in TRAINED]
    return [row for row in found if row is not None]


def merged(base: nn.Module, image: Tensor, gmac: float) -> int:
    """Tokens merged a block, so that ToMe costs as much, or barely less."""
    return next(r for r in range(1, 200) if macs(sieve(base, f"tome(r={r})"), images=image) / 1e9 <= gmac)


@torch.no_grad()
def timed(out: Path, heads: list[str], seconds: float) -> None:
    """Dense time over the time with exits, and over the limit's, at batch 1 (mean over windows) and at batch 8.

    The limit reads each image's own counts without choosing; in a batch every image reads their mean, unpadded.
    """
    for head in heads:
        if not weights(head, out).is_file():
            continue
        base, plan = open_trained(weights(head, out))
        assert plan.mean is not None and plan.std is not None  # noqa: PT018
        pictures = opened("test")
        pictures.transform = AsTensor(plan.mean, plan.std)
        some, models = windows(pictures, 8), dict(variants(head, out))
        rows = []
        for each in chosen(head):
            fast = sieve(models[each["variant"]], recipe(float(each["setting"])))
            limits = [SlicingLimit.on(fast, image[None]) for image in some]
            ratios = []
            for image, limit in zip(some, limits, strict=True):
                ratios.append(race(base, partial(fast, image[None]), image[None], partial(limit, image[None]), seconds))
            counts = [fast.reads(image[None]) for image in some]
            blocks = zip(*counts, strict=True)
            own = [Reads(*(round(mean(values)) for values in zip(*block, strict=True))) for block in blocks]
            sliced = partial(SlicingLimit(fast, own), some)
            each["time_1"], each["limit_1"] = (mean(values) for values in zip(*ratios, strict=True))
            each["time_8"], each["limit_8"] = race(base, partial(fast, some), some, sliced, 4 * seconds)
            each["macs_timed"] = macs(base, images=some[:1]) / macs(fast, images=some)
            rows.append(each)
        update("dtop.csv", rows, "head", "variant", "setting")


def pictures(out: Path, heads: list[str]) -> None:
    """Ten windows of test pictures with their classes, dense and with @Retrain's exits, and where patches left."""
    for head in heads:
        base, plan = open_trained(weights(head, out))
        assert plan.mean is not None and plan.std is not None  # noqa: PT018
        shown = opened("test")
        shown.transform = AsTensor(plan.mean, plan.std)
        each = next(row for row in chosen(head) if row["variant"] == "retrain")
        fast = sieve(dict(variants(head, out))["retrain"], recipe(float(each["setting"])))
        told = explain(fast, base, windows(shown, 10), plan.mean, plan.std, plan.classes, height=176)
        sections = tuple(Section("", facts=one.facts, panels=(one.panels,)) for one in told)
        report = Report(f"{head}, {each['setting']}", sections=sections, notes=tuple(how_to_read(sections)))
        write_png(out / f"{head}.png", sheet(report))


def race(base: nn.Module, fast: Any, images: Tensor, limit: Any, seconds: float) -> tuple[float, float]:
    """Dense time over sieved time, and over the limit's."""
    contestants = {"dense": partial(base, images), "sieved": fast, "limit": limit}
    times = interleaved(contestants, seconds=seconds, min_rounds=5, max_rounds=100)
    return tuple(  # type: ignore[return-value]
        median(d / s for d, s in zip(times["dense"], times[name], strict=True)) for name in ("sieved", "limit")
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "evaluate", "speed", "plot", "pictures"))
    parser.add_argument("runs", nargs="*", help="which trainings, by default all; of evaluate and speed which heads")
    parser.add_argument("--out", type=Path, default=Path("dtop_runs"), help="folder of weights, logs and checkpoints")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each race")
    given = parser.parse_args()
    known = RUNS if given.what == "train" else HEADS
    if unknown := set(given.runs) - set(known):
        parser.error(f"there is no {min(unknown)}: one of {', '.join(known)}")
    names = given.runs or list(known)
    if given.what == "train":
        for name in names:
            learn(name, given.out, given.workers)
    elif given.what == "evaluate":
        evaluate(given.out, names)
    elif given.what == "speed":
        timed(given.out, names, given.seconds)
    elif given.what == "pictures":
        pictures(given.out, names)
    else:
        plot(LOST)
    return 0


if __name__ == "__main__":
    sys.exit(main())

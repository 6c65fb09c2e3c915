"""The training loop against the one before it: the same curves, and the same again when killed and resumed.

    python benchmarks/training_loop.py --before     # the curves of the loop of REVISION, from git's own copy of it
    python benchmarks/training_loop.py              # today's, beside them -> results/training_loop.csv

Short trainings with fixed seeds: the three bundled models on scenes, and test_convnext, taught by nano_vit, on crops of
the photographs that scikit-image and scikit-learn ship.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from results import ROOT, read, update
from tokensieve.data import photographs

REVISION = "1546007"
"""Of the loop before: all of it in one file, photographs whole in memory."""
FILE = "training_loop.csv"
SCENES, BATCH, EVERY, WARMUP, VALIDATION_SCENES = 256, 16, 4, 4, 50
CASES = ("nano_convnet", "nano_vit", "nano_convnext", "photographs")
KILLED_AT = 10
"""Batch at which the second training of a case is killed: two steps behind its checkpoint, inside an epoch."""
LOOPS = {"before": "before", "now": "now", "killed": "now, killed and resumed"}
FIGURES = ("loss", "image_loss", "train_top1", "validation_top1")
Report = Callable[[dict[str, Any]], None]


def crops(folder: Path) -> tuple[str, str]:
    """Crops of the photographs, a class folder for each photograph: 12 to learn from, 4 to look at."""
    rng = np.random.default_rng(0)
    for name, picture in photographs().items():
        for i in range(16):
            side = int(rng.uniform(0.3, 0.6) * min(picture.size))
            left, top = (int(rng.uniform(0, length - side)) for length in picture.size)
            place = folder / ("train" if i < 12 else "validation") / name
            place.mkdir(parents=True, exist_ok=True)
            picture.crop((left, top, left + side, top + side)).resize((80, 80)).save(place / f"{i}.png")
    return str(folder / "train"), str(folder / "validation")


def before(case: str, folder: Path, report: Report) -> Path:
    """A training by the loop of REVISION, whose sources must be the ones that are imported."""
    from tokensieve.train import loop, scenes
    from tokensieve.train.photographs import prepare

    if case != "photographs":
        plan = replace(
            scenes.PLANS[case], images=SCENES, batch=BATCH, every=EVERY, warmup=WARMUP, validation=VALIDATION_SCENES
        )
        return scenes.train(plan, folder, workers=1, report=report)
    sets = crops(folder / "crops")
    settings = {"epochs": 3, "size": 64, "args": {"drop_path_rate": 0.5}, "teacher": "nano_vit"}
    plan, task = prepare("test_convnext", *sets, folder, say=lambda _: None, **settings)
    plan = replace(plan, batch=BATCH, images=3 * 96, every=EVERY, warmup=WARMUP)
    return loop.train(plan, task, folder, workers=1, report=report)


def now(case: str, folder: Path, report: Report, killed_at: int | None = None) -> Path:
    """The same training by today's loop; killed while it takes a batch of that number."""
    from tokensieve.train import loop, nano
    from tokensieve.train.photographs import prepare

    task: Any
    if case != "photographs":
        config, task = nano.prepare(case, scenes=SCENES, validation_scenes=VALIDATION_SCENES)
        config = replace(config, batch_size=BATCH, validate_every=EVERY, warmup=WARMUP)
    else:
        sets = crops(folder / "crops")
        settings = {"epochs": 3, "size": 64, "args": {"drop_path_rate": 0.5}, "teacher": "nano_vit"}
        config, task = prepare("test_convnext", *sets, folder, say=lambda _: None, workers=1, **settings)
        config = replace(config, batch_size=BATCH, validate_every=EVERY, warmup=WARMUP)
    loss, taken = task.loss, iter(range(10**9))

    def dying(module: Any, batch: Any) -> Any:
        if next(taken) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(module, batch)

    task.loss = dying
    return loop.train(config, task, folder, report=report)


def curve(kind: str, case: str) -> list[dict[str, Any]]:
    """The rows of one training, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        sources = Path(folder) / "src"
        if kind == "before":
            archive = subprocess.run(
                ["git", "-C", str(ROOT), "archive", REVISION, "src"], check=True, capture_output=True
            ).stdout
            subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        else:
            sources = ROOT / "src"
        call = [sys.executable, __file__, "--one", kind, "--case", case, "--folder", f"{folder}/out"]
        environment = {**os.environ, "PYTHONPATH": str(sources)}
        if kind == "killed":
            killed = subprocess.run(call, env=environment, stdout=subprocess.DEVNULL)
            assert killed.returncode == -signal.SIGKILL, killed
            call[call.index("killed")] = "resumed"
        told = subprocess.run(call, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout
    return [json.loads(line) for line in told.splitlines()]


def one(kind: str, case: str, folder: Path) -> None:
    """Train, and print a line of JSON for each validation."""
    rows = list[dict[str, Any]]()
    if kind == "before":
        weights = before(case, folder, rows.append)
    else:
        weights = now(case, folder, rows.append, KILLED_AT if kind == "killed" else None)
    if kind == "resumed":
        # The rows of both parts, from the checkpoint: what was reported before the end is not said again.
        rows = torch.load(next(folder.glob("*.checkpoint.pt")), weights_only=True)["rows"]
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    for row in rows:
        print(json.dumps({"step": row["step"], **{name: row[name] for name in FIGURES}, "weights": digest}))


def compared(row: dict[str, Any], old: dict[str, str]) -> dict[str, Any]:
    """Beside the loop before: the largest difference of a figure, as a share of it; whether weights are the same."""
    shares = [abs(row[name] - float(old[name])) / max(1e-12, abs(float(old[name]))) for name in FIGURES]
    return {"apart": f"{max(shares):.3g}", "same_weights": row["weights"] == old["weights"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", action="store_true")
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        one(options.one, options.case, options.folder)
        return 0
    rows = list[dict[str, Any]]()
    known = {(row["case"], row["step"]): row for row in read(FILE) if row["loop"] == "before"}
    for case in CASES if options.case is None else (options.case,):
        for kind in ("before",) if options.before else ("now", "killed"):
            for row in curve(kind, case):
                beside = {} if options.before else compared(row, known[case, str(row["step"])])
                row |= {name: f"{row[name]:.9g}" for name in FIGURES}
                revision = REVISION if kind == "before" else ""
                rows.append({"case": case, "loop": LOOPS[kind], "revision": revision, **row, **beside})
                print(*rows[-1].values())
    update(FILE, rows, "case", "loop", "step")
    return 0


if __name__ == "__main__":
    sys.exit(main())

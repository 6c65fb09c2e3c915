"""One story, lived through: a folder of photographs -> tune -> bench -> eval -> show -> export -> run
-> results/story.csv, and docs/pictures/story.png, which docs/story.md shows.

    python benchmarks/story.py                                   # some 15 minutes on two cores
    python benchmarks/story.py --trials 3 --limit 12 --seconds 0 --dry    # to see that it works; nothing is kept

The commands run as they stand on the page, in a folder of their own. The model is a DeiT-Tiny with its real weights,
the photographs are Imagenette's, the ones it is judged on are others, of ImageNet's validation set.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import typer

from results import ROOT, SHARED, write
from tokensieve.cli import app

PICTURE = ROOT / "docs" / "pictures" / "story.png"
MODEL = "--model deit_tiny_patch16_224 --weights deit_tiny.safetensors"
FAST = f"{MODEL} --recipe tuned/best.json"
STEPS = {
    "tune": f"tokensieve tune {MODEL} --data photographs/ --macs 1.7 --proposal none --out tuned",
    "bench": f"tokensieve bench {FAST} --batch 1,8,32",
    "eval": f"tokensieve eval {FAST} --data others/ --classes classes.json",
    "show": f"tokensieve show photographs/ {FAST} --limit 6",
    "export": f"tokensieve export {FAST} --out fast.onnx",
    "run": f"tokensieve run photographs/ {FAST} --out answers",
}
"""As they stand on the page."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, help="of tune; default its own")
    parser.add_argument("--limit", type=int, help="photographs of tune, eval and run; default theirs")
    parser.add_argument("--seconds", type=float, help="of bench, for each batch; default its own")
    parser.add_argument("--dry", action="store_true", help="keep neither figures nor picture")
    options = parser.parse_args()
    weights = SHARED / "weights" / "deit_tiny_patch16_224.safetensors"
    if not weights.is_file():
        print(f"skipped: weights are expected in {weights.parent}.", file=sys.stderr)
        return 0
    there = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        photographs = furnish(place, weights)
        for step, command in STEPS.items():
            if step not in there:
                print(f"this version has no `tokensieve {step}`: its step is left out", file=sys.stderr)
                continue
            rows.append(lived(step, command, place, shortened(step, options)))
            print(rows[-1], flush=True)
            if rows[-1]["exit"]:
                return 1
        rows[0]["photographs"] = photographs
        if not options.dry:
            shutil.copy(place / "tuned" / "front.png", PICTURE)
            write("story.csv", rows)
    return 0


def furnish(place: Path, weights: Path) -> int:
    """What a user has: weights, a folder of photographs, others to judge by. Returns how many photographs."""
    with tarfile.open(SHARED / "data" / "imagenette_val.tar") as tar:
        tar.extractall(place, filter="data")
    (place / "val").rename(place / "photographs")
    (place / "others").symlink_to(SHARED / "data" / "imagenet_val_a")
    (place / "classes.json").symlink_to(SHARED / "data" / "imagenet_classes.json")
    (place / "deit_tiny.safetensors").symlink_to(weights)
    return sum(1 for path in (place / "photographs").rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))


def shortened(step: str, options: argparse.Namespace) -> list[str]:
    """What a trial run is told beside."""
    words = []
    if step == "tune" and options.trials is not None:
        words += ["--trials", str(options.trials)]
    if step in ("tune", "eval", "run") and options.limit is not None:
        words += ["--limit", str(options.limit)]
    if step == "bench" and options.seconds is not None:
        words += ["--seconds", str(options.seconds)]
    return words


def lived(step: str, command: str, place: Path, added: list[str]) -> dict[str, Any]:
    """Run one command of the story; its time, and the figures that the page tells."""
    words = [sys.executable, "-m", "tokensieve", *shlex.split(command)[1:], *added, "--json"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    start = perf_counter()
    done = subprocess.run(words, cwd=place, env=environment, stdout=subprocess.PIPE, text=True)
    seconds = perf_counter() - start
    record = json.loads(done.stdout) if done.returncode == 0 else {}
    told = FIGURES[step](record, place) if record else {}
    return {"step": step, "told": command, "seconds": seconds, "exit": done.returncode, "figures": json.dumps(told)}


def tuned(record: dict[str, Any], place: Path) -> dict[str, Any]:
    return {"recipe": record["recipe"], "macs_ratio": record["macs"]["ratio"], "images": record["images"]}


def benched(record: dict[str, Any], place: Path) -> dict[str, Any]:
    names = ("batch", "ratio", "low", "high", "limit")
    return {"runs": [{name: each[name] for name in names} for each in record["runs"]]}


def evaluated(record: dict[str, Any], place: Path) -> dict[str, Any]:
    names = ("images", "agreement", "agreement_low", "agreement_high", "kl", "dense", "sieved")
    return {name: record[name] for name in names}


def shown(record: dict[str, Any], place: Path) -> dict[str, Any]:
    return {"pictures": len(record["pictures"]), "out": record["out"]}


def exported(record: dict[str, Any], place: Path) -> dict[str, Any]:
    return {"differences": record["differences"], "mb": (place / "fast.onnx").stat().st_size / 1e6}


def ran(record: dict[str, Any], place: Path) -> dict[str, Any]:
    return {name: record[name] for name in ("rows", "errors", "per_second", "waited")}


FIGURES = {"tune": tuned, "bench": benched, "eval": evaluated, "show": shown, "export": exported, "run": ran}


if __name__ == "__main__":
    sys.exit(main())

"""The same figures before and after a rebuild: bench, eval and tune, old and new sources -> results/same_figures.csv.

    python benchmarks/same_figures.py --before REVISION --folder FOLDER

DeiT-Tiny with its real weights, seeded; some 20 minutes of one core. What the commands print stays in FOLDER, and a
command that has been run there is not run again. Times differ and are left out; everything else that both print under
the same name is compared, numbers to nine digits.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from results import ROOT, SHARED, write

WEIGHTS, DATA = SHARED / "weights", SHARED / "data"
MODEL = f"--model deit_tiny_patch16_224 --weights {WEIGHTS / 'deit_tiny_patch16_224.safetensors'}"
GUARDED = (
    "guarded(r=(0, 9, 10, 27, 41, 23, 14, 8, 9, 0, 0, 0), drop=(0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 2, 0), "
    "source_guard=0.1542, destination_guard=0.0459) + readout()"
)
PHOTOGRAPHS = f"--data {DATA / 'imagenet_val_a'} --classes {DATA / 'imagenet_classes.json'}"
COMMANDS: dict[str, list[str]] = {
    "bench": [*f"bench {MODEL} --batch 1 --seconds 0 --recipe".split(), "tome(r=13)"],
    "eval guarded": [*f"eval {MODEL} {PHOTOGRAPHS} --recipe".split(), GUARDED],
    "eval papr": [
        *f"eval {MODEL} {PHOTOGRAPHS} --proposal-weights {WEIGHTS / 'squeezenet1_1.safetensors'} --recipe".split(),
        "papr(keep=0.5, proposal=squeezenet1_1) + tome(r=4)",
    ],
    "tune": f"tune {MODEL} --limit 60 --trials 12 --macs 1.7 --seed 0 "
    "--family scheduled-guarded --family tome --proposal none --no-correct".split(),
}  # fmt: skip
FORMAT = "tokensieve_front"
"""The number of a file's format, which may rise."""
TIMES = (
    FORMAT,
    "seconds",
    "speed",
    "per_second",
    "low",
    "high",
    "limit",
    "ratio",
    "rounds",
    "verdict",
    "summary",
    "dominated",
)
"""Parts of names of times, of sentences about these, and of what is no figure."""
INTERVALS = ("agreement", "kl", "dense_", "sieved_")
"""Beginnings of names of figures whose `low` and `high` are no times."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="revision of the old sources")
    parser.add_argument("--folder", type=Path, required=True, help="for the old sources and what commands print")
    options = parser.parse_args()
    old = options.folder.resolve() / "sources"
    if not old.is_dir():
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(old), options.before], check=True)
    rows = []
    for name, words in COMMANDS.items():
        before, after = (
            dict(flat(printed(options.folder / side, name, words, source / "src")))
            for side, source in (("before", old), ("after", ROOT))
        )
        shared = sorted(before.keys() & after.keys())
        differing = [path for path in shared if not same(before[path], after[path])]
        rows.append(
            {"compared": name, "figures": len(shared), "same": len(shared) - len(differing),
             "differing": " ".join(differing), "before": options.before}
        )  # fmt: skip
        print(rows[-1], flush=True)
    write("same_figures.csv", rows)
    return int(any(row["differing"] for row in rows))


def printed(folder: Path, name: str, words: list[str], source: Path) -> Any:
    """The JSON of a command under these sources."""
    out = folder.resolve() / name
    file = out / "front.json" if name == "tune" else out / "printed.json"
    if not file.is_file():
        out.mkdir(parents=True, exist_ok=True)
        words = (
            [*words, "--data", str(photographs(folder)), "--out", str(out)] if name == "tune" else [*words, "--json"]
        )
        environment = {**os.environ, "PYTHONPATH": str(source)}
        script = "import sys; from tokensieve.cli import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", script, *words], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        if name != "tune":
            file.write_text(done.stdout)
    return json.loads(file.read_text())


def photographs(folder: Path) -> Path:
    """Those of imagenette_val as a folder, beside what the commands print."""
    place = folder.resolve().parent / "photographs"
    if not place.is_dir():
        with tarfile.open(DATA / "imagenette_val.tar") as tar:
            tar.extractall(place, filter="data")
    return place


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every figure by its path, without times; points of a front by what they are, since their order is no figure."""
    if isinstance(value, dict):
        for key, part in value.items():
            if not any(word in key for word in TIMES) or key.startswith(("agreement", "kl", "dense_", "sieved_")):
                yield from flat(part, f"{path}/{key}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            of_front = isinstance(part, dict) and "family" in part
            yield from flat(part, f"{path}/{part['family']} {part['budget']}" if of_front else f"{path}/{index}")
    else:
        yield path, value


def same(before: Any, after: Any) -> bool:
    if isinstance(before, float) and isinstance(after, float):
        return math.isclose(before, after, rel_tol=1e-9)
    return bool(before == after)


if __name__ == "__main__":
    sys.exit(main())

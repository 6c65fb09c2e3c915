"""Rows of results/*.csv: each with the command, the machine, the versions and the revision that made it."""

from __future__ import annotations

import csv
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import timm
import torch

from tokensieve.measure import Speed

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def provenance() -> dict[str, str]:
    """Columns that every row carries."""
    words = ["FOLDER" if Path(word).is_absolute() else word for word in sys.argv[1:]]  # nobody else has that one
    arguments = shlex.join(["python", str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *words])
    return {
        "command": arguments,
        "machine": f"{processor()}, {torch.get_num_threads()} threads",
        "versions": f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}",
        "date": date.today().isoformat(),
        "revision": revision(ROOT),
    }


def revision(folder: Path) -> str:
    """The git commit of the source, short, with "+changes" where a file differs from it; empty outside of git.

    The figures themselves do not count: those that were just written differ.
    """

    def git(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "--porcelain", ":!results") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def processor() -> str:
    """Name of the processor, with the extensions that matrix products in bf16 depend on."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split("\t: ", 1) for line in info.replace("\t\t", "\t").splitlines() if "\t: " in line)
    flags = fields.get("flags", "").split()
    units = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return f"{fields.get('model name', platform.machine())} ({' '.join(units)})"


def read(name: str) -> list[dict[str, Any]]:
    """The rows of results/`name`; none where there is no such file."""
    path = ROOT / "results" / name
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def speed_columns(speed: Speed) -> dict[str, float | None]:
    """The columns of a measured speed, as times the dense model's."""
    return {
        "limit": speed.limit,
        "ratio": speed.ratio,
        "ratio_low": speed.low,
        "ratio_high": speed.high,
        "of_limit": speed.of_limit,
    }


def update(name: str, rows: Iterable[dict[str, Any]], *key: str) -> Path:
    """`write`, but rows of the file that these, told apart by the columns `key`, do not replace stay as they are."""
    new = {tuple(str(row[column]) for column in key): row for row in rows}
    kept = [new.pop(tuple(row[column] for column in key), row) for row in read(name)]
    return write(name, [*kept, *new.values()])


def write(name: str, rows: Iterable[dict[str, Any]]) -> Path:
    """Write results/`name`, floats rounded to six significant digits; columns in order of first appearance.

    A row read from such a file keeps the provenance that it has, and says nothing of what it lacks.
    """
    here = provenance()
    rows = [
        {**row, **{key: row.get(key) or ("" if row.get("date") else told) for key, told in here.items()}}
        for row in rows
    ]
    columns: dict[str, None] = {}
    for row in rows:
        columns.update(dict.fromkeys(row))
    path = ROOT / "results" / name
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
    print(f"wrote {path.relative_to(ROOT)}: {len(rows)} rows", file=sys.stderr)
    return path

"""The wheel in clean environments, alone and with each of its extras alone: is all imported, does a command of each
work, how large is it, how long does it take? -> results/extras.csv.

    python benchmarks/extras.py                      # all of them; torch comes down twice
    python benchmarks/extras.py --only none,export   # some; the others' rows stay

The first environment, without extras, is made by pip with an empty cache, and timed. Those of the extras are made by
uv, hard-linked from one cache, so that they take little more room than one does.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from time import perf_counter
from typing import Any

from fresh_clone import PICTURES, last_line, run
from results import ROOT, update

NANO = "--model nano_vit --recipe tome(r=8)"
COMMANDS = {
    "none": "demo --scenes 8 --seconds 1",
    "export": f"export {NANO} --out model.onnx",
    "hf": "bench --model videomae_small --recipe tome(r=60) --batch 1 --seconds 0",
    "jobs": f"run photographs {NANO} --out job",
    "lora": f"heal {NANO} --data scenes --limit 40 --epochs 1 --trainable lora --out healed",
    "ray": f"run photographs {NANO} --out job --engine ray",
    "train": "train nano --only nano_convnet --scenes 64",
    "tune": "tune --model nano_vit --data scenes --limit 24 --macs 1.5 --trials 3 --family tome --proposal none",
    "video": "show moving-scenes --model swin3d_t --no-pretrained --recipe random(keep=0.4) --limit 1",
    "app": "app --no-browser --check",
}
"""What is tried with each extra, in a folder with photographs."""
KEPT = ("PIP_", "UV_", "LANG", "SSL", "OMP_")
"""Of the environment, what the clean ones see; index, certificates, and the number of threads."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="these extras, joined by commas; none is the wheel alone")
    parser.add_argument("--folder", type=Path, help="where the environments are made; default a temporary folder")
    options = parser.parse_args()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = ["none", *(name for name in extras if name not in ("dev", "docs"))]  # those are for the project itself
    if unknown := [name for name in names if name not in COMMANDS]:
        raise SystemExit(f"No command is written down that tries the extra {unknown[0]}: add it to COMMANDS.")
    wanted = options.only.split(",") if options.only else names
    if unknown := [name for name in wanted if name not in names]:
        raise SystemExit(f"There is no extra {unknown[0]}: there are {', '.join(names)}.")
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        place = Path(folder)
        uv, wheel = tools(place)
        for name in wanted:
            rows.append(tried(name, place, uv, wheel, extras.get(name, [])))
            print(rows[-1], flush=True)
            update("extras.csv", rows[-1:], "extra")  # at once: making the others takes long, and may fail
    return int(any(row["exit"] or row["import_exit"] for row in rows))


def tools(place: Path) -> tuple[Path, Path]:
    """uv, in an environment of its own, and the wheel that it builds by way of the sdist."""
    subprocess.run([sys.executable, "-m", "venv", str(place / "tools")], check=True)
    subprocess.run([place / "tools/bin/python", "-m", "pip", "install", "--quiet", "uv"], check=True)
    uv = place / "tools/bin/uv"
    subprocess.run([uv, "build", "--quiet", "--out-dir", str(place / "dist"), str(ROOT)], check=True)
    (wheel,) = (place / "dist").glob("*.whl")
    return uv, wheel


def tried(name: str, place: Path, uv: Path, wheel: Path, needs: list[str]) -> dict[str, Any]:
    """The row of one extra: its environment made, its packages imported, its command run."""
    here = place / name
    here.mkdir()
    environment = {key: os.environ[key] for key in os.environ if key.startswith(KEPT)}
    environment |= {"HOME": str(here), "PATH": os.environ["PATH"], "UV_CACHE_DIR": str(place / "cache")}
    python = here / "venv/bin/python"
    settings: dict[str, Any] = {"cwd": here, "env": environment}

    start = perf_counter()
    if name == "none":
        subprocess.run([sys.executable, "-m", "venv", "venv"], check=True, **settings)
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-cache-dir", str(wheel)]
    else:
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, "venv"], check=True, **settings)
        install = [str(uv), "pip", "install", "--quiet", "--python", str(python), "--link-mode", "hardlink"]
        install.append(f"{wheel}[{name}]")
    subprocess.run(install, check=True, **settings)
    seconds = perf_counter() - start

    modules = ["tokensieve", *(module_of(need) for need in needs)]
    code, _, printed = run([str(python), "-c", f"import {', '.join(modules)}"], **settings)
    if code:
        print(printed)
    subprocess.run([python, "-c", PICTURES], check=True, **settings)
    words = COMMANDS[name].split()
    exit_code, command_seconds, said = run([str(python.parent / "tokensieve"), *words], **settings)
    if exit_code:
        print(said[-3000:])
    return {
        "extra": name,
        "wheel_mb": wheel.stat().st_size / 1e6,
        "environment_mb": size(here / "venv"),
        "packages": len(list((here / "venv").rglob("*.dist-info"))),
        "install_seconds": seconds,
        "installer": "pip, nothing cached" if name == "none" else "uv, from a cache",
        "imported": " ".join(modules),
        "import_exit": code,
        "tried": f"tokensieve {COMMANDS[name]}",
        "exit": exit_code,
        "seconds": command_seconds,
        "last_line": last_line(said),
    }


def module_of(need: str) -> str:
    """What is imported of a distribution that an extra names; those named so far are called alike."""
    return need.partition(">")[0].partition("[")[0].strip().replace("-", "_")


def size(folder: Path) -> float:
    """Megabytes of the files below a folder, each counted once."""
    files = {path.stat().st_ino: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return sum(files.values()) / 1e6


if __name__ == "__main__":
    sys.exit(main())

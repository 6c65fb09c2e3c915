"""The wheel alone, elsewhere, and with each of its extras alone: does `tokensieve demo` work? -> results/wheel.csv.

python benchmarks/wheel.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from time import perf_counter

from results import ROOT, write


def main() -> int:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rows = []
    kept = {key: os.environ[key] for key in os.environ if key.startswith(("PIP_", "LANG", "SSL"))}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(ROOT)], check=True
        )
        (wheel,) = place.glob("tokensieve-*.whl")
        for extra in ("", *(name for name in extras if name != "dev")):  # which is for working on the project
            here = place / (extra or "alone")
            here.mkdir()
            environment = {**kept, "HOME": folder, "PATH": os.environ["PATH"]}
            start = perf_counter()
            subprocess.run([sys.executable, "-m", "venv", str(here / "venv")], check=True)
            wanted = f"{wheel}[{extra}]" if extra else str(wheel)
            subprocess.run(
                [here / "venv/bin/python", "-m", "pip", "install", "--quiet", wanted], env=environment, check=True
            )
            installed = perf_counter()
            run = subprocess.run(
                [here / "venv/bin/tokensieve", "demo"], cwd=here, env=environment, capture_output=True, text=True
            )
            print(run.stdout, run.stderr, flush=True)
            written = sorted(path.name for path in here.iterdir() if path.name.startswith("tokensieve-"))
            rows.append(
                {
                    "extra": extra or "none", "wheel_mb": wheel.stat().st_size / 1e6,
                    "install_seconds": installed - start, "demo_seconds": perf_counter() - installed,
                    "exit": run.returncode, "written": " ".join(written),
                }
            )  # fmt: skip
            subprocess.run(["rm", "-rf", str(here / "venv")], check=True)
    write("wheel.csv", rows)
    return 1 if any(row["exit"] or len(row["written"].split()) != 2 for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

"""As a stranger: clone into an empty folder with an empty home, `make demo`, `make test` -> results/fresh_clone.csv.

python benchmarks/fresh_clone.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from results import ROOT, SHARED, write


def main() -> int:
    rows, failed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        home, clone = Path(folder) / "home", Path(folder) / "project" / "tokensieve"
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        if SHARED.is_dir():
            (clone.parent / "shared").symlink_to(SHARED)
        environment = {key: os.environ[key] for key in os.environ if key.startswith(("PIP_", "LANG", "SSL"))}
        environment |= {"HOME": str(home), "PATH": os.environ["PATH"]}
        for target in ("demo", "test"):
            start = perf_counter()
            run = subprocess.run(
                ["make", target],
                cwd=clone,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            seconds = perf_counter() - start
            print(run.stdout[-4000:])
            last = run.stdout.strip().splitlines()[-1] if run.stdout.strip() else ""
            rows.append({"target": target, "exit": run.returncode, "seconds": seconds, "last_line": last})
            failed += run.returncode != 0
    write("fresh_clone.csv", rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

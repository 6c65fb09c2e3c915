"""As a stranger: clone into an empty folder with an empty home, make demo, make test, then every command of the README.

    python benchmarks/fresh_clone.py               # -> results/fresh_clone.csv and results/readme_commands.csv
    python benchmarks/fresh_clone.py --readme      # the README's commands alone

The README's commands run as they stand but for what would take a hub or hours: `shortened` has them run on the bundled
models, with small limits. Photographs are those of scikit-image and scikit-learn.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from results import ROOT, SHARED, write

SMALL = {
    "demo": "--scenes 8 --seconds 1",
    "show": "--model nano_vit --limit 2",
    "bench": "--model nano_vit --seconds 1 --batch 1,2",
    "eval": "--model nano_vit",
    "tune": "--model nano_vit --trials 3 --family scheduled-guarded --proposal none",
    "correct": "--model nano_vit --views 2",
    "slim": "--model nano_vit --granularity 60",
    "export": "--model nano_vit",
    "run": "--model nano_vit",
    "train": "--threads 2",
}
"""What each command is told beside; the last of two equal options counts."""
REPLACED = (
    (r"papr\(keep=([\d.]+)\)", r"papr(keep=\1, proposal=nano_convnet)"),
    (r"--model deit_\w+", "--model nano_vit"),
    (r'"vit_\*"', '"test_vit*"'),
    (r"train nano$", "train nano --only nano_convnet --scenes 64"),
    (r"(train nano_convnext .*)", r"\1 --epochs 1 --size 64"),
)


def readme_commands() -> list[str]:
    """The `tokensieve` lines of the README's shell blocks, without comments, one command each."""
    blocks = [part.split("```")[0] for part in (ROOT / "README.md").read_text().split("```bash\n")[1:]]
    lines = [re.sub(r"\s+#.*", "", line) for line in "\n".join(blocks).replace("\\\n", " ").splitlines()]
    return [part.strip() for line in lines for part in line.split(";") if part.strip().startswith("tokensieve ")]


def shortened(command: str) -> str:
    """The same command as it runs without a hub and within a minute or two."""
    short = command
    for pattern, replacement in REPLACED:
        short = re.sub(pattern, replacement, short)
    words = short.split()
    added = SMALL.get(words[1], "")
    if "--model nano_convnext" in short or words[1] == "demo":
        added = re.sub(r"--model \S+ ?", "", added)
    if "--waterfall" in short:
        added = added.replace("--batch 1,2", "--batch 1")
    return f"{short} {added}".strip()


PICTURES = """
from pathlib import Path
from tokensieve.data import photographs

for index, picture in enumerate(photographs().values()):
    half = picture.width // 2, picture.height // 2
    for number, (x, y) in enumerate(((0, 0), (half[0], 0), (0, half[1]), half)):
        part = picture.crop((x, y, x + half[0], y + half[1]))
        for place in ("photographs", f"{('train', 'val')[number % 2]}/class{index % 2}"):
            Path(place).mkdir(parents=True, exist_ok=True)
            part.save(f"{place}/{index}-{number}.jpg")
"""


def run(command: list[str] | str, **settings: Any) -> tuple[int, float, str]:
    """Exit status, seconds, and everything that was printed."""
    start = perf_counter()
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, shell=isinstance(command, str), **settings
    )
    return done.returncode, perf_counter() - start, done.stdout


def last_line(printed: str) -> str:
    return (printed.strip().splitlines() or [""])[-1]


def run_readme(clone: Path, environment: dict[str, str], folder: Path) -> list[dict[str, Any]]:
    """Every command of the README in an empty folder with photographs, by the clone's own installation."""
    folder.mkdir()
    binaries = clone / ".venv" / "bin"
    settings = {"cwd": folder, "env": environment | {"PATH": f"{binaries}:{environment['PATH']}"}}
    code, _, printed = run([str(binaries / "python"), "-c", PICTURES], **settings)
    assert code == 0, printed
    rows = []
    for command in readme_commands():
        told = shortened(command)
        code, seconds, printed = run(told, **settings)
        rows.append({"readme": command, "run": told, "exit": code, "seconds": seconds, "last_line": last_line(printed)})
        print(f"{code}  {seconds:5.1f} s  {told}", flush=True)
        if code:
            print(printed[-2000:])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--readme", action="store_true", help="the README's commands alone")
    only = parser.parse_args().readme
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        home, clone = Path(folder) / "home", Path(folder) / "project" / "tokensieve"
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        if SHARED.is_dir():
            (clone.parent / "shared").symlink_to(SHARED)
        environment = {key: os.environ[key] for key in os.environ if key.startswith(("PIP_", "LANG", "SSL"))}
        environment |= {"HOME": str(home), "PATH": os.environ["PATH"]}
        for target in [".venv/installed-dev"] if only else ["demo", "test"]:
            code, seconds, printed = run(["make", target], cwd=clone, env=environment)
            print(printed[-4000:])
            rows.append({"target": target, "exit": code, "seconds": seconds, "last_line": last_line(printed)})
        told = run_readme(clone, environment, Path(folder) / "empty")
    if not only:
        write("fresh_clone.csv", rows)
    write("readme_commands.csv", told)
    return int(any(row["exit"] for row in rows + told))


if __name__ == "__main__":
    sys.exit(main())

"""The lowest versions that pyproject.toml admits, as constraints for pip: a line `name==version` each.

    python tests/lowest.py > constraints.txt

Needs nothing but Python: it runs before anything is installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def lowest(pyproject: Path = PYPROJECT) -> list[str]:
    """The floor of every dependency, those of the extras too.

    Raises:
        SystemExit: a dependency without a floor, of which nothing is known to work.
    """
    project = tomllib.loads(pyproject.read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    pins = []
    for requirement in wanted:
        if requirement.startswith(f"{project['name']}["):  # an extra made of other extras
            continue
        parts = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement)
        if parts is None:
            sys.exit(f'{pyproject.name}: "{requirement}" has no lowest version: write it as name>=version.')
        pins.append(f"{parts[1]}=={parts[2]}")
    return pins


if __name__ == "__main__":
    print("\n".join(lowest()))

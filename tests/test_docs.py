"""README and docs: figures are those of results/, blocks of Python run, commands and links exist."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from tests import fresh
from tokensieve.cli import app

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return [part.split("```")[0] for part in page.read_text().split(f"```{language}\n")[1:]]


def test_the_pages_figures_come_from_results() -> None:
    check = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "readme.py"), "--check"], cwd=ROOT)
    assert check.returncode == 0, "run: python benchmarks/readme.py"


def test_macs_are_the_same_under_every_version_that_was_tried() -> None:
    with (ROOT / "results" / "versions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["host"], row["recipe"], row["macs"]) for row in rows}
    assert len({row["torch"] for row in rows}) >= 3
    assert len(found) == len({row["host"] for row in rows}) >= 10


@pytest.mark.shared
def test_a_row_of_the_results_comes_from_the_command_under_it(shared: Path) -> None:
    """With the command's own defaults."""
    (command,) = [words for words in told_commands(ROOT / "docs" / "results.md") if words[1] == "eval"]
    local = [word.replace("../shared", str(shared)) for word in command[1:]]
    told = run(f"import sys\nfrom tokensieve.cli import main\nsys.argv[1:] = {[*local, '--json']}\nsys.exit(main())")
    found = json.loads(told)
    recipe = command[command.index("--recipe") + 1]
    with (ROOT / "results" / "accuracy.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["table"], row["recipe"]) == ("tome", recipe)]
    assert found["sieved"]["top1"] == pytest.approx(float(rows[0]["top1"]), abs=0.41)  # one photograph
    assert found["agreement"] == pytest.approx(float(rows[0]["agreement"]), abs=0.41)


BRIEFLY = """
from tokensieve.measure.speed import interleaved
from tokensieve.search import timing

timing.ATTEMPTS, timing.interleaved = 1, lambda calls, **_: interleaved(calls, seconds=0, min_rounds=2, max_rounds=2)
"""
# Beside other tests the machine is busy, however often and long `tune` times its recipes.


def run(code: str) -> str:
    code = (BRIEFLY if "tune" in code else "") + code
    done = fresh.run(code)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", DOCS, ids=named)
def test_every_block_of_python_in_docs_runs(page: Path) -> None:
    run("\n".join(blocks(page, "python")))


def test_the_readmes_lines_of_python_run() -> None:
    """With a small model in the place of the one that would be downloaded."""
    (code,) = blocks(ROOT / "README.md", "python")
    assert code.count("pretrained=True") == 1
    code = code.replace('"vit_base_patch16_224.augreg_in21k_ft_in1k", pretrained=True', '"vit_tiny_patch16_224"')
    code = code.replace("speed(fast, model, images)", "speed(fast, model, images, seconds=0, min_rounds=2)")
    code = code.replace("fast = ", "import torch\nimages = torch.randn(2, 3, 224, 224)\nloader = [images]\nfast = ")
    printed = run(code)
    assert "Speed(ratio=" in printed
    assert "Fidelity(agreement=" in printed


@pytest.mark.parametrize("notebook", sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")), ids=named)
def test_notebooks_run_and_hold_what_they_gave(notebook: Path) -> None:
    """All their code in one process, as a kernel would, on fewer scenes; and no cell was left without having run."""
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    code = "\n".join("".join(cell["source"]) for cell in cells).replace("std), 64)", "std), 8)")
    run(f"import matplotlib; matplotlib.use('agg')\n{code}")
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])


def told_commands(page: Path) -> list[list[str]]:
    """The `tokensieve` command lines of a page's shell blocks, in words."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in split_at_semicolons(shlex.split(line, comments=True))]
    return [part for part in parts if part[:1] == ["tokensieve"] and len(part) > 1]


def split_at_semicolons(words: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        parts[-1].append(word.removesuffix(";"))
        if word.endswith(";"):
            parts.append([])
    return parts


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_and_their_options_exist(page: Path) -> None:
    root = typer.main.get_command(app)
    for words in told_commands(page):
        if words[1].startswith("--"):
            assert words[1] in {name for option in root.params for name in option.opts}, words
            continue
        command = root.commands.get(words[1])  # type: ignore[attr-defined]
        assert command is not None, words
        command = getattr(command, "kinds", {}).get(words[2] if len(words) > 2 else "", command)
        options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
        wrong = [word for word in words if word.startswith("--") and word.partition("=")[0] not in options]
        assert not wrong, f"{' '.join(words)}: no option {', '.join(wrong)}"


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    text = re.sub(r"`[^`\n]*`", "", text)  # a call behind an index looks like a link
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        place, _, anchor = target.partition("#")
        found = (page.parent / place).resolve() if place else page
        assert found.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(found), f"{page.name}: {target} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_tables_have_one_width(page: Path) -> None:
    """A row of another width, or an empty line within a table, ends it where it is shown."""
    lines = re.sub(r"```.*?```", "", page.read_text(), flags=re.S).splitlines()
    width = 0
    for number, line in enumerate(lines):
        if not line.startswith("|"):
            width = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", line))) - 1
        if width == 0:
            following = lines[number + 1] if number + 1 < len(lines) else ""
            assert re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", following), f"{page.name}: a table without a head: {line}"
        assert width in (0, cells), f"{page.name}: {line}"
        width = cells

"""README and docs: figures are those of results/, and every block of Python runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_readmes_figures_come_from_results() -> None:
    check = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "readme.py"), "--check"], cwd=ROOT)
    assert check.returncode == 0, "run: python benchmarks/readme.py"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", [page.name for page in sorted((ROOT / "docs").glob("*.md"))])
def test_every_block_of_python_in_docs_runs(page: str) -> None:
    parts = (ROOT / "docs" / page).read_text().split("```python\n")[1:]
    code = "\n".join(part.split("```")[0] for part in parts)
    run(code)


def test_the_readmes_lines_of_python_run() -> None:
    """With a small model in the place of the one that would be downloaded."""
    text = (ROOT / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert code.count("pretrained=True") == 1
    code = code.replace('"vit_base_patch16_224.augreg_in21k_ft_in1k", pretrained=True', '"vit_tiny_patch16_224"')
    code = code.replace('"papr(keep=0.8) + tome(r=8)")', '"papr(keep=0.8) + tome(r=8)", pretrained=False)')
    code = code.replace("speed(fast, model, images)", "speed(fast, model, images, seconds=0, min_rounds=2)")
    code = code.replace("fast = ", "import torch\nimages = torch.randn(2, 3, 224, 224)\nloader = [images]\nfast = ")
    printed = run(code)
    assert "Speed(ratio=" in printed
    assert "Fidelity(agreement=" in printed

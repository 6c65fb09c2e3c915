"""A tiny model with weights of its own, folders of small pictures, and what a job wrote of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tokensieve import ModelSpec

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """tiny(recipe): a spec of timm's test_vit under a recipe, always with the same random weights."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        save_file(timm.create_model("test_vit").state_dict(), path)

    def spec(recipe: str = "tome(r=8)", **settings) -> ModelSpec:
        return ModelSpec("test_vit", recipe, path, **{"size": 64, **settings})

    return spec


@pytest.fixture
def photos(tmp_path):
    """photos(count, broken=()): a folder of two folders of pictures; those of these numbers are text."""

    def make(count: int = 10, broken: tuple[int, ...] = (), name: str = "photos") -> Path:
        root = tmp_path / name
        for number in range(count):
            path = root / ("cat", "dog")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if number in broken:
                path.write_text("not a picture")
            else:
                noise = np.random.default_rng(number).integers(0, 255, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(noise).save(path)
        return root

    return make


def table(out: Path) -> list[dict]:
    """All rows of a job, in the order of its files."""
    files = sorted((out / "rows").iterdir())
    assert all(file.suffix in (".parquet", ".jsonl") for file in files), files
    if files and files[0].suffix == ".jsonl":
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [row for file in files for row in parquet.read_table(file).to_pylist()]


def errors(out: Path) -> dict[str, str]:
    """id -> why it has no row."""
    return {row["id"]: row["error"] for row in parquet.read_table(out / "errors.parquet").to_pylist()}

"""Shared by all tests: threads on purpose, and the folder of real weights and photographs where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    torch.set_num_threads(1)  # the models here are tiny; a second thread only waits


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights and photographs; tests that use it are marked `shared`."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED.name}/ beside the project: real weights and photographs are not at hand")
    return SHARED

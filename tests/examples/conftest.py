"""The modules of examples/serve, as files that stand beside each other."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SERVE = Path(__file__).resolve().parents[2] / "examples" / "serve"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Called with a module's name; the modules are gone again afterwards."""
    monkeypatch.syspath_prepend(SERVE)
    yield importlib.import_module
    for name in ("batcher", "service", "load"):
        sys.modules.pop(name, None)

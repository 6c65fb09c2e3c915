"""Shared by all tests: threads on purpose, and the folder of real weights and photographs where there is one."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from tokensieve.about.machine import cores
from tokensieve.cli import main
from tokensieve.measure.speed import interleaved
from tokensieve.search import timing
from tokensieve.show import messages

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    torch.set_num_threads(1)  # the models here are tiny; a second thread only waits


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True)
def _graphs(request) -> Iterator[None]:
    """Forget compiled graphs: the next model would be taken for the same forward with other, symbolic sizes."""
    yield
    if request.node.get_closest_marker("slow") and "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights and photographs; tests that use it are marked `shared`."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED.name}/ beside the project: real weights and photographs are not at hand")
    return SHARED


@pytest.fixture(scope="session")
def brief_timing():
    """Called with a monkeypatch: `tune` times two rounds once, which say as much about the code as more of them."""

    def brief(calls, **_):
        return interleaved(calls, seconds=0, min_rounds=2, max_rounds=2)

    def shorten(patch):
        patch.setattr(timing, "interleaved", brief)
        patch.setattr(timing, "ATTEMPTS", 1)

    return shorten


@pytest.fixture
def there(tmp_path, monkeypatch):
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line; gives its exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(messages, "FIRST", 3600.0)  # what takes long on a busy machine says nothing more than elsewhere
    threads = torch.get_num_threads()

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tokensieve", *map(str, arguments)])
        code = main()
        return SimpleNamespace(code=code, **capsys.readouterr()._asdict())

    yield call
    torch.set_num_threads(threads)


@pytest.fixture
def refused(run):
    """Call the command line with something wrong; gives the one sentence on stderr."""

    def call(*arguments):
        result = run(*arguments)
        assert result.code == 2
        assert result.out == ""
        assert result.err.startswith("tokensieve: ")
        assert result.err.count("\n") == 1
        return result.err.removeprefix("tokensieve: ").rstrip("\n")

    return call


def pytest_collection_finish():
    """Collect garbage seldom, and never look at what was imported: a fifth of the time of graphs and exports."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)


def pytest_sessionfinish():
    gc.unfreeze()  # or libraries report what they find at the end as leaks


def pytest_collection_modifyitems(items):
    """Whatever reads real weights is slow, and so is what is marked for `make test-lowest`."""
    for item in items:
        if item.get_closest_marker("shared") or item.get_closest_marker("versions"):
            item.add_marker(pytest.mark.slow)


WORKER_MEMORY = 3 * 2**30
"""Bytes that a process of the tests may come to hold, with all that its tests compile and export."""


def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: a process for each core that may be used, but no more than memory holds.

    The count of a container's machine would be wrong: sixteen processes on a quota of two cores wait for each other.
    """
    return max(1, min(cores(), free_memory() // WORKER_MEMORY))


def free_memory() -> int:
    """Bytes of memory that are free on the machine, or that a container's limit allows, whichever is less."""
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    free: int = psutil.virtual_memory().available
    return min(free, int(text)) if text.isdigit() else free


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    """Name a failed test at once, so that a run that is stopped before its end has said what failed."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        reason = str(report.longrepr).strip().splitlines()[-1:]
        print(f"\n{report.nodeid}: {report.when} failed: {''.join(reason)}", file=sys.__stderr__, flush=True)


def pytest_terminal_summary(terminalreporter):
    """How many cells of `test_matrix.py` had which outcome."""
    reports = terminalreporter.getreports("passed")
    cells = Counter(value for report in reports for key, value in report.user_properties if key == "cell")
    if cells:
        terminalreporter.section("methods x hosts")
        terminalreporter.write_line(", ".join(f"{count} {outcome}" for outcome, count in sorted(cells.items())))

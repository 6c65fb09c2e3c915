"""Several devices, a cluster, a killed process: the same rows as one process that nobody disturbs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.jobs.conftest import errors, table
from tokensieve.errors import InputError, RecipeError
from tokensieve.jobs import RaySettings, run
from tokensieve.jobs.devices import device_name

pytestmark = pytest.mark.slow
SMALL = {"batch": 2, "shard": 4, "workers": 0}


@pytest.fixture
def undisturbed(tiny, photos, tmp_path):
    """A folder of pictures, and the rows and errors of a job on it."""
    root = photos(40, broken=(3, 17))
    run(tiny(), root, tmp_path / "alone", **SMALL)
    return root, table(tmp_path / "alone"), errors(tmp_path / "alone")


def kill_one(parent: psutil.Process, seen, out: Path) -> None:
    """Kill one of a process's children that `seen` is true of, once the first rows are there."""
    until = time.monotonic() + 300
    while not list((out / "rows").glob("*.parquet")):
        assert time.monotonic() < until, "no rows"
        time.sleep(0.02)
    next(child for child in parent.children(recursive=True) if seen(child)).kill()


def test_two_devices_of_which_one_is_killed(tiny, undisturbed, tmp_path):
    from threading import Thread

    root, rows, failed = undisturbed
    out = tmp_path / "out"
    worker = lambda child: "spawn_main" in " ".join(child.cmdline())  # noqa: E731
    thread = Thread(target=kill_one, args=(psutil.Process(), worker, out))
    thread.start()
    result = run(tiny(), root, out, devices=["cpu", "cpu"], **SMALL)
    thread.join()
    assert "was killed by SIGKILL" in (out / "log.txt").read_text()
    assert table(out) == rows
    assert errors(out) == failed
    assert (result.rows, result.errors) == (38, 2)


def test_a_cluster_of_two_of_which_one_is_killed(tiny, undisturbed, tmp_path):
    from threading import Thread

    pytest.importorskip("ray")
    root, rows, failed = undisturbed
    out = tmp_path / "out"
    actor = lambda child: "MapWorker" in " ".join(child.cmdline())  # noqa: E731
    thread = Thread(target=kill_one, args=(psutil.Process(), actor, out))
    thread.start()
    run(tiny(), root, out, engine="ray", ray={"actors": 2, "cpus": 1}, **SMALL)
    thread.join()
    assert table(out) == rows
    assert errors(out) == failed


def test_killed_and_started_again(tiny, undisturbed, tmp_path):
    """By the command, as a user would."""
    root, rows, failed = undisturbed
    out, spec = tmp_path / "out", tiny()
    command = [sys.executable, "-m", "tokensieve", "run", str(root), "--out", str(out), "--model", spec.model]
    command += ["--weights", str(spec.weights), "--recipe", str(spec.recipe), "--size", "64", "--batch", "2"]
    command += ["--shard", "4", "--workers", "1", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 300
        while not list(out.glob("rows/*.parquet")):
            assert time.monotonic() < until
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    before = len(list(out.glob("rows/*.parquet")))
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    assert table(out) == rows
    assert errors(out) == failed
    assert 0 < before <= 10


def test_processes_that_see_other_jobs_refuse(tiny, photos, tmp_path):
    spec = tiny()
    for name, value in (("weights", None), ("pretrained", False), ("sha256", {})):
        object.__setattr__(spec, name, value)
    with pytest.raises(InputError, match=r"differ in weights_sha256\. Weights must not be random"):
        run(spec, photos(4), tmp_path / "out", devices=["cpu", "cpu"], **SMALL)


def test_a_device_that_is_not_there_is_a_sentence(tiny, photos, tmp_path):
    assert device_name("3") == "cuda:3"
    with pytest.raises(InputError, match="cuda:77 does not exist"):
        run(tiny(), photos(2), tmp_path / "out", devices=["cpu", "77"], **SMALL)


def test_settings_of_the_cluster():
    for wrong in ({"actors": 0}, {"actors": (3, 2)}, {"gpus": -1}, {"cpus": 0}):
        with pytest.raises(RecipeError):
            RaySettings(**wrong)

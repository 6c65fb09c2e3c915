"""What else a machine does: other processes are counted, this one is not."""

import os
import subprocess
import sys
import time

import pytest

from tokensieve.measure import load
from tokensieve.measure.load import OtherWork, disturbs


def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_others_are_counted_and_this_process_is_not():
    before, start = load._others(), time.monotonic()
    spin(0.5)
    alone, passed = load._others() - before, time.monotonic() - start
    code = "import time\nwhile time.process_time() < 1: pass"
    before = load._others()
    subprocess.run([sys.executable, "-c", code], check=True)
    # What other processes of the machine use meanwhile comes on top, here as there.
    assert load._others() - before > 0.9
    assert alone < passed * (os.cpu_count() or 1) - 0.3  # all that the machine has, less what was spun here
    assert OtherWork().cores() >= 0


@pytest.mark.parametrize(
    ("others", "threads", "cores", "expected"),
    [(0.9, 1, 2, False), (1.2, 1, 2, True), (0.1, 2, 2, False), (0.5, 2, 2, True)],
)
def test_others_disturb_where_too_few_cores_are_left(monkeypatch, others, threads, cores, expected):
    monkeypatch.setattr(load.psutil, "cpu_count", lambda: cores)
    assert disturbs(others, threads) is expected

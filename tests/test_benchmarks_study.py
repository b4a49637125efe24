from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from benchmarks import study


def test_time_and_memory_count_a_child_too() -> None:
    child = "import time; held = bytearray(100_000_000); time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    found = study.measured([sys.executable, "-c", parent], {}, pulse=0.05)
    assert 1 < found["seconds"] < 20
    assert 0.1 < found["peak memory, GB"] < 0.2


def test_a_failing_command_is_no_measurement() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        study.measured([sys.executable, "-c", "raise SystemExit(3)"], {})


def test_the_neighbour_comes_and_goes() -> None:
    before = {child.pid for child in psutil.Process().children()}
    with study.busy_core(True):
        neighbours = [c for c in psutil.Process().children() if c.pid not in before]
        assert len(neighbours) == 1
    assert not neighbours[0].is_running()
    with study.busy_core(False):
        assert {child.pid for child in psutil.Process().children()} == before

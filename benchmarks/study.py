"""Time and memory of the whole study: `python -m benchmarks.study`, half an hour on two cores.

Runs `make study` from an empty store, again from that store, and from an empty one while one core
is kept busy; then `make smoke`. Close other programs first. The table goes to `reports/study.csv`,
what it was measured on to `reports/study.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import psutil

from robustlib.core import paths
from robustlib.study.results import provenance

CASES = {
    "empty store": (False, []),
    "again from the store": (False, []),
    "empty store, one core busy": (True, []),
    "smoke": (False, ["--params", "params/smoke"]),
}


def measured(
    command: list[str], environment: dict[str, str], pulse: float = 1.0
) -> dict[str, float]:
    """Seconds that a command takes, and the peak of the memory of all its processes, in GB.

    Memory is the proportional set size: what processes share counts once.
    """
    start, peak = time.perf_counter(), 0.0
    with subprocess.Popen(command, env={**os.environ, **environment}) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(memory, family(process.pid))))
            with suppress(subprocess.TimeoutExpired):
                process.wait(pulse)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {"seconds": time.perf_counter() - start, "peak memory, GB": peak / 1e9}


def family(pid: int) -> list[psutil.Process]:
    """A process and all that descend from it."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def memory(process: psutil.Process) -> int:
    """Bytes, 0 for a process that has ended."""
    with suppress(psutil.Error):
        return process.memory_full_info().pss
    return 0


@contextmanager
def busy_core(wanted: bool) -> Iterator[None]:
    """A neighbour who keeps one core busy, if wanted."""
    if not wanted:
        yield
        return
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--folder", help="of the store, to go on with; default: a temporary one")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(args.folder or temporary)
        for case in args.cases:
            busy, arguments = CASES[case]
            store = "busy" if busy else "smoke" if arguments else "quiet"
            environment = {
                "ROBUSTLIB_STORE": str(root / store),
                "ROBUSTLIB_REPORTS": str(root / "reports"),
            }
            command = [sys.executable, "-m", "robustlib.study", *arguments]
            with busy_core(busy):
                rows.append({"case": case, **measured(command, environment)})
    table = pd.DataFrame(rows)
    path = paths.reports_dir("study").with_suffix(".csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.4g")
    path.with_suffix(".json").write_text(json.dumps(provenance(), indent=2) + "\n")
    print(table.to_string(index=False, float_format="{:.3g}".format))


if __name__ == "__main__":
    main()

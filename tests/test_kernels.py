"""The kernels of the study, forked from one warm process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from robustlib.core import paths
from robustlib.study.runner import main
from tests.conftest import gone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")
METADATA = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


@pytest.fixture(autouse=True)
def no_warm_process() -> None:
    """That of other tests has imported something else."""
    forkserver._forkserver._stop()  # made for tests


def write(folder: Path, stem: str, *code: str) -> None:
    parameters = new_code_cell("epochs: int = 2  # passes", metadata={"tags": ["parameters"]})
    cells = [parameters, *map(new_code_cell, code)]
    folder.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=METADATA), folder / f"{stem}.ipynb")


def outputs(folder: Path, stem: str) -> list[nbformat.NotebookNode]:
    cells = nbformat.read(folder / f"{stem}.ipynb", as_version=4).cells
    return [output for cell in cells for output in cell.get("outputs", [])]


def printed(folder: Path, stem: str) -> list[str]:
    found = "".join(o.text for o in outputs(folder, stem) if o.output_type == "stream")
    return found.splitlines()


def test_kernels_and_their_workers_come_from_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROBUSTLIB_REPORTS", str(tmp_path / "reports"))
    monkeypatch.setenv("ROBUSTLIB_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLOUR", "blue")
    mark = tmp_path / "left"
    code = (
        "import sys; print('warm', 'torch' in sys.modules)",
        "import os; print(os.environ['COLOUR'], os.getcwd(), sys.argv[0], sys.path[0] == '')",
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        "pool = ProcessPoolExecutor(1, get_context('forkserver'))\n"
        "print(os.getppid(), pool.submit(os.getppid).result())",
        "import logging\n"  # what its loop says while it is ended would stand in the terminal
        "assert not logging.getLogger('tornado.general').isEnabledFor(logging.ERROR)",
        "import matplotlib.pyplot as plt; figure, _ = plt.subplots()",
        f"import atexit, pathlib; _ = atexit.register(pathlib.Path({str(mark)!r}).touch)",
        "_ = atexit.register(os.write, 2, b'a library, closing')",
    )
    write(tmp_path / "notebooks", "00_a", *code)
    write(tmp_path / "notebooks", "01_b", "epochs = 5", *code)
    assert main([], notebooks=tmp_path / "notebooks") == 0
    parents = set()
    for stem in ("00_a", "01_b"):
        warm, own, relatives = printed(tmp_path / "reports" / "study", stem)
        assert warm == "warm True"
        assert own == f"blue {tmp_path / 'notebooks'} ipykernel_launcher True"
        parents |= set(relatives.split())
        images = [o for o in outputs(tmp_path / "reports" / "study", stem) if "data" in o]
        assert [("image/png" in o.data) for o in images] == [True]
    assert len(parents) == 1
    assert mark.exists()  # a kernel ends in order, with a pool at hand, too
    assert "closing" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_however_the_study_ends_it_leaves_no_process_behind(
    tmp_path: Path, end: signal.Signals
) -> None:
    mark = tmp_path / "pids"
    write(
        tmp_path / "notebooks",
        "00_a",
        "import os, pathlib, time",
        f"pathlib.Path({str(mark)!r}).write_text(f'{{os.getpid()}} {{os.getppid()}}')",
        "time.sleep(600)",
    )
    code = (
        "import sys; from pathlib import Path; from robustlib import study\n"
        "from robustlib.core import paths\n"
        f"paths.project_root = lambda: Path({str(tmp_path)!r})\n"
        "sys.exit(study.main([]))"
    )
    places = {
        "PYTHONPATH": str(paths.project_root()),
        "ROBUSTLIB_REPORTS": str(tmp_path / "reports"),
        "ROBUSTLIB_STORE": str(tmp_path / "store"),
    }
    study = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **places},
        stderr=subprocess.DEVNULL,
        # Jobs in the background inherit that Ctrl-C is ignored, and the study leaves it so.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        for _ in range(1200):
            if mark.exists() and mark.read_text().count(" "):
                break
            time.sleep(0.1)
        kernel, warm = map(int, mark.read_text().split())
        started = {child.pid for child in psutil.Process(study.pid).children(recursive=True)}
        assert {kernel, warm} <= started
        study.send_signal(end)
        study.wait(60)
    finally:
        study.kill()
    assert all(gone(pid) for pid in started)


def test_parameters_are_read_without_torch() -> None:
    code = "import sys; import robustlib.study.parameters as p; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr

"""Against a real Dask cluster of two worker processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from robustlib.core import cluster
from robustlib.core.jobs import WorkerError, Workers
from robustlib.core.store import Store
from robustlib.data import Dataset
from tests.test_jobs import dies, fails, run, study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
ROOT = Path(__file__).resolve().parent.parent
CLUSTER = """
import sys
import dask
from distributed import LocalCluster
if __name__ == "__main__":
    threads, workers, failures = map(int, sys.argv[1:])
    dask.config.set({"distributed.scheduler.allowed-failures": failures})
    with LocalCluster(
        n_workers=workers, threads_per_worker=threads, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


def start(
    folder: Path, threads: int = 1, workers: int = 2, failures: int = 3
) -> subprocess.Popen[str]:
    script = folder / "cluster.py"
    script.write_text(CLUSTER)
    return subprocess.Popen(
        [sys.executable, str(script), str(threads), str(workers), str(failures)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    with start(tmp_path_factory.mktemp("cluster")) as process:
        yield process
        assert process.stdin
        process.stdin.close()


@pytest.fixture(scope="module")
def address(local: subprocess.Popen[str]) -> str:
    assert local.stdout
    return local.stdout.readline().strip()


@pytest.fixture
def workers(address: str) -> Iterator[Workers]:
    with Workers(scheduler=address) as found:
        yield found


def test_a_cluster_gives_the_same_bits(tiny: Dataset, workers, store: Store, tmp_path) -> None:
    here, there = study(tiny, Store(tmp_path / "here"), None), study(tiny, store, workers)
    assert there[0] == here[0]
    assert there[1].table.equals(here[1].table)
    np.testing.assert_array_equal(there[1].correct, here[1].correct)


def test_two_clients_train_nothing_twice(tiny, address, store: Store) -> None:
    steps: list[Any] = []

    def client() -> None:
        with Workers(scheduler=address) as own:
            steps.append(run(tiny, store, own, checkpoint_seconds=0))

    clients = [threading.Thread(target=client) for _ in range(2)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    first, second = steps
    assert [m.weights for m in first] == [m.weights for m in second]
    assert [m.history for m in first] == [m.history for m in second], "to the same seconds"


def test_errors_arrive_and_the_cluster_stays_usable(workers: Workers, store: Store) -> None:
    with pytest.raises(KeyError, match="a fault of a job"):
        workers.run(fails, [0, 1, 2], store=store, threads=1)
    assert workers.run(fails, [0, 2], store=store, threads=1) == [0, 2]


def loops() -> int:
    """How many Dask clients of this process are open."""
    return sum(thread.name == "IO loop" for thread in threading.enumerate())


def test_addresses_that_no_scheduler_can_have() -> None:
    before = loops()
    for address in ("nowhere", "tcp://host", "http://host:8786"):
        with pytest.raises(WorkerError, match=rf"no Dask scheduler answers at '{address}'"):
            Workers(scheduler=address)
    assert loops() == before


def test_a_client_leaves_the_cluster(address: str) -> None:
    before = loops()
    with Workers(scheduler=address):
        assert loops() == before + 1
    assert loops() == before


def test_a_scheduler_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE", 1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    with pytest.raises(WorkerError, match=rf"no Dask scheduler answers at '{address}'"):
        Workers(scheduler=address)


def test_a_store_that_workers_cannot_see(workers, tiny, store: Store, monkeypatch) -> None:
    monkeypatch.setattr(cluster, "_is_file", lambda path: False)
    with pytest.raises(WorkerError, match=r"don't see the store .*ROBUSTLIB_STORE"):
        run(tiny, store, workers)
    assert not list(store.root.glob("models/*"))
    assert not list(store.root.glob(".probe*"))


@pytest.mark.parametrize("name", ["Python", "torch", "robustlib"])
def test_workers_with_other_versions(address: str, monkeypatch, name: str) -> None:
    there = {**cluster.software(), name: "0.0"}
    monkeypatch.setattr(cluster, "software", _Answers({**there, name: "9.9"}, there))
    with pytest.raises(WorkerError, match=rf"has {name} 0\.0, this process 9\.9"):
        Workers(scheduler=address)


class _Answers:
    """A function that answers otherwise in this process than in others."""

    def __init__(self, here: dict[str, str], there: dict[str, str]) -> None:
        self.here, self.there, self.process = here, there, os.getpid()

    def __call__(self) -> dict[str, str]:
        return self.here if os.getpid() == self.process else self.there


def test_workers_with_several_threads_and_none(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cluster, "_QUEUE", 2.0)
    for threads, count, message in ((2, 1, r"has 2 threads.*--nthreads 1"), (1, 0, "no workers")):
        with start(tmp_path, threads, count) as process:
            assert process.stdout
            address = process.stdout.readline().strip()
            before = loops()
            with pytest.raises(WorkerError, match=message):
                Workers(scheduler=address)
            assert loops() == before, "a client that is left to the garbage collector"
            assert process.stdin
            process.stdin.close()


def test_without_the_package_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape('pip install "robustlib[cluster]"')):
        Workers(scheduler="tcp://127.0.0.1:8786")


# Tests that kill workers come last: a local cluster doesn't always replace them.


def worker_processes(local: subprocess.Popen[str]) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(local.pid).children(recursive=True)
        if "spawn_main" in " ".join(child.cmdline())
    ]


def test_a_killed_workers_training_goes_on(tiny, local, workers, store, tmp_path) -> None:
    """SIGKILL while it trains, right after a checkpoint."""
    killed = []

    def kill() -> None:
        while not list(store.root.glob("checkpoints/*.safetensors")):
            time.sleep(0.01)
        for process in worker_processes(local):
            killed.append(process.pid)
            process.send_signal(signal.SIGKILL)

    assassin = threading.Thread(target=kill)
    assassin.start()
    models = run(tiny, store, workers, checkpoint_seconds=0)
    assassin.join()
    assert len(killed) == 2
    expected = run(tiny, Store(tmp_path / "here"), None)
    assert [model.weights for model in models] == [model.weights for model in expected]


def test_a_job_that_kills_its_workers_and_a_cluster_without_any(
    store: Store, tmp_path: Path, monkeypatch
) -> None:
    with start(tmp_path, workers=1, failures=0) as process:
        assert process.stdout
        workers = Workers(scheduler=process.stdout.readline().strip())
        with pytest.raises(WorkerError, match="one after the other"):
            workers.run(dies, [0], store=store, threads=1)
        monkeypatch.setattr(cluster, "_QUEUE", 0.5)
        monkeypatch.setattr(workers._cluster, "check_sees", lambda folder: None)
        workers._cluster._client.retire_workers(close_workers=True)
        with pytest.raises(WorkerError, match="has no workers left"):
            workers.run(fails, [0], store=store, threads=1)
        assert process.stdin
        process.stdin.close()

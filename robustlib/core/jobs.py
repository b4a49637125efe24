"""Jobs: independent pieces of work on processes of this machine, or on a Dask cluster.

A job is a function of its argument whose results go to the store; nothing else is shared. So it
doesn't matter where jobs run, in which order, or whether one is done twice after a worker died.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future
from concurrent.futures import ProcessPoolExecutor as ProcessPool
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from torch import Tensor, nn

from robustlib.core.checks import check_whole
from robustlib.core.cluster import Cluster, WorkerError, hardware
from robustlib.core.store import Store

Tell = Callable[[int], None]
"""What a job calls with the work it has done so far, in a unit of its own."""
Job = Callable[[Any, Tell], Any]
Watch = Callable[[int, int], None]
"""What is called with the work done in all jobs together, and how many of them are finished."""

LARGE = 50_000_000
"""Multiply-adds for an image from which on a network is trained by all cores together."""
_DEATHS = 3  # in a row, without a job finished in between
_PULSE = 0.5  # seconds between looks at how far the jobs are
_PRELOADED = ["robustlib.training", "robustlib.evaluation"]


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def multiply_adds(network: nn.Module, image_size: int) -> int:
    """Multiply-adds of the convolutions and linear layers of `network` for one image."""
    network = copy.deepcopy(network).train()  # in eval mode layers may be fused
    total = 0

    def count(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()  # type: ignore[index]

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    some = next(network.parameters())
    with torch.no_grad():
        network(some.new_zeros(2, 3, image_size, image_size))  # one alone has no batch statistics
    return total // 2


def threads_for(network: nn.Module, image_size: int) -> int:
    """How many threads a job with `network` computes on: 1, or all cores if it is a large one.

    A small network gains little from a second thread, and loses much where other processes are
    busy; a large one, of `LARGE` multiply-adds or more for an image, needs memory that many jobs
    at once don't have. Results don't depend on the number of workers, since this doesn't.
    """
    return cores() if multiply_adds(network, image_size) >= LARGE else 1


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """`number` threads for torch, restored afterwards; None leaves them as they are."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Workers:
    """Where jobs run: in this process, in processes of this machine, or on a Dask cluster.

    Processes start when the first jobs need them, stay for later ones, and end with this object,
    `close`, or the process that made it.

    Args:
        count: processes on this machine; 0 for one a core, or one in all for large networks
            and on a GPU. A single one is this process.
        scheduler: address of a Dask scheduler, such as "tcp://host:8786"; its workers must see
            the store under the same path, and have one thread each. "" for this machine.

    Raises:
        ValueError: a bad count, or both a count and a scheduler.
        WorkerError: the scheduler doesn't answer, or its workers differ from this process in
            Python, torch or robustlib.

    Warns:
        UserWarning: more processes than cores.
    """

    def __init__(self, count: int = 0, scheduler: str = "") -> None:
        self.count = check_whole(count, "workers", low=0, high=1024)
        if scheduler and count:
            raise ValueError(
                f"the workers of the scheduler {scheduler} are those it has: leave their number "
                f"at 0, got {count}."
            )
        if count > cores():
            warnings.warn(
                f"{count} workers share {cores()} cores, which is slower than as many workers as "
                "cores (workers=0).",
                stacklevel=2,
            )
        self.scheduler = scheduler
        self._cluster = Cluster(scheduler) if scheduler else None
        self._pool: ProcessPool | None = None
        self._lifeline: Connection | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, or leave the scheduler; what jobs have stored stays."""
        if self._cluster is not None:
            self._cluster.close()
        if self._lifeline is not None:
            self._lifeline.close()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._lifeline = None

    def hardware(self, device: str) -> tuple[torch.device, bool]:
        """The device where jobs compute that ask for `device`, and whether bfloat16 pays there."""
        find = self._cluster.hardware if self._cluster else hardware
        kind, bfloat16 = find(device)
        return torch.device(kind), bfloat16

    def elsewhere(self, jobs: int, threads: int | None) -> bool:
        """Whether so many jobs of so many threads would run in other processes than this one."""
        return self._cluster is not None or min(jobs, self._processes(threads)) > 1

    def _processes(self, threads: int | None) -> int:
        if threads is None:
            return 1
        return self.count or max(1, cores() // threads)

    def run(
        self,
        function: Job,
        jobs: Sequence[Any],
        *,
        store: Store,
        threads: int | None,
        watch: Watch = lambda done, finished: None,
    ) -> list[Any]:
        """Do all jobs; returns what `function` returns for each, in their order.

        A job whose worker dies is done again, by another. An exception of a job ends the others.

        Args:
            function: called as function(job, tell), where tell takes the work done so far.
            jobs: arguments that can be pickled.
            store: where the workers are to find what jobs need.
            threads: that a job computes on, see `threads_for`; None for a GPU.
            watch: called about twice a second, or more often.

        Raises:
            WorkerError: workers die one after the other, or have too little memory.
        """
        if not self.elsewhere(len(jobs), threads):
            return self._here(function, jobs, threads, watch)
        if self._cluster:
            self._cluster.check_sees(store.root)
        elif self._pool is None:
            self._start(max(self.count, cores()))
        folder = store.root / "progress"
        folder.mkdir(exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(dir=folder) as progress:
                return self._there(function, jobs, threads, Path(progress), watch)
        except BaseException:
            if not self._cluster:
                self.close()
            raise

    def _here(
        self, function: Job, jobs: Sequence[Any], number: int | None, watch: Watch
    ) -> list[Any]:
        results: list[Any] = []
        before = latest = 0

        def tell(done: int) -> None:
            nonlocal latest
            latest = done
            watch(before + done, len(results))

        with threads(number):
            for job in jobs:
                results.append(function(job, tell))
                before, latest = before + latest, 0
                watch(before, len(results))
        return results

    def _there(
        self,
        function: Job,
        jobs: Sequence[Any],
        number: int | None,
        progress: Path,
        watch: Watch,
    ) -> list[Any]:
        waiting = dict(enumerate(jobs))
        at_once = len(jobs)
        if not self._cluster:
            at_once = self._processes(number)
        elif number != 1:  # of a large network: as many as the worker was started with
            number = None
        running: dict[Future[Any], int] = {}
        results: dict[int, Any] = {}
        deaths = 0
        try:
            while len(results) < len(jobs):
                died = False
                try:
                    for index in [i for i in waiting if i not in running.values()]:
                        if len(running) < at_once:
                            about = (function, jobs[index], number, str(progress / str(index)))
                            running[self._submit(cloudpickle.dumps(about))] = index
                except BrokenExecutor:  # one died while there was nothing to do
                    died = True
                done, _ = wait_for(running, timeout=_PULSE, return_when=FIRST_COMPLETED)
                if self._cluster and not done:
                    self._cluster.check_staffed()
                for future in done:
                    index, error = running.pop(future), future.exception()
                    if error is None:
                        results[index], warned = future.result()
                        del waiting[index]
                        deaths = 0
                        for category, text in warned:
                            warnings.warn(text, category, stacklevel=4)
                    elif _is_death(error):
                        died = True
                    else:
                        raise error
                if died:
                    deaths += 1
                    self._after_death(deaths)
                told = sum(_told(progress / str(index)) for index in range(len(jobs)))
                watch(told, len(results))
        finally:
            for future in running:
                future.cancel()
        return [results[index] for index in range(len(jobs))]

    def _submit(self, payload: bytes) -> Future[Any]:
        executor: Executor | None = self._cluster.executor if self._cluster else self._pool
        assert executor is not None
        return executor.submit(_work, payload)

    def _after_death(self, deaths: int) -> None:
        if deaths >= _DEATHS or self._cluster:  # the scheduler has tried it on several workers
            raise WorkerError(
                "workers die one after the other, most likely for lack of memory: take fewer "
                "(the parameter workers), a smaller batch_size, or a machine with more. What was "
                "computed is stored: the same command goes on from there."
            )
        size = self._pool._max_workers if self._pool else 1  # type: ignore[attr-defined]
        self.close()
        self._start(size)

    def _start(self, size: int) -> None:
        # Libraries of other systems than Linux don't survive a fork.
        context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        context.set_forkserver_preload(_PRELOADED)
        end, self._lifeline = context.Pipe(duplex=False)
        about = (end, os.getcwd())
        self._pool = ProcessPool(size, context, initializer=_begin, initargs=about)


def _is_death(error: BaseException) -> bool:
    return isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"  # Dask's


def _begin(lifeline: Connection, folder: str) -> None:
    """In a new worker: Ctrl-C is for the process that started it, with which it ends."""
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    with suppress(EOFError, OSError):
        lifeline.recv()
    os._exit(1)


def _work(payload: bytes) -> tuple[Any, list[tuple[type[Warning], str]]]:
    """In a worker: do a job; returns its result, and what it warned of."""
    function, job, number, progress = cloudpickle.loads(payload)
    told = _Told(Path(progress))
    with warnings.catch_warnings(record=True) as caught, threads(number):
        warnings.simplefilter("default")
        try:
            result = function(job, told)
        except Exception as error:
            if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
                raise WorkerError(
                    f"a worker has too little memory ({' '.join(str(error).split())[:200]}): take "
                    "fewer workers, a smaller batch_size, or a machine with more."
                ) from error
            try:
                cloudpickle.loads(cloudpickle.dumps(error))
            except Exception:  # it can't travel
                raise RuntimeError(f"{type(error).__name__} in a worker: {error}") from None
            raise
    told.write()
    return result, [(item.category, str(item.message)) for item in caught]


class _Told:
    """Keeps in a file what a job tells."""

    def __init__(self, path: Path) -> None:
        self.path, self.latest, self.told = path, 0, 0.0

    def __call__(self, done: int) -> None:
        self.latest = done
        if time.monotonic() - self.told >= _PULSE:
            self.write()

    def write(self) -> None:
        self.path.write_text(str(self.latest))
        self.told = time.monotonic()


def _told(path: Path) -> int:
    try:
        return int(path.read_text() or 0)
    except (FileNotFoundError, ValueError):
        return 0

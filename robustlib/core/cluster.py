"""The workers of a Dask cluster: reached, and compared with this process before they get work."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import time
from concurrent.futures import Executor
from functools import cache
from pathlib import Path

import torch

from robustlib.core.devices import pick_device, trains_in_bfloat16

_PATIENCE = 15.0  # seconds for the scheduler to answer
_QUEUE = 3600.0  # seconds for a first worker, which a batch system may keep waiting
_PACKAGE = Path(__file__).resolve().parents[1]


class WorkerError(RuntimeError):
    """Workers that die, run out of memory, don't answer, or aren't like this process."""


class Cluster:
    """A Dask scheduler and its workers.

    Args:
        address: of the scheduler, such as "tcp://host:8786".

    Attributes:
        executor: a `concurrent.futures.Executor` on the workers.

    Raises:
        WorkerError: no scheduler answers there; no worker turns up within an hour; or a worker has
            another Python, torch or robustlib than this process, or several threads.
        ModuleNotFoundError: the package distributed isn't installed.
    """

    executor: Executor

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
            from distributed.comm import get_address_host_port, normalize_address
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                'a scheduler needs the package distributed: pip install "robustlib[cluster]"'
            ) from error
        self.address = address
        try:
            # A client that fails to read it never ends its thread, and can hang the next client.
            get_address_host_port(normalize_address(address), strict=True)
            self._client = Client(address, timeout=_PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            raise WorkerError(
                f"no Dask scheduler answers at {address!r} ({' '.join(str(error).split())[:120]}); "
                "start one with `dask scheduler`, and take the address that it prints."
            ) from None
        self.executor = self._client.get_executor(pure=False)
        try:
            self._check_alike()
        except BaseException:
            self.close()
            raise
        self._staffed = time.monotonic()

    def close(self) -> None:
        """Leave the scheduler; left to the garbage collector, a client can hang the next one."""
        self._client.close()

    def _check_alike(self) -> None:
        try:
            self._client.submit(os.getpid, pure=False).result(timeout=_QUEUE)  # wakes adaptive ones
        except TimeoutError:
            raise WorkerError(
                f"the scheduler {self.address} has no workers; start some with `dask worker "
                f"{self.address} --nthreads 1`."
            ) from None
        here = software()
        try:
            workers = self._client.run(software)
        except Exception as error:  # what a worker raises arrives as such
            raise WorkerError(
                f"the workers can't run the code of robustlib ({error}); start them in this "
                "environment, and with the project's folder in PYTHONPATH if it isn't installed."
            ) from error
        for worker, found in workers.items():
            for name, version in here.items():
                if found[name] != version:
                    raise WorkerError(
                        f"the worker {worker} has {name} {found[name]}, this process {version}; "
                        "start the workers in this environment and from this code."
                    )
        for worker, about in self._client.scheduler_info(n_workers=-1)["workers"].items():
            if about["nthreads"] != 1:
                raise WorkerError(
                    f"the worker {worker} has {about['nthreads']} threads, which would share "
                    "what torch keeps for a whole process; start workers with --nthreads 1, "
                    "more of them."
                )

    def check_staffed(self) -> None:
        """Raise `WorkerError` if there has been no worker for an hour, which would never end."""
        if self._client.scheduler_info(n_workers=-1)["workers"]:
            self._staffed = time.monotonic()
        elif time.monotonic() - self._staffed > _QUEUE:
            raise WorkerError(
                f"the scheduler {self.address} has no workers left; start some, and the same "
                "command again: what was computed is stored."
            )

    def hardware(self, device: str) -> tuple[str, bool]:
        """Type of the device on the workers that `device` names, and whether bfloat16 pays there.

        Raises:
            WorkerError: they differ from worker to worker, so that results would, too.
        """
        found = self._client.run(hardware, device)
        if len(set(found.values())) > 1:
            kinds = ", ".join(f"{worker}: {kind}" for worker, kind in found.items())
            raise WorkerError(
                "the workers compute on different hardware, and results would depend on who "
                f"does what ({kinds}); use workers of one kind."
            )
        return next(iter(found.values()))

    def check_sees(self, folder: Path) -> None:
        """Raise `WorkerError` unless all workers see `folder` under the same path as this process.

        A small file is written there, looked for by each worker, and deleted.
        """
        probe = folder.resolve() / f".probe.{secrets.token_hex(8)}"
        probe.touch()
        try:
            found = self._client.run(_is_file, str(probe))
        finally:
            probe.unlink()
        blind = [worker for worker, sees in found.items() if not sees]
        if blind:
            raise WorkerError(
                f"the workers {', '.join(blind)} don't see the store {folder}: it must lie on a "
                "file system that they share with this process, under the same path; name another "
                "with the variable ROBUSTLIB_STORE."
            )


@cache
def software() -> dict[str, str]:
    """What must be the same in all processes: Python, torch, and the code of robustlib."""
    code = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        code.update(str(path.relative_to(_PACKAGE)).encode() + path.read_bytes())
    return {
        "Python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "torch": torch.__version__,
        "robustlib": code.hexdigest()[:12],
    }


def hardware(device: str) -> tuple[str, bool]:
    """As in `Cluster.hardware`, of this process."""
    place = pick_device(device)
    return place.type, trains_in_bfloat16(place)


def _is_file(path: str) -> bool:
    return Path(path).is_file()

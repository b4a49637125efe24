"""Kernels forked from one warm process, so that what notebooks import is imported once a study.

The warm process is the fork server of `multiprocessing`. Kernels are its children, and so are the
worker processes that a kernel starts in its turn.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import sys
import threading
import uuid
from contextlib import suppress
from multiprocessing import util
from types import ModuleType
from typing import Any

import psutil  # type: ignore[import-untyped]
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

_PRELOADED = [
    "robustlib.study.kernels",
    "ipykernel.kernelapp",
    "robustlib.analysis",
    "robustlib.corruptions.transforms",
    "robustlib.evaluation.sanity",
    "robustlib.study.parameters",
    "robustlib.study.plotting",
    "robustlib.study.results",
    "robustlib.training",
]
_SEARCH_PATH = list(sys.path)  # in the warm process: that of a kernel started by itself


# Libraries of other systems don't survive a fork: there, kernels start by themselves.
_FORKS = sys.platform == "linux"


def warm_up() -> None:
    """Start the warm process, with the environment of this moment; it gets ready by itself."""
    if not _FORKS:
        return
    from multiprocessing import forkserver

    multiprocessing.set_forkserver_preload(_PRELOADED)
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # only a process of one thread forks safely
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["OPENBLAS_NUM_THREADS"]
        if before is not None:
            os.environ["OPENBLAS_NUM_THREADS"] = before


def options() -> dict[str, Any]:
    """What to tell papermill, so that it takes its kernels from the warm process."""
    return {"kernel_manager_class": ForkedKernelManager} if _FORKS else {}


def end_all() -> None:
    """End the warm process, and kernels with what they have started, whatever they are doing."""
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            command = " ".join(child.cmdline())
            if "ipykernel_launcher" in command or "multiprocessing.forkserver" in command:
                for process in [child, *child.children(recursive=True)]:
                    with suppress(psutil.Error):
                        process.kill()


class ForkedKernelManager(AsyncKernelManager):
    """A kernel manager for papermill whose kernels are forked from the warm process."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.kernel_id = str(uuid.uuid4())
        self.provisioner = _Provisioner(
            kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self
        )


class _Provisioner(LocalProvisioner):
    async def launch_kernel(self, cmd: list[str], **options: Any) -> Any:
        """Fork a kernel, if the command is that of this Python's own kernel."""
        module = ["-m", "ipykernel_launcher"]
        if cmd[0] != sys.executable or cmd[1:3] != module:
            return await super().launch_kernel(cmd, **options)
        self.cwd = options.get("cwd") or os.getcwd()
        kernel = _Kernel(cmd[2:], options["env"], self.cwd)
        self.process = kernel  # type: ignore[assignment]
        self.pid = self.pgid = kernel.pid
        return self.connection_info


class _Kernel:
    """A forked kernel, with the methods of `subprocess.Popen` that a provisioner uses."""

    stdin = stdout = stderr = None

    def __init__(self, arguments: list[str], environment: dict[str, str], folder: str) -> None:
        fork = multiprocessing.get_context("forkserver")
        self._process = fork.Process(target=_serve, args=(arguments, environment, folder))
        own = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")  # else the kernel would run it again
        try:
            self._process.start()
        finally:
            sys.modules["__main__"] = own
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _serve(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """Be a kernel: in a session of its own, which ends with the process that asked for it."""
    atexit._clear()  # of what the warm process wants done at its own end
    atexit.register(util._exit_function)  # type: ignore[attr-defined]
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:], sys.argv[:] = _SEARCH_PATH, arguments
    logging.getLogger("tornado").setLevel(logging.CRITICAL)  # as the kernel's own log
    threading.Thread(target=_end_with_study, daemon=True).start()
    _share_warm_process()
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance(argv=arguments[1:])
    # libzmq may abort, loudly, while ipykernel closes its sockets; the notebook is done by then
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    # what the interpreter does at its end, but not for a child of multiprocessing
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()


def _end_with_study() -> None:
    """End this kernel where the process that asked for it, or the warm process, has died."""
    study, warm = multiprocessing.parent_process(), os.getppid()
    assert study is not None
    while study.is_alive() and os.getppid() == warm:
        study.join(1)
    os.killpg(0, signal.SIGKILL)


def _share_warm_process() -> None:
    """Let processes that this kernel starts be forked from the warm process, too.

    The standard library means it so, but starts a second fork server in children of the first.
    """
    from multiprocessing import forkserver

    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]

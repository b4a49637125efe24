"""The study: parameters, figures, tables, pages, and the runner of the notebooks.

Its modules are imported one by one, `from robustlib.study import plotting, results`, for what they
need, JupyterLab and papermill among it, comes with the extra `study` only.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

_NEEDED = (  # imported late or in other processes, where it would be too late to say so
    *("bs4", "ipykernel", "jinja2", "jupyter_client", "latex2mathml", "matplotlib", "nbconvert"),
    *("nbformat", "papermill", "psutil", "pygments", "seaborn", "traitlets", "yaml"),
)


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m robustlib.study") -> int:
    """The command line of `robustlib.study.runner`; returns the exit code.

    Beside the runner's, it is 2, after one sentence, where the packages of the extra `study` aren't
    installed, and 130 after an interruption by Ctrl-C or a signal that asks to end.
    prog: how the command is called, for its messages.
    """
    try:
        with _interruptible():
            for name in _NEEDED:
                if find_spec(name) is None:
                    raise ModuleNotFoundError(name=name)
            from robustlib.study import kernels, runner

            try:
                return runner.main(arguments, prog=prog)
            finally:
                kernels.end_all()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("robustlib"):
            raise
        print(
            f"{prog}: the study needs the package {error.name!r}, which is not installed; "
            'install what it needs with: pip install "robustlib[study]"',
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(
            f"{prog}: interrupted. What was trained and evaluated is stored: the same command goes "
            "on from there.",
            file=sys.stderr,
        )
        return 130


@contextmanager
def _interruptible() -> Iterator[None]:
    """The first request to stop, of whatever kind, raises `KeyboardInterrupt`; others are ignored.

    So nothing disturbs the end of the kernel, which the exception brings about.
    """
    requests = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP"):
        requests.append(signal.SIGHUP)
    before = {request: signal.getsignal(request) for request in requests}
    heeded = [request for request, handler in before.items() if handler != signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        heeded = []  # only the main thread may say what a signal does

    def stop(number: int, frame: object) -> None:
        for request in heeded:
            signal.signal(request, signal.SIG_IGN)
        logging.disable()  # of what the end of a kernel makes others say
        raise KeyboardInterrupt

    for request in heeded:
        signal.signal(request, stop)
    try:
        yield
    finally:
        for request in heeded:
            signal.signal(request, before[request])

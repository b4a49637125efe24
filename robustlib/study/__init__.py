"""The study: parameters, figures, tables, pages, and the runner of the notebooks.

Its modules are imported one by one, `from robustlib.study import plotting, results`, for what they
need, JupyterLab and papermill among it, comes with the extra `study` only.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

_OF_KERNELS = ("ipykernel", "seaborn")  # imported in the notebooks' own processes


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m robustlib.study") -> int:
    """The command line of `robustlib.study.runner`; returns the exit code.

    It is 2, after one sentence, where the packages of the extra `study` aren't installed.
    prog: how the command is called, for its messages.
    """
    try:
        from robustlib.study import runner

        for name in _OF_KERNELS:
            if find_spec(name) is None:
                raise ModuleNotFoundError(name=name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("robustlib"):
            raise
        print(
            f"{prog}: the study needs the package {error.name!r}, which is not installed; "
            'install what it needs with: pip install "robustlib[study]"',
            file=sys.stderr,
        )
        return 2
    return runner.main(arguments, prog=prog)

"""How papermill executes a notebook of the study: in a forked kernel, written now and then."""

from __future__ import annotations

from typing import Any

from papermill.engines import NBClientEngine, papermill_engines

from robustlib.study import kernels

NAME = "robustlib"
_PAUSE = 10.0  # seconds between two states of the executed notebook in its file


class _Engine(NBClientEngine):
    """papermill's own engine, which otherwise writes the whole notebook twice a cell."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> None:
        save = nb_man.save

        def save_now_and_then(**changes: Any) -> None:
            if (nb_man.now() - nb_man.last_save_time).total_seconds() >= _PAUSE:
                save(**changes)

        nb_man.save = save_now_and_then
        try:
            super().execute_managed_notebook(nb_man, kernel_name, **options, **kernels.options())
        finally:
            nb_man.save = save


papermill_engines.register(NAME, _Engine)

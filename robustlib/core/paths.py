"""Where the project keeps its files, from whichever working directory it is used."""

from __future__ import annotations

import os
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]


def project_root() -> Path:
    """The checkout that this package is used from, or the working directory if installed apart."""
    return _CHECKOUT if (_CHECKOUT / "pyproject.toml").is_file() else Path.cwd()


def data_dir() -> Path:
    """Downloads and generated data: `ROBUSTLIB_DATA` if set, else `data/` of the project."""
    return Path(os.environ.get("ROBUSTLIB_DATA") or project_root() / "data")


def store_dir() -> Path:
    """The artifact store: `ROBUSTLIB_STORE` if set, else `data/store/`."""
    return Path(os.environ.get("ROBUSTLIB_STORE") or data_dir() / "store")


def results_dir(run: str) -> Path:
    """The folder of one run's tables: `ROBUSTLIB_RESULTS` if set, else `results/`, then `run`."""
    return Path(os.environ.get("ROBUSTLIB_RESULTS") or project_root() / "results") / run


def reports_dir(run: str) -> Path:
    """The folder of one run's executed notebooks and site, `reports/<run>/`."""
    return Path(os.environ.get("ROBUSTLIB_REPORTS") or project_root() / "reports") / run

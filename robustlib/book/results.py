"""What the book takes from the committed results of the run of record."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from robustlib.core import paths
from robustlib.study.results import committed, committed_records

RUN = "cifar10"


def table(name: str) -> pd.DataFrame | None:
    """The table `<name>.csv` of the run of record; None if it hasn't been committed yet."""
    return committed(RUN, name) if _file(f"{name}.csv").is_file() else None


def figure(names: Iterable[str], run: str = RUN) -> tuple[str, bytes] | None:
    """Name and PNG of the first of these pictures that has been committed; None if none has."""
    for name in names:
        if _file(f"{name}.png", run).is_file():
            return name, _file(f"{name}.png", run).read_bytes()
    return None


def origin(name: str) -> dict[str, Any]:
    """Parameters and provenance of the notebook that made a table; empty if that isn't known."""
    records = committed_records(RUN).values()
    return next((record for record in records if name in record["tables"]), {})


def _file(name: str, run: str = RUN) -> Path:
    return paths.project_root() / "results" / run / name

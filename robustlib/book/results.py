"""What the book takes from the committed results of the run of record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from robustlib.core import paths
from robustlib.study.results import committed, committed_records

RUN = "cifar10"


def table(name: str) -> pd.DataFrame | None:
    """The table `<name>.csv` of the run of record; None if it hasn't been committed yet."""
    return committed(RUN, name) if _file(f"{name}.csv").is_file() else None


def figure(name: str, run: str = RUN) -> bytes | None:
    """The picture `<name>.png` of a run; None if it hasn't been committed yet."""
    file = _file(f"{name}.png", run)
    return file.read_bytes() if file.is_file() else None


def origin(name: str) -> dict[str, Any]:
    """Parameters and provenance of the notebook that made a table; empty if that isn't known."""
    records = committed_records(RUN).values()
    return next((record for record in records if name in record["tables"]), {})


def _file(name: str, run: str = RUN) -> Path:
    return paths.project_root() / "results" / run / name

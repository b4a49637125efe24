"""The tables of a run, with their provenance: `results/<run>/`.

Notebooks write here what later notebooks and the README draw from.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from robustlib.core import paths
from robustlib.core.devices import pick_device, trains_in_bfloat16
from robustlib.evaluation import Evaluation, packed

PACKAGES = ("robustlib", "torch", "torchvision", "foolbox", "numpy", "pandas", "papermill")


class MissingResultsError(ValueError):
    """A table that a notebook draws from has not been made yet."""


def save(
    run: str,
    notebook: str,
    tables: Mapping[str, pd.DataFrame],
    *,
    settings: Any,
    seconds: float,
    data: str = "",
    figures: Mapping[str, Figure] | None = None,
    evaluations: Mapping[str, Evaluation] | None = None,
) -> None:
    """Write tables and figures to `results/<run>/`, and `<notebook>.json` with their provenance.

    Each file is replaced as a whole. Floats keep six significant digits.

    Args:
        run: name of the run.
        notebook: the notebook's name, such as "03_mtlat".
        tables: names and tables, written as `<name>.csv`.
        settings: the notebook's parameters, a dataclass instance.
        seconds: wall time of the notebook so far; little if all models came from the store.
        data: fingerprint of the data set, if there is one.
        figures: names and figures, written as `<name>.png`.
        evaluations: names and per-image results, written as `<name>.safetensors`.
    """
    parameters = asdict(settings)
    if parameters.get("data_root"):
        parameters["data_root"] = Path(parameters["data_root"]).name
    place = folder(run)
    for name, table in tables.items():
        _replace(place / f"{name}.csv", table.to_csv(index=False, float_format="%.6g"))
    for name, figure in (figures or {}).items():
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
        _replace(place / f"{name}.png", picture.getvalue())
    for name, evaluation in (evaluations or {}).items():
        packed.write(place / f"{name}.safetensors", evaluation)
    record = {
        "tables": sorted(tables),
        "parameters": parameters,
        **({"data": data} if data else {}),
        "seconds": round(seconds, 1),
        **provenance(),
    }
    _replace(place / f"{notebook}.json", json.dumps(record, indent=2, default=str) + "\n")


def folder(run: str) -> Path:
    """`results/<run>/`, made if missing."""
    path = paths.results_dir(run)
    path.mkdir(parents=True, exist_ok=True)
    return path


def load(run: str, name: str) -> pd.DataFrame:
    """The table `results/<run>/<name>.csv`.

    Raises:
        MissingResultsError: it isn't there.
    """
    path = paths.results_dir(run) / f"{name}.csv"
    if not path.is_file():
        raise MissingResultsError(
            f"the run {run!r} has no table {name!r} yet; run the notebooks before this one with "
            f"the parameter run={run!r}, for example all of them with 'make study'."
        )
    return pd.read_csv(path)


def evaluation(run: str, name: str) -> Evaluation:
    """The per-image results `<name>.safetensors` of a run here, or else of a run of record.

    Raises:
        MissingResultsError: there are none.
    """
    return packed.read(_found(run, f"{name}.safetensors"))


def table(run: str, name: str) -> pd.DataFrame:
    """The table `<name>.csv` of a run here, or else of a run of record.

    Raises:
        MissingResultsError: there is none.
    """
    return pd.read_csv(_found(run, f"{name}.csv"))


def parameters(run: str, notebook: str) -> dict[str, Any]:
    """The parameters that a notebook of a run here, or else of a run of record, was run with.

    Raises:
        MissingResultsError: it hasn't been run.
    """
    return dict(json.loads(_found(run, f"{notebook}.json").read_text("utf-8"))["parameters"])


def _found(run: str, file: str) -> Path:
    places = [paths.results_dir(run), paths.project_root() / "results" / run]
    for path in (folder / file for folder in places):
        if path.is_file():
            return path
    raise MissingResultsError(
        f"the run {run!r} has no {file}; run the notebook that writes it with the parameter "
        f"run={run!r}, or name another run."
    )


def committed(run: str, name: str) -> pd.DataFrame:
    """The table `<name>.csv` of a run of record, which the project holds."""
    return pd.read_csv(_committed(run) / f"{name}.csv")


def committed_records(run: str) -> dict[str, dict[str, Any]]:
    """`records` of a run of record."""
    return _records(_committed(run))


def _committed(run: str) -> Path:
    """Wherever `ROBUSTLIB_RESULTS` has other runs write."""
    folder = paths.project_root() / "results" / run
    if not folder.is_dir():
        raise MissingResultsError(f"the project holds no run of record {run!r} in results/.")
    return folder


def records(run: str) -> dict[str, dict[str, Any]]:
    """The provenance of every notebook of the run, by its name; empty if there is none."""
    return _records(paths.results_dir(run))


def _records(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(folder.glob("*.json"))
    return {file.stem: json.loads(file.read_text("utf-8")) for file in files}


def _replace(path: Path, content: str | bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


def provenance() -> dict[str, str]:
    """When, on what and with which versions this process runs, in words; no paths or names."""
    facts = {"date": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")}
    commit = _commit()
    if commit:
        facts["commit"] = commit
    facts["processor"] = f"{_processor()}, {os.cpu_count()} cores"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.0f} GB"
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    rounded = trains_in_bfloat16(pick_device())
    facts["precision"] = "bfloat16 in training, else float32" if rounded else "float32"
    facts["system"] = f"{platform.system()} {platform.machine()}"
    facts["python"] = platform.python_version()
    facts["packages"] = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return facts


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _commit() -> str:
    """Short hash of the checkout, marked if tracked files differ from it; empty without git.

    What runs write, results and reports, doesn't count: a run would mark the next.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(paths.project_root()), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        changed = git("status", "--porcelain", "-uno", "--", ".", ":!results", ":!reports")
        commit = git("rev-parse", "--verify", "--short=12", "HEAD")
        return f"{commit}, with uncommitted changes" if commit and changed else commit
    except (OSError, subprocess.TimeoutExpired):
        return ""

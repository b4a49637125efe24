"""The notebooks of record: what may be committed to `reports/record/`, and how it gets there."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from PIL import Image

from robustlib.core import paths
from robustlib.core.checks import check_name
from robustlib.study import report
from robustlib.study.declarations import declared
from robustlib.study.runner import read_params
from robustlib.study.values import coerce

LIMIT = 2_000_000
"""Largest size of a committed notebook in bytes."""
HEAVY = 100_000
"""Bytes of a picture from which on it is stored in 256 colours."""


@dataclass(frozen=True)
class Run:
    """A run of record.

    about: what it shows, for readers. params: folder of its parameters as seen from the project;
    empty for the notebooks' defaults. own_images: whether its images may be published; if not, what
    shows some (`SHOWS_IMAGES`) is left out.
    """

    about: str
    params: str = ""
    own_images: bool = True


RUNS = {
    "cifar10": Run("CIFAR-10, photographs: the numbers of record", "params/cifar10", False),
    "default": Run("shapes10, generated images: what `make study` shows after minutes"),
}
SHOWS_IMAGES = ("image_grid(", "predictions(", "failures(", "write_card(")
"""Calls in a cell whose pictures show images of the data set."""
LEFT_OUT = (
    "*Here stand images of the data set, which are not this project's to publish. Run the notebook "
    "to see them.*"
)

_PROVENANCE = ("date", "commit", "packages")
_ANYWHERE = ("device", "scheduler", "workers")  # parameters that change no result
_ABSOLUTE = re.compile(r"(?<![\w.:/<+-])/(?:[\w.-]+/)+[\w.-]+|\b[A-Z]:\\\w")
_EMBEDDED = re.compile(r"data:[\w/+.-]+;base64,[\w+/=]*")


def folder(run: str) -> Path:
    """Where the notebooks of record of a run are committed."""
    return paths.project_root() / "reports" / "record" / run


def faults(executed: NotebookNode, stem: str, run: str) -> list[str]:
    """Why an executed notebook can't be one of record, a sentence for each reason.

    It must have run to its end, from today's cells, with the parameters of the run and with
    provenance, fit `LIMIT`, and show no path of the machine and no images that aren't its own.

    executed: as the study left it. stem: the notebook's name. run: one of `RUNS`.
    """
    file = _source(stem)
    if not file.is_file():
        return [f"there is no notebook {file.name} any more."]
    source = _read(file)
    found = []
    if _code(executed) != _code(source):
        found.append("its code is out of date; run the notebook again.")
    elif _cells(executed) != _cells(source):
        found.append("its text is out of date; bring it over: python -m robustlib.book --text.")
    outcome = report.recorded(executed)
    if outcome.error:
        found.append(f"it stopped with {outcome.error}.")
    elif not all(cell.execution_count for cell in _code_cells(executed) if cell.source):
        found.append("not all of its cells were executed.")
    if missing := [fact for fact in _PROVENANCE if fact not in outcome.provenance]:
        found.append(f"its provenance lacks {', '.join(missing)}.")
    if different := _other_parameters(outcome.parameters, stem, run):
        found.append(f"its parameters are not those of the run {run!r}: {different}.")
    if (size := len(nbformat.writes(executed).encode())) >= LIMIT:
        found.append(f"it has {size / 1e6:.2f} MB, {LIMIT / 1e6:g} or more.")
    seen = {match[0] for text in _texts(executed) for match in _ABSOLUTE.finditer(text)}
    if seen:
        found.append(f"it shows paths of a machine: {', '.join(sorted(seen))}.")
    if not RUNS[run].own_images and without_images(executed) != executed:
        found.append("it shows images of a data set that may not be published.")
    return found


def record(run: str) -> list[Path]:
    """Copy the finished run from `reports/<run>/` to the notebooks of record, if all pass `faults`.

    Text that was edited since is taken over. Returns the files written.

    Raises:
        ValueError: an unknown run, none to copy, or faults, of which it names all.
    """
    settings = RUNS[check_name(run, RUNS, "run of record")]
    files = sorted(paths.reports_dir(run).glob("*.ipynb"))
    if not files:
        option = f"--params {settings.params}" if settings.params else f"--run {run}"
        raise ValueError(
            f"there is no executed notebook of the run {run!r}; make them with: "
            f"python -m robustlib.study {option}"
        )
    notebooks = {file.stem: with_text_of_today(_read(file), file.stem) for file in files}
    if not settings.own_images:
        notebooks = {stem: without_images(notebook) for stem, notebook in notebooks.items()}
    notebooks = {stem: with_light_pictures(notebook) for stem, notebook in notebooks.items()}
    said = [
        f"{stem}.ipynb: {fault}"
        for stem, notebook in notebooks.items()
        for fault in faults(notebook, stem, run)
    ]
    if said:
        raise ValueError("\n  ".join([f"the run {run!r} can't be recorded:", *said]))
    folder(run).mkdir(parents=True, exist_ok=True)
    written = []
    for stem, notebook in notebooks.items():
        target = folder(run) / f"{stem}.ipynb"
        nbformat.write(notebook, target)
        written.append(target)
    return written


def take_over_text() -> list[Path]:
    """Bring edited text into the notebooks of record, which shows no other results.

    Returns the files that changed. A notebook whose code has changed stays as it is.
    """
    changed = []
    for file in recorded():
        before = _read(file)
        after = with_text_of_today(before, file.stem)
        if after != before:
            nbformat.write(after, file)
            changed.append(file)
    return changed


def recorded() -> list[Path]:
    """All notebooks of record, run by run in reading order."""
    return [file for run in RUNS for file in sorted(folder(run).glob("*.ipynb"))]


def with_text_of_today(executed: NotebookNode, stem: str) -> NotebookNode:
    """The executed notebook with the text cells of the notebook that it was made of.

    It is returned as it is if the code differs, or there is no such notebook.
    """
    if not _source(stem).is_file():
        return executed
    source = _read(_source(stem))
    if _code(executed) != _code(source):
        return executed
    result = copy.deepcopy(executed)
    ran = iter(_code_cells(executed))
    result.cells = []
    for cell in source.cells:
        result.cells.append(next(ran) if cell.cell_type == "code" else cell)
        if "parameters" in cell.metadata.get("tags", []):
            result.cells += [other for other in executed.cells if _is_injected(other)]
    return result


def without_images(executed: NotebookNode) -> NotebookNode:
    """The same with `LEFT_OUT` for the pictures of cells that call one of `SHOWS_IMAGES`."""
    result = copy.deepcopy(executed)
    for cell in _code_cells(result):
        if any(call in cell.source for call in SHOWS_IMAGES):
            cell.outputs = [
                nbformat.v4.new_output("display_data", {"text/markdown": LEFT_OUT})
                if {"image/png", "text/html"} & set(output.get("data", {}))
                else output
                for output in cell.outputs
            ]
    return result


def with_light_pictures(executed: NotebookNode) -> NotebookNode:
    """The same with pictures of `HEAVY` bytes or more in 256 colours, if that makes them less."""
    result = copy.deepcopy(executed)
    for cell in _code_cells(result):
        for output in cell.outputs:
            picture = base64.b64decode(output.get("data", {}).get("image/png", ""))
            if len(picture) >= HEAVY:
                lighter = io.BytesIO()
                image = Image.open(io.BytesIO(picture)).convert("RGB")
                image.quantize(256).save(lighter, "PNG", optimize=True)
                least = min(picture, lighter.getvalue(), key=len)
                output["data"]["image/png"] = base64.b64encode(least).decode()
    return result


def _source(stem: str) -> Path:
    return paths.project_root() / "notebooks" / f"{stem}.ipynb"


def _read(file: Path) -> NotebookNode:
    return nbformat.read(file, as_version=4)


def _is_injected(cell: NotebookNode) -> bool:
    return "injected-parameters" in cell.metadata.get("tags", [])


def _code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [c for c in notebook.cells if c.cell_type == "code" and not _is_injected(c)]


def _code(notebook: NotebookNode) -> list[str]:
    return [cell.source for cell in _code_cells(notebook)]


def _cells(notebook: NotebookNode) -> list[tuple[str, str]]:
    return [(c.cell_type, c.source) for c in notebook.cells if not _is_injected(c)]


def _other_parameters(had: dict[str, Any], stem: str, run: str) -> str:
    """What differs from the run's parameters, whose data may be missing here."""
    known = declared(_source(stem))
    wanted: dict[str, Any] = {name: entry.default for name, entry in known.items()}
    if RUNS[run].params:
        folder = paths.project_root() / RUNS[run].params
        stems = [file.stem for file in _source(stem).parent.glob("*.ipynb")]
        wanted |= read_params(folder, stems).get(stem, {})
    wanted |= {"run": run} if "run" in known else {}
    wanted = {name: coerce(name, value, known[name].type) for name, value in wanted.items()}
    names = sorted({*had, *wanted} - set(_ANYWHERE))
    return ", ".join(
        f"{name} {had.get(name)!r} instead of {wanted.get(name)!r}"
        for name in names
        if had.get(name) != wanted.get(name)
    )


def _texts(notebook: NotebookNode) -> Iterator[str]:
    """What the run wrote into the notebook, but for pictures."""
    yield json.dumps(notebook.metadata)
    for cell in _code_cells(notebook):
        for output in cell.outputs:
            parts = [output.get("text", ""), *output.get("traceback", [])]
            parts += [v for k, v in output.get("data", {}).items() if not k.startswith("image/")]
            yield from (_EMBEDDED.sub("", str(part)) for part in parts)

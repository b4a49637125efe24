"""What is known about a run, and the pages of its executed notebooks."""

from __future__ import annotations

import html
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nbformat

from robustlib.pages.notebooks import body, title_of
from robustlib.pages.skeleton import page

FACTS = (
    "date",
    "commit",
    "processor",
    "memory",
    "gpu",
    "precision",
    "system",
    "python",
    "packages",
)
"""What `provenance` can tell, in the order of the index (files keep it sorted by name)."""


# --- What is known about a run -----------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How the execution of one notebook went; kept in the notebook's metadata.

    Attributes:
        error: one line, or empty if the notebook ran to its end.
        seconds: wall time.
        parameters: every declared parameter with the value it had.
        provenance: see `provenance`.
        cell: id of the cell that failed.
    """

    error: str = ""
    seconds: float = 0.0
    parameters: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    cell: str = ""


def record(notebook: nbformat.NotebookNode, outcome: Outcome) -> None:
    """Write `outcome` into the notebook's metadata, where `build_site` finds it."""
    notebook.metadata["robustlib"] = asdict(outcome)


def recorded(notebook: nbformat.NotebookNode) -> Outcome:
    """What `record` wrote or, failing that, what papermill itself notes."""
    if "robustlib" in notebook.metadata:
        return Outcome(**notebook.metadata["robustlib"])
    notes = notebook.metadata.get("papermill", {})
    error, cell = first_error(notebook)
    return Outcome(error, notes.get("duration") or 0.0, notes.get("parameters", {}), {}, cell)


def first_error(notebook: nbformat.NotebookNode) -> tuple[str, str]:
    """The first error among the outputs in one line, and the id of its cell; or two ''."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                lines = output.evalue.strip().splitlines()
                return f"{output.ename}: {lines[0] if lines else ''}".rstrip(": "), cell.get(
                    "id", ""
                )
    return "", ""


# --- Pages ---------------------------------------------------------------------------------------


def build_site(
    folder: Path,
    name: str,
    bodies: Mapping[str, str] | None = None,
    *,
    target: Path | None = None,
    home: str = "",
) -> Path:
    """Write an HTML page for each executed notebook in `folder`, and `index.html`.

    The pages are a function of the notebooks alone, so the site can be rebuilt at any time.

    Args:
        folder: of the executed notebooks.
        name: the run's name.
        bodies: what `body` has returned already, by the notebook's name.
        target: where the pages go; by default beside the notebooks.
        home: address of a page that leads to this run, for the navigation; none by default.

    Returns:
        The path of the index.

    Raises:
        ValueError: the folder holds no notebook.
    """
    files = sorted(folder.glob("*.ipynb"))
    if not files:
        raise ValueError(f"{folder} holds no executed notebook to make a report of.")
    target = target or folder
    target.mkdir(parents=True, exist_ok=True)
    notebooks = [nbformat.read(file, as_version=4) for file in files]
    stems = [file.stem for file in files]
    titles = [title_of(nb, stem) for nb, stem in zip(notebooks, stems, strict=True)]
    outcomes = [recorded(nb) for nb in notebooks]
    above = f'<a href="{home}">The book</a>' if home else ""
    for position, stem in enumerate(stems):
        navigation = _navigation(name, stems, titles, position, above)
        outcome = outcomes[position]
        cells = (bodies or {}).get(stem) or body(notebooks[position])
        content = f"{navigation}{_failure(outcome)}{cells}{_stamp(outcome)}{navigation}"
        (target / f"{stem}.html").write_text(page(titles[position], content), encoding="utf-8")
    index = target / "index.html"
    addresses = [Path(os.path.relpath(file, target)).as_posix() for file in files]
    content = (f"<nav>{above}</nav>" if above else "") + _index(name, addresses, titles, outcomes)
    index.write_text(page(f"Run {name}", content), encoding="utf-8")
    return index


def _navigation(
    name: str, stems: Sequence[str], titles: Sequence[str], position: int, above: str
) -> str:
    def link(other: int, text: str) -> str:
        if not 0 <= other < len(stems):
            return "<span></span>"
        return f'<a href="{stems[other]}.html">{text.format(html.escape(titles[other]))}</a>'

    return (
        f"<nav>{link(position - 1, '← {}')}{above}"
        f'<a href="index.html">Run {html.escape(name)}</a>{link(position + 1, "{} →")}</nav>'
    )


def _failure(outcome: Outcome) -> str:
    if not outcome.error:
        return ""
    where = f' <a href="#cell-id={outcome.cell}">See the cell.</a>' if outcome.cell else ""
    return (
        '<p class="failure">This notebook stopped with '
        f"<code>{html.escape(outcome.error)}</code>{where}</p>"
    )


def _stamp(outcome: Outcome) -> str:
    facts = outcome.provenance
    if not facts:
        return ""
    parts = [f"Executed {facts['date']} in {duration(outcome.seconds)}"]
    parts += [facts[key] for key in ("processor", "gpu", "precision", "packages") if key in facts]
    if "commit" in facts:
        parts.append(f"commit {facts['commit']}")
    return f'<p class="stamp">{html.escape(" · ".join(parts))}</p>'


def duration(seconds: float) -> str:
    """A wall time in words: "41 s", "3 min 05 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _index(
    name: str, addresses: Sequence[str], titles: Sequence[str], outcomes: Sequence[Outcome]
) -> str:
    """addresses: of the executed notebooks, as seen from the index."""
    rows = []
    for address, title, outcome in zip(addresses, titles, outcomes, strict=True):
        status = '<td class="good">ok</td>'
        if outcome.error:
            status = f'<td class="bad">failed: <code>{html.escape(outcome.error)}</code></td>'
        file = Path(address)
        rows.append(
            f'<tr><td><a href="{file.stem}.html">{html.escape(title)}</a></td>{status}'
            f'<td class="number">{duration(outcome.seconds)}</td>'
            f'<td><a href="{address}">{file.name}</a></td></tr>'
        )
    total = duration(sum(outcome.seconds for outcome in outcomes))
    failed = sum(bool(outcome.error) for outcome in outcomes)
    summary = f"{len(titles)} notebooks in {total}" + (f", {failed} failed" if failed else "")
    latest = max((o.provenance for o in outcomes), key=lambda facts: facts.get("date", ""))
    return (
        f"<h1>Run {html.escape(name)}</h1><p>{summary}.</p>"
        "<table><thead><tr><th>Notebook</th><th>Status</th><th>Wall time</th><th>Executed file"
        f"</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
        f"<h2>Provenance</h2>{_facts({key: latest[key] for key in FACTS if key in latest})}"
        f"<h2>Parameters</h2>{''.join(map(_parameters, titles, outcomes))}"
        f'<p class="stamp">Pages built {time.strftime("%Y-%m-%d %H:%M")}.</p>'
    )


def _facts(facts: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(_shown(value))}</td></tr>"
        for key, value in facts.items()
    )
    return f'<table class="facts"><tbody>{rows}</tbody></table>' if rows else "<p>Not recorded.</p>"


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _parameters(title: str, outcome: Outcome) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{_facts(outcome.parameters)}</details>"

"""Executed notebooks to a small HTML site that needs no network, formulas included."""

from __future__ import annotations

import functools
import html
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nbformat
from bs4 import BeautifulSoup
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import (
    IPythonRenderer,
    MarkdownWithMath,
    MathInlineParser,
)
from nbconvert.preprocessors import Preprocessor
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

from robustlib.core import paths

FACTS = ("date", "commit", "processor", "memory", "gpu", "system", "python", "packages")
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


# --- Formulas ------------------------------------------------------------------------------------

_ARITY = {"mfrac": 2, "msub": 2, "msup": 2, "msubsup": 3, "mover": 2, "munder": 2}
_UNKNOWN = re.compile(r"<m[io]>(\\[A-Za-z]+|&)</m[io]>")


@functools.cache
def mathml(latex: str, display: str = "inline") -> str:
    """A LaTeX formula, without its delimiters, as MathML, which browsers show by themselves.

    `display` is "inline" or "block".

    Raises `ValueError` if the formula has a fault or uses a command that isn't known.
    """
    source = re.sub(r"\{aligned\}", "{align*}", latex)
    source = re.sub(r"\\arg(?![A-Za-z])", r"\\operatorname{arg}\\,", source)
    source = re.sub(r"\\operatorname\*", r"\\operatorname", source)
    try:
        result = convert(source, display=display)
        result = result.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    except Exception as error:  # the converter raises classes of many kinds, IndexError included
        raise ValueError(f"not a formula: {latex!r} ({type(error).__name__}).") from None
    unknown = _UNKNOWN.search(result)
    if unknown:
        raise ValueError(f"unknown command {unknown[1]!r} in the formula {latex!r}.")
    if any(len(node) < _ARITY.get(node.tag, 0) for node in ElementTree.fromstring(result).iter()):
        raise ValueError(f"the formula {latex!r} lacks an argument.")
    return result


class _Inline(MathInlineParser):
    """Inline formulas after Pandoc's rule, so that "$5 and $6" stays two amounts of money."""

    SPECIFICATION = {  # noqa: RUF012 - as in the parent
        **MathInlineParser.SPECIFICATION,
        "inline_math_tex": (
            r"(?s:(?<![$\\])\$(?![\s$])(?P<math_inline_tex>(?:[^$\\`]|\\.)+?)(?<!\s)\$(?![\d$]))"
        ),
    }


class _Renderer(IPythonRenderer):
    def block_math(self, body: str) -> str:
        return _formula(body, "block")

    def inline_math(self, body: str) -> str:
        return _formula(body, "inline")

    def latex_environment(self, name: str, body: str) -> str:
        return _formula(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")

    def image(self, text: str, url: str, title: str | None = None) -> str:
        if _is_remote(url):
            return f'<a href="{html.escape(url)}">{text or "image"}</a>'
        return str(super().image(text, url, title))


def _formula(latex: str, display: str) -> str:
    try:
        return mathml(latex.strip(), display)
    except ValueError as error:
        return f'<code class="fault" title="{html.escape(str(error))}">{html.escape(latex)}</code>'


def markdown(source: str, **options: Any) -> str:
    """Markdown with LaTeX formulas as HTML with MathML.

    A formula that can't be converted is shown as its source, in red.
    """
    renderer = _Renderer(escape=False, **options)
    return str(MarkdownWithMath(renderer=renderer, inline=_Inline(hard_wrap=False)).render(source))


# --- Pages ---------------------------------------------------------------------------------------

_TEMPLATE = """\
{%- extends 'lab/base.html.j2' -%}
{%- block in_prompt %}{% endblock -%}
{%- block empty_in_prompt %}{% endblock -%}
{%- block output_area_prompt %}{% endblock -%}
{%- block data_latex %}<div class="jp-OutputArea-output">
{{ output.data['text/latex'] | markdown2html }}</div>{% endblock -%}
{%- block stream_stderr %}<div class="jp-OutputArea-output stderr"><pre>
{{- output.text | ansi2html -}}
</pre></div>{% endblock -%}
"""

_SHOWN = [
    "text/html",
    "text/markdown",
    "image/svg+xml",
    "text/latex",
    "image/png",
    "image/jpeg",
    "text/plain",
]
"""Output formats that need no script, the preferred ones first."""


class _DropErrorMarkers(Preprocessor):
    """papermill's own red notes: the page has a better one."""

    def preprocess(
        self, nb: nbformat.NotebookNode, resources: dict[str, Any]
    ) -> tuple[nbformat.NotebookNode, dict[str, Any]]:
        marker = "papermill-error-cell-tag"
        nb.cells = [cell for cell in nb.cells if marker not in cell.metadata.get("tags", [])]
        return nb, resources


class _Exporter(HTMLExporter):
    @property
    def default_config(self) -> Config:
        own = Config(
            {
                "NbConvertBase": {"display_data_priority": _SHOWN},
                "CoalesceStreamsPreprocessor": {"enabled": True},
            }
        )
        config = super().default_config.copy()
        config.merge(own)
        return config

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        """Markdown cells and outputs, with formulas as MathML."""
        return markdown(
            source,
            attachments=context.get("cell", {}).get("attachments", {}),
            embed_images=True,
            path=context.get("resources", {}).get("metadata", {}).get("path", ""),
        )


@functools.cache
def _exporter() -> _Exporter:
    quiet = logging.getLogger("robustlib.study.report.nbconvert")
    quiet.setLevel(logging.ERROR)
    exporter = _Exporter(raw_template=_TEMPLATE, log=quiet)
    exporter.register_preprocessor(_DropErrorMarkers, enabled=True)
    return exporter


def body(notebook: nbformat.NotebookNode) -> str:
    """The cells of an executed notebook as HTML: what `build_site` makes a page of."""
    folder = paths.project_root() / "notebooks"
    text, _ = _exporter().from_notebook_node(notebook, {"metadata": {"path": str(folder)}})
    soup = BeautifulSoup(text, "html.parser")
    for tag in soup.find_all(src=_is_remote) + soup.find_all("link"):
        tag.decompose()
    for tag in soup.find_all("script"):
        tag.decompose()
    for image in soup.find_all("img", alt=re.compile("^No description has been provided")):
        image["alt"] = "figure made by the code above"
    return str(soup)


def _is_remote(url: str | None) -> bool:
    return bool(url and re.match(r"(?i)\s*(https?:)?//", url))


def title_of(notebook: nbformat.NotebookNode, default: str) -> str:
    """The text of the first top-level heading of a notebook, or `default`."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found = re.search(r"^#\s+(.+)$", cell.source, re.MULTILINE)
            if found:
                return BeautifulSoup(markdown(found[1]), "html.parser").get_text().strip()
    return default


def build_site(folder: Path, name: str, bodies: Mapping[str, str] | None = None) -> Path:
    """Write an HTML page for each executed notebook in `folder`, and `index.html`.

    `name` is the run's name. The pages are a function of the notebooks alone, so the site can be
    rebuilt at any time. `bodies`: what `body` has returned already, by the notebook's name.
    Returns the path of the index.

    Raises `ValueError` if the folder holds no notebook.
    """
    files = sorted(folder.glob("*.ipynb"))
    if not files:
        raise ValueError(f"{folder} holds no executed notebook to make a report of.")
    notebooks = [nbformat.read(file, as_version=4) for file in files]
    stems = [file.stem for file in files]
    titles = [title_of(nb, stem) for nb, stem in zip(notebooks, stems, strict=True)]
    outcomes = [recorded(nb) for nb in notebooks]
    for position, stem in enumerate(stems):
        navigation = _navigation(name, stems, titles, position)
        outcome = outcomes[position]
        cells = (bodies or {}).get(stem) or body(notebooks[position])
        content = f"{navigation}{_failure(outcome)}{cells}{_stamp(outcome)}{navigation}"
        (folder / f"{stem}.html").write_text(page(titles[position], content), encoding="utf-8")
    index = folder / "index.html"
    index.write_text(page(f"Run {name}", _index(name, stems, titles, outcomes)), encoding="utf-8")
    return index


def _navigation(name: str, stems: Sequence[str], titles: Sequence[str], position: int) -> str:
    def link(other: int, text: str) -> str:
        if not 0 <= other < len(stems):
            return "<span></span>"
        return f'<a href="{stems[other]}.html">{text.format(html.escape(titles[other]))}</a>'

    return (
        f"<nav>{link(position - 1, '← {}')}"
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
    parts += [facts[key] for key in ("processor", "gpu", "packages") if key in facts]
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
    name: str, stems: Sequence[str], titles: Sequence[str], outcomes: Sequence[Outcome]
) -> str:
    rows = []
    for stem, title, outcome in zip(stems, titles, outcomes, strict=True):
        status = '<td class="good">ok</td>'
        if outcome.error:
            status = f'<td class="bad">failed: <code>{html.escape(outcome.error)}</code></td>'
        rows.append(
            f'<tr><td><a href="{stem}.html">{html.escape(title)}</a></td>{status}'
            f'<td class="number">{duration(outcome.seconds)}</td>'
            f'<td><a href="{stem}.ipynb">{stem}.ipynb</a></td></tr>'
        )
    total = duration(sum(outcome.seconds for outcome in outcomes))
    failed = sum(bool(outcome.error) for outcome in outcomes)
    summary = f"{len(stems)} notebooks in {total}" + (f", {failed} failed" if failed else "")
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


def page(title: str, content: str) -> str:
    """A whole HTML page, styled, for desktop and phone, that fetches nothing.

    `title` is plain text; `content` is HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title>\n<style>\n{_CODE_COLOURS}\n{_STYLE}</style></head>\n"
        f"<body><main>\n{content}\n</main></body></html>\n"
    )


_CODE_COLOURS = HtmlFormatter(style="default").get_style_defs(".highlight")

_STYLE = """\
:root { --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --shade: #f5f7f9; --link: #0b5cad;
  --good: #1a7f37; --bad: #b42318; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 1.0625rem/1.6 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
a { color: var(--link); }
h1, h2, h3, h4 { line-height: 1.25; margin: 2.2em 0 .6em; }
h1 { font-size: 2rem; margin-top: .8em; }
h2 { font-size: 1.45rem; padding-bottom: .25em; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.15rem; }
.anchor-link { visibility: hidden; margin-left: .4em; text-decoration: none; color: var(--soft); }
:hover > .anchor-link { visibility: visible; }
nav { display: flex; justify-content: space-between; gap: 1.5rem; font-size: .9rem;
  padding: .6rem 0; border-bottom: 1px solid var(--line); }
nav:last-child { border: 0; border-top: 1px solid var(--line); margin-top: 2rem; }
nav > * { flex: 1; text-align: center; }
nav > :first-child { text-align: left; }
nav > :last-child { text-align: right; }
pre, code { font-family: ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; }
code { font-size: .88em; background: var(--shade); padding: .1em .3em; border-radius: 3px; }
pre { font-size: .84rem; line-height: 1.5; margin: 0; overflow-x: auto; }
pre code { background: none; padding: 0; font-size: inherit; }
.highlight { background: var(--shade); border-left: 3px solid #b9c7d8; border-radius: 3px;
  padding: .7rem .9rem; margin: 1.2rem 0 .4rem; }
.jp-OutputArea-output { overflow-x: auto; margin: .5rem 0; }
.jp-OutputArea-output pre { padding: .2rem .9rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.stderr { background: #fff4f2; }
.failure { background: #fff4f2; border-left: 3px solid var(--bad); padding: .6rem .9rem; }
.fault, .bad { color: var(--bad); }
.good { color: var(--good); }
img, svg { max-width: 100%; height: auto; }
table { border: 0; border-collapse: collapse; display: block; overflow-x: auto; max-width: 100%;
  font-size: .9rem; margin: .8rem 0; }
th, td { padding: .3rem .8rem; text-align: right; border: 0; }
thead tr { border-bottom: 2px solid var(--line); }
tbody tr:nth-child(odd) { background: var(--shade); }
.jp-RenderedMarkdown th, .jp-RenderedMarkdown td, main > table th, main > table td,
.facts th, .facts td { text-align: left; }
main > table td.number { text-align: right; white-space: nowrap; }
.facts th { font-weight: 600; vertical-align: top; white-space: nowrap; }
math { font-size: 1.06em; font-family: "STIX Two Math", "Latin Modern Math", "Cambria Math",
  "Libertinus Math", "DejaVu Math TeX Gyre", "Noto Sans Math", math; }
math[display="block"] { margin: 1rem 0; overflow-x: auto; overflow-y: hidden; }
mtd[columnalign="left"] { text-align: left; }
mtd[columnalign="right"] { text-align: right; }
blockquote { margin: 1rem 0; padding: .1rem 1rem; border-left: 3px solid var(--line);
  color: var(--soft); }
summary { cursor: pointer; padding: .2rem 0; }
.stamp { color: var(--soft); font-size: .85rem; margin-top: 2.5rem; }
.ansi-red-fg, .ansi-red-intense-fg { color: var(--bad); }
.ansi-green-fg, .ansi-green-intense-fg { color: var(--good); }
.ansi-blue-fg, .ansi-blue-intense-fg, .ansi-cyan-fg, .ansi-cyan-intense-fg { color: var(--link); }
.ansi-yellow-fg, .ansi-yellow-intense-fg { color: #8a6100; }
.ansi-yellow-bg { background: #fff0b3; }
.ansi-bold { font-weight: 700; }
@media print { nav { display: none; } .highlight, img { break-inside: avoid; } }
"""

"""An executed notebook as HTML."""

from __future__ import annotations

import ast
import functools
import logging
import re
from typing import Any

import nbformat
from bs4 import BeautifulSoup
from jinja2 import pass_context
from nbconvert.exporters import HTMLExporter
from nbconvert.preprocessors import Preprocessor
from traitlets.config import Config

from robustlib.core import paths
from robustlib.pages.markdown import is_remote, markdown

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


_READS_PARAMETERS = "parameters.read(globals())"

_NO_TEXT = "No description has been provided"  # what nbconvert writes


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
    quiet = logging.getLogger("robustlib.pages.nbconvert")
    quiet.setLevel(logging.ERROR)
    exporter = _Exporter(raw_template=_TEMPLATE, log=quiet)
    exporter.register_preprocessor(_DropErrorMarkers, enabled=True)
    return exporter


def body(notebook: nbformat.NotebookNode) -> str:
    """The cells of an executed notebook as HTML that fetches nothing.

    The parameters and the table of their values, which are long, unfold at a click.
    Every picture has an alternative text: its own or, failing that, the heading above it and the
    titles that the cell's code writes on its figures.
    """
    folder = paths.project_root() / "notebooks"
    text, _ = _exporter().from_notebook_node(notebook, {"metadata": {"path": str(folder)}})
    soup = BeautifulSoup(text, "html.parser")
    for tag in soup.find_all(src=is_remote) + soup.find_all("link"):
        tag.decompose()
    for tag in soup.find_all("script"):
        tag.decompose()
    _describe_pictures(soup, notebook)
    _fold_parameters(soup, notebook)
    return str(soup)


def _fold_parameters(soup: BeautifulSoup, notebook: nbformat.NotebookNode) -> None:
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            summary = "Show the parameters and their defaults"
        elif cell.cell_type == "code" and _READS_PARAMETERS in cell.source:
            summary = "Show the parameters of this run"
        else:
            continue
        if shown := soup.find(id=f"cell-id={cell.get('id')}"):
            folded = shown.wrap(soup.new_tag("details"))
            label = soup.new_tag("summary")
            label.string = summary
            folded.insert(0, label)


def _describe_pictures(soup: BeautifulSoup, notebook: nbformat.NotebookNode) -> None:
    code = {f"cell-id={cell.get('id')}": cell.source for cell in notebook.cells}
    heading = "Figure"
    for tag in soup.find_all(["h1", "h2", "h3", "h4", "img"]):
        if tag.name != "img":
            heading = "".join(text for text in tag.strings if text != "¶").strip() or heading
        elif str(tag.get("alt") or _NO_TEXT).startswith(_NO_TEXT):
            cell = tag.find_parent(id=code.__contains__)
            titles = _written_titles(code[str(cell["id"])]) if cell else []
            tag["alt"] = ": ".join([heading, ", ".join(titles)]) if titles else heading


def _written_titles(code: str) -> list[str]:
    """Titles and labels that calls in `code` are given as plain text."""
    try:
        tree = ast.parse(code)
    except SyntaxError:  # a line for IPython, say
        return []
    return [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword)
        and node.arg in ("title", "label", "xlabel", "ylabel")
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]


def title_of(notebook: nbformat.NotebookNode, default: str) -> str:
    """The text of the first top-level heading of a notebook, or `default`."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found = re.search(r"^#\s+(.+)$", cell.source, re.MULTILINE)
            if found:
                return BeautifulSoup(markdown(found[1]), "html.parser").get_text().strip()
    return default

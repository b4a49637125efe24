"""Markdown with LaTeX formulas as HTML with MathML, which browsers show by themselves."""

from __future__ import annotations

import functools
import html
import re
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from nbconvert.filters.markdown_mistune import (
    IPythonRenderer,
    MarkdownWithMath,
    MathInlineParser,
    import_plugin,
)

_NESTED = ("mistune.plugins.table.table_in_list", "mistune.plugins.table.table_in_quote")
_ARITY = {"mfrac": 2, "msub": 2, "msup": 2, "msubsup": 3, "mover": 2, "munder": 2}
_UNKNOWN = re.compile(r"<m[io]>(\\[A-Za-z]+|&)</m[io]>")


@functools.cache
def mathml(latex: str, display: str = "inline") -> str:
    """A LaTeX formula, without its delimiters, as MathML.

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
        if is_remote(url):
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
    reader = MarkdownWithMath(
        renderer=_Renderer(escape=False, **options),
        inline=_Inline(hard_wrap=False),
        plugins=[import_plugin(name) for name in (*MarkdownWithMath.DEFAULT_PLUGINS, *_NESTED)],
    )
    return str(reader.render(source))


def is_remote(url: str | None) -> bool:
    """Whether opening a page would fetch this address."""
    return bool(url and re.match(r"(?i)\s*(https?:)?//", url))

"""A whole page: what stands around its content."""

from __future__ import annotations

import functools
import html
from importlib import resources

from pygments.formatters import HtmlFormatter


def page(title: str, content: str) -> str:
    """A whole HTML page, styled, for desktop and phone, that fetches nothing.

    `title` is plain text; `content` is HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title>\n<style>\n{_style()}</style></head>\n"
        f"<body><main>\n{content}\n</main></body></html>\n"
    )


@functools.cache
def _style() -> str:
    code = HtmlFormatter(style="default").get_style_defs(".highlight")
    return f"{code}\n{(resources.files(__package__) / 'style.css').read_text(encoding='utf-8')}"

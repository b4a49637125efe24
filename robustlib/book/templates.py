"""The templates of the book, filled in."""

from __future__ import annotations

import base64
import functools
import re
from typing import Any

import jinja2
from markupsafe import Markup, escape

from robustlib.pages.skeleton import page


def render(template: str, title: str, **values: Any) -> str:
    """A whole page: `templates/<template>.html` with these values, escaped where it shows them."""
    return page(title, _environment().get_template(f"{template}.html").render(values))


def data_uri(png: bytes) -> str:
    """A PNG picture as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def prose(text: str) -> Markup:
    """Plain text as HTML: paragraphs, `code`, and links to papers on arXiv."""
    shown = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    shown = re.sub(
        r"arXiv (\d{4}\.\d{4,5})", r'<a href="https://arxiv.org/abs/\1">arXiv \1</a>', shown
    )
    return Markup("".join(f"<p>{part}</p>" for part in shown.split("\n\n")))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("robustlib.book"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = prose
    return environment

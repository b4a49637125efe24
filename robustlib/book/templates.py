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


def linked(text: str) -> Markup:
    """Plain text as HTML, with `code`, and papers on arXiv as links."""
    shown = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    address = r'<a href="https://arxiv.org/abs/\1">arXiv \1</a>'
    return Markup(re.sub(r"arXiv (\d{4}\.\d{4,5})", address, shown))


def prose(text: str) -> Markup:
    """As `linked`, in paragraphs, which an empty line ends."""
    return Markup("").join(Markup(f"<p>{linked(part)}</p>") for part in text.split("\n\n"))


def breakable(name: str) -> Markup:
    """A name that may go on in a new line after each underscore."""
    return Markup(str(escape(name)).replace("_", "_<wbr>"))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("robustlib.book"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"linked": linked, "prose": prose, "breakable": breakable}
    return environment

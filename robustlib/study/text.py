"""Names that come from data, in sentences written as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable


def plain(name: object) -> str:
    """`name` in one line, with nothing in it that Markdown or a formula would take for its own."""
    return re.sub(r"([\\`*_\[\]<>|$~&#])", r"\\\1", " ".join(str(name).split()))


def listed(names: Iterable[object]) -> str:
    """The names, each as `plain`, separated by commas; "none" if there are none."""
    return ", ".join(map(plain, names)) or "none"

"""The whole site."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup

from robustlib.book import corruption_pages, landing, record
from robustlib.core import paths
from robustlib.pages.notebooks import title_of
from robustlib.study.report import build_site


def build() -> Path:
    """Write the book to `reports/book/`, in place of what was there; return its first page.

    Raises `ValueError` if that folder holds executed notebooks, of a run with this name.
    """
    target = paths.reports_dir("book")
    if any(target.glob("*.ipynb")):
        raise ValueError(f"{target} holds the notebooks of a run; move them to make room.")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    corruption_pages.write(target / "corruptions")
    chapters = {
        run: (settings.about, _chapters(run, target)) for run, settings in record.RUNS.items()
    }
    first = target / "index.html"
    first.write_text(landing.landing_page(chapters, _cards(target / "cards")), encoding="utf-8")
    return first


def _chapters(run: str, target: Path) -> dict[str, str]:
    """Write the chapters of a run; return their titles by notebook, none if it isn't recorded."""
    files = sorted(record.folder(run).glob("*.ipynb"))
    if files:
        build_site(record.folder(run), run, target=target / run, home="../index.html")
    return {file.stem: title_of(nbformat.read(file, as_version=4), file.stem) for file in files}


def _cards(target: Path) -> dict[str, str]:
    """Copy the committed report cards; return their titles by file."""
    cards = sorted((paths.project_root() / "results" / "cards").glob("*.html"))
    if cards:
        target.mkdir()
    titles = {}
    for card in cards:
        shutil.copy(card, target / card.name)
        head = BeautifulSoup(card.read_text(encoding="utf-8"), "html.parser").title
        titles[card.name] = head.get_text().strip() if head else card.stem
    return titles

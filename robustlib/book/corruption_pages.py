"""A page for each corruption and an index of all: what it does, how hard it is, what it is like."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from robustlib import corruptions
from robustlib.book import pictures, results
from robustlib.book.templates import data_uri, render
from robustlib.corruptions import CorruptionInfo

SIDES = (32, 64, 224)
"""Image sides whose parameters are shown, in pixels."""

NEIGHBOURS = 5


@dataclass(frozen=True)
class Cost:
    """What a corruption costs the standard model of record.

    clean, accuracy: 0 to 1, accuracy a mean over severities. rank: 1 for the corruption that
    costs most. of: how many corruptions were measured.
    """

    clean: float
    accuracy: float
    rank: int
    of: int

    @property
    def points(self) -> float:
        """Percentage points of accuracy lost."""
        return 100 * (self.clean - self.accuracy)


@dataclass(frozen=True)
class Neighbour:
    """A corruption and its overlap with another, with the ends of the 95 % interval in words."""

    name: str
    overlap: float
    low: str
    high: str


def costs() -> dict[str, Cost]:
    """By corruption; empty before there is a run of record."""
    table = results.table("overlap_accuracy")
    if table is None:
        return {}
    standard = table.set_index("model").loc["standard"].astype(float).to_dict()
    measured = {name: standard[name] for name in corruptions.names() if name in standard}
    return {
        name: Cost(
            standard["clean"],
            accuracy,
            rank=1 + sum(other < accuracy for other in measured.values()),
            of=len(measured),
        )
        for name, accuracy in measured.items()
    }


def neighbours() -> dict[str, list[Neighbour]]:
    """The corruptions that overlap most with each, at most `NEIGHBOURS`, the nearest first.

    Only corruptions with a score are in it.
    """
    table = results.table("overlap")
    if table is None:
        return {}
    known = table.dropna(subset="overlap").sort_values("overlap", ascending=False)
    found: dict[str, list[Neighbour]] = {}
    for row in known.to_dict("records"):
        near = row["overlap"], _end(row["low"]), _end(row["high"])
        for name, other in permutations((row["first"], row["second"])):
            if {name, other} <= set(corruptions.names()):
                found.setdefault(name, []).append(Neighbour(other, *near))
    return {name: near[:NEIGHBOURS] for name, near in found.items()}


def write(folder: Path) -> Path:
    """Write `<name>.html` for each corruption, and `index.html`; return the path of the index."""
    folder.mkdir(parents=True, exist_ok=True)
    lost, near = costs(), neighbours()
    settings = results.origin("overlap_accuracy").get("parameters", {})
    names = corruptions.names()
    clean = data_uri(pictures.clean())
    for position, name in enumerate(names):
        text = render(
            "corruption",
            name,
            info=corruptions.info(name),
            text=inspect.getdoc(corruptions.info(name).function),
            clean=clean,
            shown={s: data_uri(pictures.corrupted(name, s)) for s in pictures.SEVERITIES},
            parameters=parameter_rows(corruptions.info(name)),
            suites=[s for s in corruptions.suites() if name in corruptions.names(s)],
            cost=lost.get(name),
            neighbours=near.get(name, []),
            settings=settings,
            before=names[position - 1] if position else "",
            after=names[position + 1] if position + 1 < len(names) else "",
        )
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    index = folder / "index.html"
    text = render(
        "corruptions",
        "All corruptions",
        families=corruptions.families(),
        thumbnails={name: data_uri(pictures.thumbnail(name)) for name in names},
        costs=lost,
    )
    index.write_text(text, encoding="utf-8")
    return index


def parameter_rows(info: CorruptionInfo) -> list[tuple[str, str, list[str]]]:
    """Image side, name of the parameter, and its values at severity 1 to 5, all in words.

    The sides are those that parameters are published for, of `SIDES`; all of these where they
    scale with the image.
    """
    sides = sorted({info.table_side(side) or side for side in SIDES})
    by_side = {side: info.parameters(side) for side in sides}
    if len({repr(rows) for rows in by_side.values()}) == 1 and info.table_side(32) is None:
        by_side = {0: by_side[sides[0]]}
    return [
        (f"{side} px" if side else "any", name, [_shown(row[name]) for row in rows])
        for side, rows in by_side.items()
        for name in rows[0]
    ]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{_shown(value[0])}, {_shown(value[1])} … {_shown(value[-1])}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _end(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "no end"

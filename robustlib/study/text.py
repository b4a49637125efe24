"""What stands in sentences and tables: names that come from data, intervals, verdicts."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd

from robustlib.analysis import hypotheses, interval_text


def plain(name: object) -> str:
    """`name` in one line, with nothing in it that Markdown or a formula would take for its own."""
    return re.sub(r"([\\`*_\[\]<>|$~&#])", r"\\\1", " ".join(str(name).split()))


def listed(names: Iterable[object]) -> str:
    """The names, each as `plain`, separated by commas; "none" if there are none."""
    return ", ".join(map(plain, names)) or "none"


def with_halves(table: pd.DataFrame, value: str, *, scale: float = 100) -> pd.Series:
    """Numbers with half of their intervals, each on one line: "82.1 ± 0.6".

    Args:
        table: with the columns `value`, low and high.
        value: name of the column of the numbers.
        scale: 100 for accuracies in percent, 1 for what is in percent already.
    """
    halves = (table["high"] - table["low"]) / 2
    shown = [
        f"{scale * number:.1f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{scale * half:.1f}"
        for number, half in zip(table[value], halves, strict=True)
    ]
    return pd.Series(shown, table.index, dtype=object)


def verdict_table(claims: pd.DataFrame) -> pd.DataFrame:
    """A family of tested claims, narrow enough to be read beside its verdicts.

    claims: as from `analysis.hypotheses_table`; other columns are left out, but "run".

    Returns the columns claim (with what was measured), test, value with its 95 % interval, p by
    Holm, and verdict; the run first, if there is one.
    """
    tests = zip(claims["test"], claims["above"], strict=True)
    values = zip(claims["value"], claims["low"], claims["high"], strict=True)
    found = {
        "claim": claims["statement"] + ": " + claims["measure"],
        "test": [hypotheses.in_words(test, above) for test, above in tests],
        "value (95 % interval)": [f"{x:.3f} ({interval_text(*ends)})" for x, *ends in values],
        "p, by Holm": ["< 0.001" if p < 0.001 else f"{p:.3f}" for p in claims["p_holm"]],
        "verdict": claims["verdict"],
    }
    return pd.DataFrame({"run": claims["run"], **found} if "run" in claims else found)

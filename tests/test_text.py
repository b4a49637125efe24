from __future__ import annotations

import math

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from robustlib.pages.markdown import markdown
from robustlib.study.text import listed, plain, verdict_table, with_halves

NAMES = ["gaussian_noise", "__init__", "*a* and **b**", "5$ and $x$", "a|b", "[a](b)", "`code`",
         "~~a~~", "back\\slash", "<b>bold</b>", "&amp;", "# title", "日本"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_come_out_of_markdown_as_they_are(name: str) -> None:
    text = plain(name)
    for source in (text, f"- **{text}** is first.", f"| a |\n|---|\n| {text} |"):
        page = BeautifulSoup(markdown(source), "html.parser")
        assert name in page.get_text()
        assert not page.find(["em", "code", "a", "b", "del", "math", "h1"])


def test_lists() -> None:
    assert listed(["a_b", "c"]) == r"a\_b, c"
    assert listed([]) == "none"
    assert plain("two\nlines") == "two lines"


def test_half_of_an_interval_stays_beside_its_number() -> None:
    table = pd.DataFrame({"accuracy": [0.8214], "mce": [93.04], "low": [0.81], "high": [0.83]})
    space = "\N{NO-BREAK SPACE}"
    assert with_halves(table, "accuracy")[0].split(space) == ["82.1", "±", "1.0"]
    errors = table.assign(low=92.0, high=95.0)
    assert with_halves(errors, "mce", scale=1)[0].split(space) == ["93.0", "±", "1.5"]
    assert list(with_halves(table.head(0), "accuracy")) == []


def test_verdicts_say_what_was_tested() -> None:
    claims = pd.DataFrame(
        {
            "statement": ["helps", "no loss"],
            "measure": ["mean gain", "gain"],
            "test": ["superiority", "non-inferiority"],
            "value": [0.02, -0.001],
            "low": [0.01, -0.004],
            "high": [0.03, 0.002],
            "above": [0.0, -0.01],
            "p_holm": [0.0004, 0.2],
            "verdict": ["supported", "undecided"],
        }
    )
    first, second = verdict_table(claims).to_dict("records")
    assert list(first.values()) == [
        "helps: mean gain", "superiority", "0.020 (0.010 to 0.030)", "< 0.001", "supported"
    ]  # fmt: skip
    assert second["test"] == "non-inferiority, margin 0.01"
    assert second["p, by Holm"] == "0.200"
    unknown = claims.assign(value=math.nan, low=math.nan, high=math.nan, p_holm=math.nan)
    assert list(verdict_table(unknown).iloc[0, 2:4]) == ["nan (undefined)", "nan"]
    one_sided = verdict_table(claims.assign(high=math.inf))
    assert one_sided["value (95 % interval)"][0] == "0.020 (at least 0.010)"
    assert verdict_table(claims.assign(run="mine")).columns[0] == "run"

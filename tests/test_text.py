from __future__ import annotations

import pytest

from robustlib.study.report import markdown
from robustlib.study.text import listed, plain


@pytest.mark.parametrize(
    "name",
    ["gaussian_noise", "__init__", "*a* and **b**", "5$ and $x$", "a|b", "[a](b)", "`code`", "~~a~~",
     "back\\slash", "<b>bold</b>", "&amp;", "# title", "日本"],
)  # fmt: skip
def test_names_come_out_of_markdown_as_they_are(name: str) -> None:
    from bs4 import BeautifulSoup

    for source in (
        plain(name),
        f"- **{plain(name)}** is first.",
        f"| a |\n|---|\n| {plain(name)} |",
    ):
        page = BeautifulSoup(markdown(source), "html.parser")
        assert name in page.get_text()
        assert not page.find(["em", "code", "a", "b", "del", "math", "h1"])


def test_lists() -> None:
    assert listed(["a_b", "c"]) == r"a\_b, c"
    assert listed([]) == "none"
    assert plain("two\nlines") == "two lines"

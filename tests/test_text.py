from __future__ import annotations

import pytest
from bs4 import BeautifulSoup

from robustlib.pages.markdown import markdown
from robustlib.study.text import listed, plain

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

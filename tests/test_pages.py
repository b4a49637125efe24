"""How a page is made: formulas, Markdown, alternative texts."""

from __future__ import annotations

import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from robustlib.pages.markdown import markdown, mathml
from robustlib.pages.notebooks import body
from robustlib.pages.skeleton import page

FORMULAS = [
    r"R_m(c) = \frac{A_m(c)}{A_m(\mathrm{clean})}",
    r"\begin{aligned} a &= b \\ c &= d \end{aligned}",
    r"\tilde x' = \operatorname{clip}_{[0,1]}\bigl(\tilde x - \varepsilon\,\nabla_x L\bigr)",
    r"\hat y = \arg\max_k f_k(x)",
    r"\|\delta\|_\infty \le 8/255,\; 50\,\%",
]


@pytest.mark.parametrize("latex", FORMULAS)
def test_formulas_become_mathml(latex: str) -> None:
    result = mathml(latex, "block")
    assert result.startswith("<math")
    assert "\\" not in result


@pytest.mark.parametrize("latex", [r"\nosuchcommand x", r"\frac{1", "a & b", ""])
def test_faulty_formulas_raise_and_are_shown_as_source(latex: str) -> None:
    with pytest.raises(ValueError, match="formula"):
        mathml(latex)
    if latex:
        assert 'class="fault"' in markdown(f"See ${latex}$.")


@pytest.mark.parametrize(
    ("source", "formulas"),
    [
        (r"Score $R_m(c)$ and $a_1 * b_1 * c$.", 2),
        ("$$\na_1 + b_1\n\n= c\n$$", 1),
        (r"\begin{align*} a &= b \end{align*}", 1),
        ("It costs $5 and $10.", 0),
        ("It costs $5, and $x$ is 3.", 1),
        (r"A price of \$5 or \$6.", 0),
        ("`$a$` and `b $c$`", 0),
        ("```\n$a$ and $$b$$\n```", 0),
        ("| a | b |\n|---|---|\n| $x_1$ | $y_1$ |", 2),
        ("# Title with $x$", 1),
    ],
)
def test_only_formulas_are_formulas(source: str, formulas: int) -> None:
    result = markdown(source)
    assert result.count("<math") == formulas
    assert "<em>" not in result
    assert 'class="fault"' not in result


PICTURE = {"image/png": "iVBORw0KGgo="}
ADDRESS = "data:image/png;base64,iVBORw0KGgo="


def pictured(*code: str) -> str:
    outputs = [new_output("display_data", PICTURE)]
    return body(new_notebook(cells=[new_code_cell(c, outputs=outputs) for c in code]))


def alternatives(text: str) -> list[str]:
    return [image["alt"] for image in BeautifulSoup(text, "html.parser").find_all("img")]


def test_tables_in_lists_and_quotes_are_tables() -> None:
    table = ["| a | b |", "|---|---|", "| $x$ | 2 |"]
    for source in (
        "1. Compute:\n\n" + "".join(f"   {line}\n" for line in table),
        "".join(f"> {line}\n" for line in table),
    ):
        cells = BeautifulSoup(markdown(source), "html.parser").find_all("td")
        assert [cell.get_text() for cell in cells] == ["x", "2"]


def test_pictures_are_described_by_their_heading_and_their_titles() -> None:
    outputs = [new_output("display_data", PICTURE)] * 2
    table = new_output("display_data", {"text/html": f"<img src='{ADDRESS}'>"})
    plot = "draw(x, title='Gain', label='points')\ndraw(y, title=f'{x} of', ylabel=name)"
    cells = [
        new_markdown_cell(f"# A\n\n## The gains of $x$\n\n![mine]({ADDRESS})"),
        new_markdown_cell(f"![]({ADDRESS})"),
        new_code_cell(plot, outputs=outputs),
        new_code_cell("%matplotlib inline", outputs=outputs[:1]),
        new_code_cell("show()", outputs=[table]),
    ]
    assert alternatives(body(new_notebook(cells=cells))) == [
        "mine",
        "The gains of x",
        "The gains of x: Gain, points",
        "The gains of x: Gain, points",
        "The gains of x",
        "The gains of x",
    ]
    assert alternatives(pictured("show()")) == ["Figure"]


def test_a_page_escapes_its_title_and_keeps_its_content() -> None:
    soup = BeautifulSoup(page("a < b", "<p>c &lt; d</p>"), "html.parser")
    assert soup.title
    assert soup.title.string == "a < b"
    assert soup.main
    assert soup.main.get_text().strip() == "c < d"
    assert soup.find("meta", attrs={"name": "viewport"})


def test_parameters_are_folded_and_results_are_not() -> None:
    cells = [
        new_code_cell("epochs: int = 2", metadata={"tags": ["parameters"]}),
        new_code_cell("epochs = 3", metadata={"tags": ["injected-parameters"]}),
        new_code_cell("settings = parameters.read(globals())"),
        new_code_cell("train(settings)"),
    ]
    soup = BeautifulSoup(body(new_notebook(cells=cells)), "html.parser")
    folded = [details.get_text() for details in soup.find_all("details")]
    assert [text.split("\n")[0] for text in folded] == [
        "Show the parameters and their defaults",
        "Show the parameters of this run",
    ]
    assert "epochs: int = 2" in folded[0]
    assert "parameters.read(globals())" in folded[1]
    assert "epochs = 3" in soup.get_text()
    assert not any("epochs = 3" in text or "train(" in text for text in folded)

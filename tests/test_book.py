"""The book: which notebooks may be of record, and pages that read offline."""

from __future__ import annotations

import base64
import inspect
import io
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from robustlib import corruptions
from robustlib.book import corruption_pages, headlines, landing, record, site
from robustlib.book.__main__ import main
from robustlib.book.templates import breakable, linked, prose
from robustlib.core import paths
from robustlib.pages.notebooks import body
from robustlib.study.report import Outcome
from robustlib.study.report import record as note

ROOT = Path(__file__).resolve().parent.parent
STEM = "00_a"
OUTCOME = Outcome(
    seconds=3.0,
    parameters={"epochs": 2, "run": "default", "device": "cpu"},
    provenance={"date": "2026-01-02 03:04:05", "commit": "abc", "packages": "torch 2"},
)
PICTURE = {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure size 7x5 with 1 Axes>"}


def parameters(**tags: list[str]) -> NotebookNode:
    lines = (
        "epochs: int = 2  # passes\nrun: str = 'study'  # name\ndevice: str = 'auto'  # where to"
    )
    return new_code_cell(lines, metadata=tags)


def write_source(root: Path, *, text: str = "# Title", code: str = "1 + 1") -> None:
    cells = [new_markdown_cell(text), parameters(tags=["parameters"]), new_code_cell(code)]
    (root / "notebooks").mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), root / "notebooks" / f"{STEM}.ipynb")


def executed(root: Path, outcome: Outcome = OUTCOME) -> NotebookNode:
    """What the study leaves: an injected cell, outputs, and the outcome."""
    notebook = nbformat.read(root / "notebooks" / f"{STEM}.ipynb", as_version=4)
    injected = new_code_cell('run = "default"', metadata={"tags": ["injected-parameters"]})
    notebook.cells.insert(2, injected)
    for number, cell in enumerate(notebook.cells[1:], start=1):
        cell.execution_count = number
    notebook.cells[3].outputs = [
        new_output("execute_result", {"text/plain": "2"}, execution_count=3),
        new_output("display_data", PICTURE),
    ]
    note(notebook, outcome)
    return notebook


def finish(root: Path, notebook: NotebookNode, run: str = "default") -> None:
    """Write it where a finished run lies."""
    (root / "reports" / run).mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, root / "reports" / run / f"{STEM}.ipynb")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one notebook."""
    monkeypatch.delenv("ROBUSTLIB_REPORTS", raising=False)
    monkeypatch.setattr(paths, "project_root", lambda: tmp_path)
    write_source(tmp_path)
    return tmp_path


# --- Notebooks of record --------------------------------------------------------------------------


RECORDED = [pytest.param(file, id=f"{file.parent.name}/{file.stem}") for file in record.recorded()]


def test_there_are_notebooks_of_record() -> None:
    assert RECORDED


@pytest.mark.parametrize("file", RECORDED)
def test_the_notebooks_of_record_are_fresh(file: Path) -> None:
    assert record.faults(nbformat.read(file, as_version=4), file.stem, file.parent.name) == []


def test_an_executed_notebook_of_today_has_no_fault(project: Path) -> None:
    assert record.faults(executed(project), STEM, "default") == []


def with_output(**output: object) -> Callable[[NotebookNode], None]:
    def change(notebook: NotebookNode) -> None:
        notebook.cells[3].outputs.append(new_output(**output))

    return change


def with_outcome(**values: object) -> Callable[[NotebookNode], None]:
    def change(notebook: NotebookNode) -> None:
        note(notebook, Outcome(**{**vars(OUTCOME), **values}))

    return change


def never_executed(notebook: NotebookNode) -> None:
    notebook.cells[3].execution_count = None


def with_other_text(notebook: NotebookNode) -> None:
    notebook.cells[0].source = "# Another title"


def with_other_code(notebook: NotebookNode) -> None:
    notebook.cells[3].source = "1 + 2"


def with_a_path_in_its_metadata(notebook: NotebookNode) -> None:
    notebook.metadata["papermill"] = {"output_path": "/srv/someone/out.ipynb"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_other_code, "its code is out of date"),
        (with_other_text, "its text is out of date; .* --text"),
        (never_executed, "not all of its cells were executed"),
        (with_outcome(error="KeyError: 'x'"), "it stopped with KeyError: 'x'"),
        (with_outcome(provenance={"date": "today"}), "its provenance lacks commit, packages"),
        (
            with_outcome(parameters={**OUTCOME.parameters, "epochs": 1}),
            "its parameters are not those of the run 'default': epochs 1 instead of 2",
        ),
        (
            with_output(output_type="stream", text="x" * record.LIMIT),
            r"it has 2\.00 MB, 2 or more",
        ),
        (
            with_output(output_type="stream", text="read /srv/someone/images/a.png"),
            "paths of a machine: /srv/someone/images/a.png",
        ),
        (
            with_output(output_type="display_data", data={"text/html": "<b>C:\\Users\\me</b>"}),
            "paths of a machine: C:",
        ),
        (with_a_path_in_its_metadata, "paths of a machine: /srv/someone/out.ipynb"),
    ],
)
def test_each_fault_is_found_and_named(
    project: Path, change: Callable[[NotebookNode], None], message: str
) -> None:
    notebook = executed(project)
    change(notebook)
    (fault,) = record.faults(notebook, STEM, "default")
    assert re.search(message, fault)


@pytest.mark.parametrize(
    "text",
    [
        "see https://arxiv.org/abs/1909.02436/v2",
        "8/255/3 and a/b/c",
        "<td>1</td></tr>",
        "data/cifar10/x.png",
        '<img src="data:image/png;base64,/9j/4AAQ/Skk+/ab/cd=">',
    ],
)
def test_what_looks_like_a_path_is_none(project: Path, text: str) -> None:
    notebook = executed(project)
    with_output(output_type="display_data", data={"text/html": text, "image/png": "/9j/ab/cd"})(
        notebook
    )
    assert record.faults(notebook, STEM, "default") == []


def test_a_notebook_that_is_gone_is_a_fault(project: Path) -> None:
    notebook = executed(project)
    (project / "notebooks" / f"{STEM}.ipynb").unlink()
    (fault,) = record.faults(notebook, STEM, "default")
    assert "no notebook 00_a.ipynb any more" in fault


def test_a_run_is_recorded_with_the_text_of_today(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(project, executed(project))
    write_source(project, text="# A better title")
    assert main(["--record", "default"]) == 0
    (file,) = record.recorded()
    assert file == project / "reports" / "record" / "default" / f"{STEM}.ipynb"
    kept = nbformat.read(file, as_version=4)
    assert [cell.source for cell in kept.cells][::2] == ["# A better title", 'run = "default"']
    assert kept.cells[3].outputs[0].data == {"text/plain": "2"}
    assert record.faults(kept, STEM, "default") == []
    assert "00_a.ipynb" in capsys.readouterr().out


def test_edited_text_is_taken_over_and_edited_code_is_not(project: Path) -> None:
    finish(project, executed(project))
    (file,) = record.record("default")
    before = file.read_text()
    assert record.take_over_text() == []
    write_source(project, text="# New", code="1 + 3")
    assert record.take_over_text() == []
    assert file.read_text() == before
    write_source(project, text="# New")
    assert record.take_over_text() == [file]
    assert json.loads(file.read_text())["cells"][0]["source"] in ("# New", ["# New"])


def test_a_run_with_a_fault_is_refused_as_a_whole(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(project, executed(project))
    bad = executed(project)
    with_outcome(parameters={**OUTCOME.parameters, "epochs": 1})(bad)
    nbformat.write(bad, project / "reports" / "default" / "01_b.ipynb")
    source = project / "notebooks"
    (source / "01_b.ipynb").write_bytes((source / f"{STEM}.ipynb").read_bytes())
    assert main(["--record", "default"]) == 2
    assert "01_b.ipynb: its parameters" in capsys.readouterr().err
    assert record.recorded() == []


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("defalt", "Did you mean 'default'"),
        ("cifar10", r"robustlib\.study --params params/cifar10"),
    ],
)
def test_a_run_that_is_not_there_is_refused(
    project: Path, run: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--record", run]) == 2
    assert re.search(message, capsys.readouterr().err)


# --- The site -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The book of a project with the committed results, one notebook of record and one card."""
    root = tmp_path_factory.mktemp("project")
    (root / "results" / "cards").mkdir(parents=True)
    (root / "results" / "cifar10").symlink_to(ROOT / "results" / "cifar10")
    card = "<html><head><title>Card of a &amp; b</title></head><body>x</body></html>"
    (root / "results" / "cards" / "mine.html").write_text(card)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ROBUSTLIB_REPORTS", raising=False)
        patch.setattr(paths, "project_root", lambda: root)
        write_source(root, text="# A chapter\n\nScore $R_m$.")
        finish(root, executed(root))
        record.record("default")
        yield site.build().parent


def pages(book: Path) -> Iterator[tuple[Path, BeautifulSoup]]:
    for file in sorted(book.rglob("*.html")):
        yield file, BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")


def shown(file: Path) -> str:
    text = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser").get_text(" ")
    return re.sub(r" (?=[.,;:])", "", " ".join(text.split()))


def test_pages_fetch_nothing_and_every_picture_says_what_it_shows(book: Path) -> None:
    pictures = 0
    for file, soup in pages(book):
        assert not soup.find(["script", "link", "base", "iframe"]), file
        assert not re.search(r"@import|url\(", file.read_text()), file
        for tag in soup.find_all(src=True):
            assert tag["src"].startswith("data:"), file
        for image in soup.find_all("img"):
            assert image.get("alt", "").strip(), file
            assert "No description" not in image["alt"], file
            pictures += 1
    assert pictures > 6 * len(corruptions.names())


def test_links_lead_somewhere(book: Path) -> None:
    for file, soup in pages(book):
        for link in soup.find_all("a", href=True):
            address, _, anchor = link["href"].partition("#")
            if address.startswith("https://"):
                continue
            target = (file.parent / address).resolve() if address else file
            assert target.is_file(), f"{file}: {link['href']}"
            if anchor:
                assert soup.find(id=anchor), f"{file}: {link['href']}"


def test_the_first_page_is_light_and_leads_everywhere(book: Path) -> None:
    first = book / "index.html"
    assert first.stat().st_size < 1_000_000
    links = {a["href"] for a in BeautifulSoup(first.read_text(), "html.parser").find_all("a")}
    assert {"corruptions/index.html", "default/00_a.html", "default/index.html"} <= links
    assert "cards/mine.html" in links
    text = shown(first)
    assert "A chapter" in text
    assert "Card of a & b" in text
    assert "This run is not recorded yet." in text
    assert (book / "cards" / "mine.html").read_text().endswith("x</body></html>")


def test_headlines_say_what_the_tables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {
        "adversarial_overlap": pd.DataFrame(
            {
                "method": ["fgsm", "pgd", "pgd", "pgd", "pgd"],
                "radius": [2.0, 2.0, 2.0, 2.0, 8.0],
                "gain_low": [0.1, 0.1, -0.1, -0.2, 0.1],
                "gain_high": [0.2, 0.2, 0.1, -0.1, 0.2],
            }
        ),
        "mtlat_gains": pd.DataFrame(
            {
                "comparison": ["equal steps", "equal compute", "equal compute"],
                "recipe": ["mtlat", "mtlat", "pgd"],
                "group": ["clean images"] * 3,
                "gain": [0.5, -0.0123, 0.5],
                "low": [0.4, -0.0201, 0.4],
                "high": [0.6, 0.0049, 0.6],
            }
        ),
        "effective_numbers": pd.DataFrame(
            {
                "benchmark": ["ImageNet-C, 15", "ImageNet-C, 15", "all"],
                "order": [0, 1, 1],
                "effective_number": [9.0, 3.44, 9.0],
                "low": [8.0, 3.01, 8.0],
                "high": [10.0, 3.99, 10.0],
                "corruptions": [14, 14, 42],
            }
        ),
    }
    monkeypatch.setattr(headlines.results, "table", tables.get)
    assert "radius 2/255 clearly helps on 1 of 3 corruptions, and clearly harms on 1." in (
        headlines.independence()
    )
    assert headlines.mtlat().endswith("at equal compute: clean images -1.2 (-2.0 to 0.5).")
    assert "14 have a score: they are worth 3.4 (3.0 to 4.0)" in headlines.overlap()
    monkeypatch.setattr(headlines.results, "table", lambda name: None)
    assert [question.headline() for question in landing.QUESTIONS] == ["", "", ""]


@pytest.mark.parametrize("question", landing.QUESTIONS, ids=lambda q: q.claims)
def test_answers_are_those_of_the_committed_tables(book: Path, question: landing.Question) -> None:
    text = shown(book / "index.html")
    assert question.text in text
    file = ROOT / "results" / "cifar10" / f"{question.claims}.csv"
    claims = pd.read_csv(file) if file.is_file() else pd.DataFrame()
    answer = landing.answer(question)
    assert len(answer.claims) == len(claims)
    for claim in claims.itertuples():
        assert f"{claim.verdict}: {claim.statement}." in text
        assert f"{claim.measure}: {claim.value:.3f} (" in text
    assert (
        answer.picture.startswith("data:image/png")
        == (file.parent / f"{question.picture}.png").is_file()
    )


def test_without_results_the_book_says_so(project: Path) -> None:
    (project / "results" / "cifar10").mkdir(parents=True)
    first = site.build()
    text = shown(first)
    assert text.count("There is no result of record yet.") == len(landing.QUESTIONS)
    assert text.count("No executed chapter is recorded yet.") == len(landing.QUESTIONS)
    assert text.count("This run is not recorded yet.") == len(record.RUNS)
    assert "There is none yet." in text
    fog = shown(first.parent / "corruptions" / "fog.html")
    assert "It has not been measured" in fog
    assert "Its overlap with others has not been measured" in fog


def test_a_run_named_book_is_not_overwritten(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(project, executed(project), run="book")
    assert main([]) == 2
    assert "holds the notebooks of a run" in capsys.readouterr().err
    assert (project / "reports" / "book" / f"{STEM}.ipynb").is_file()


@pytest.mark.parametrize("name", corruptions.names())
def test_each_corruption_has_a_page(book: Path, name: str) -> None:
    file = book / "corruptions" / f"{name}.html"
    text = shown(file)
    info = corruptions.info(name)
    procedure = re.sub(r"[\s`]", "", inspect.getdoc(info.function) or "")
    assert procedure
    assert procedure in re.sub(r"\s", "", text)
    assert info.source in text
    soup = BeautifulSoup(file.read_text(), "html.parser")
    assert [i["alt"].rpartition(" ")[2] for i in soup.find_all("img")] == ["clean", *"12345"]
    assert len({image["src"] for image in soup.find_all("img")}) >= 5
    index = BeautifulSoup((book / "corruptions" / "index.html").read_text(), "html.parser")
    assert len(index.find_all("a", href=f"{name}.html")) == 2


def test_cost_and_neighbours_are_those_of_the_run_of_record(book: Path) -> None:
    folder = ROOT / "results" / "cifar10"
    accuracy = pd.read_csv(folder / "overlap_accuracy.csv", index_col="model").loc["standard"]
    overlap = pd.read_csv(folder / "overlap.csv")
    for name in corruptions.names():
        text = shown(book / "corruptions" / f"{name}.html")
        if name not in accuracy:
            assert "It has not been measured" in text
            continue
        lost = 100 * (accuracy["clean"] - accuracy[name])
        assert f"loses {lost:.1f} points of accuracy" in text
        harder = (accuracy.drop(["clean", "adversarial"]) < accuracy[name]).sum()
        assert f"number {harder + 1} of {len(accuracy) - 2}" in text
        pairs = overlap[(overlap["first"] == name) | (overlap["second"] == name)].dropna(
            subset="overlap"
        )
        pairs = pairs[(pairs["first"] != "adversarial") & (pairs["second"] != "adversarial")]
        near = pairs.nlargest(corruption_pages.NEIGHBOURS, "overlap")
        others = near["first"].where(near["first"] != name, near["second"])
        for other, value in zip(others, near["overlap"], strict=True):
            assert f"{other} {value:.2f}" in text
        assert ("It has no overlapping score" in text) == near.empty


def test_parameters_are_those_in_use() -> None:
    def rows(name: str) -> list[tuple[str, str, list[str]]]:
        return corruption_pages.parameter_rows(corruptions.info(name))

    assert rows("gaussian_noise") == [
        ("32 px", "sigma", ["0.04", "0.06", "0.08", "0.09", "0.1"]),
        ("64 px", "sigma", ["0.04", "0.08", "0.12", "0.15", "0.18"]),
        ("224 px", "sigma", ["0.08", "0.12", "0.18", "0.26", "0.38"]),
    ]
    assert rows("gaussian") == [
        ("any", "sigma", ["0.05", "0.0825", "0.115", "0.1475", "0.18"]),
    ]
    assert [side for side, _, _ in rows("border")] == ["32 px", "64 px", "224 px"]
    assert rows("border")[0] == ("32 px", "width_px", ["1", "3", "4", "5", "7"])
    assert [side for side, _, _ in rows("perlin_noise")] == ["224 px"]
    assert rows("zoom_blur")[0][2][0] == "1, 1.01 … 1.06"


@pytest.mark.parametrize(
    ("verdicts", "sentence"),
    [
        ([], "There is no result of record yet."),
        (["supported"], "The claim is supported."),
        (["undecided"] * 3, "All 3 claims are undecided."),
        (
            ["supported", "contradicted", "supported"],
            "Of 3 claims: 2 supported, 1 contradicted.",
        ),
    ],
)
def test_verdicts_are_summed_up(verdicts: list[str], sentence: str) -> None:
    assert landing.summary(verdicts) == sentence


def test_measurements_in_words() -> None:
    row = {"measure": "gain", "value": 0.0123, "low": -0.5, "high": 0.25}
    tested = {**row, "test": "equivalence", "above": -0.1}
    assert landing.measured({**tested, "high": float("inf")}) == (
        "gain: 0.012 (95 % interval: at least -0.500; test of equivalence, margin 0.1)"
    )
    assert landing.measured({**tested, "test": "superiority", "above": 0.0}) == (
        "gain: 0.012 (95 % interval: -0.500 to 0.250; test of superiority)"
    )
    assert "at most 0.250;" in landing.measured({**tested, "low": -float("inf")})


def test_text_in_templates_is_escaped() -> None:
    assert linked("a < `b`, arXiv 1909.02436") == (
        'a &lt; <code>b</code>, <a href="https://arxiv.org/abs/1909.02436">arXiv 1909.02436</a>'
    )
    assert prose("a\nb\n\n<c>") == "<p>a\nb</p><p>&lt;c&gt;</p>"
    assert breakable("a_b<") == "a_<wbr>b&lt;"


@pytest.mark.slow
@pytest.mark.parametrize("file", RECORDED)
def test_chapters_describe_their_pictures(file: Path) -> None:
    soup = BeautifulSoup(body(nbformat.read(file, as_version=4)), "html.parser")
    for image in soup.find_all("img"):
        assert image["alt"].strip()
        assert "No description" not in image["alt"]
    assert not soup.find(class_="fault")


# --- make -----------------------------------------------------------------------------------------


def test_make_builds_the_book_and_cleans_all_but_the_record(tmp_path: Path) -> None:
    for folder in ("record/default", "study", "book"):
        (tmp_path / "reports" / folder).mkdir(parents=True)
        (tmp_path / "reports" / folder / "a.ipynb").touch()
    for folder in ("robustlib", "tests", "benchmarks", "notebooks"):
        (tmp_path / folder).mkdir()
    command = ["make", "-f", str(ROOT / "Makefile"), "clean"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    left = [f.relative_to(tmp_path / "reports") for f in (tmp_path / "reports").rglob("*.ipynb")]
    assert left == [Path("record/default/a.ipynb")]
    dry = subprocess.run(
        ["make", "-n", "report"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert "-m robustlib.book" in dry.stdout


def test_images_that_are_not_ours_are_left_out(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(record.RUNS, "default", record.Run("photographs", own_images=False))
    finish(project, executed(project))
    assert record.record("default")
    write_source(project, code="figure = plotting.image_grid(images)")
    notebook = executed(project)
    (fault,) = record.faults(notebook, STEM, "default")
    assert "may not be published" in fault
    finish(project, notebook)
    (file,) = record.record("default")
    kept = nbformat.read(file, as_version=4)
    assert [output.data for output in kept.cells[3].outputs] == [
        {"text/plain": "2"},
        {"text/markdown": record.LEFT_OUT},
    ]
    assert record.faults(kept, STEM, "default") == []


def test_every_call_that_shows_images_exists() -> None:
    sources = [path.read_text() for path in (ROOT / "notebooks").glob("*.ipynb")]
    assert all(any(call in text for text in sources) for call in record.SHOWS_IMAGES)


def test_heavy_pictures_are_stored_in_256_colours() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    small = base64.b64encode(b"no picture, but small").decode()
    cell = nbformat.v4.new_code_cell("draw()")
    for data in (base64.b64encode(held.getvalue()).decode(), small):
        cell.outputs.append(nbformat.v4.new_output("display_data", {"image/png": data}))
    (light,) = record.with_light_pictures(nbformat.v4.new_notebook(cells=[cell])).cells
    stored = base64.b64decode(light.outputs[0].data["image/png"])
    assert len(stored) < len(held.getvalue()) / 2
    shown = np.asarray(Image.open(io.BytesIO(stored)).convert("RGB"), dtype=int)
    assert np.abs(shown - pixels).mean() < 32
    assert light.outputs[1].data["image/png"] == small

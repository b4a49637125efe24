from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from robustlib.core import paths
from robustlib.study import report, results
from robustlib.study.report import Outcome, build_site
from robustlib.study.runner import main, plan
from tests.conftest import gone

METADATA = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


class Study:
    """A folder of small notebooks, and the reports made of them."""

    def __init__(self, root: Path) -> None:
        self.notebooks = root / "notebooks"
        self.notebooks.mkdir()
        self.reports = root / "reports"

    def add(self, stem: str, *code: str, parameters: str = "epochs: int = 2  # passes") -> None:
        cells = [
            new_markdown_cell(f"# Notebook {stem}\n\nScore $R_m$."),
            new_code_cell(parameters, metadata={"tags": ["parameters"]}),
            *map(new_code_cell, code),
        ]
        path = self.notebooks / f"{stem}.ipynb"
        nbformat.write(new_notebook(cells=cells, metadata=METADATA), path)

    def run(self, *arguments: str) -> int:
        return main(arguments, notebooks=self.notebooks)

    def executed(self, stem: str, run: str = "study") -> nbformat.NotebookNode:
        return nbformat.read(self.reports / run / f"{stem}.ipynb", as_version=4)

    def printed(self, stem: str, run: str = "study") -> str:
        cells = self.executed(stem, run).cells
        return "".join(o.text for c in cells for o in c.get("outputs", []) if "text" in o)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("ROBUSTLIB_REPORTS", str(tmp_path / "reports"))
    monkeypatch.setenv("ROBUSTLIB_STORE", str(tmp_path / "store"))
    return Study(tmp_path)


class References(HTMLParser):
    """What a browser would fetch when it opens a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)
        self.found += re.findall(r"@import[^;]*|url\((?!['\"]?data:)[^)]*\)", text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        fetched = [values.get("src"), values.get("srcset"), values.get("data")]
        if tag in ("link", "base", "use", "image"):
            fetched += [values.get("href"), values.get("xlink:href")]
        self.found += [f"{tag}: {v}" for v in fetched if v and not v.startswith(("data:", "#"))]
        if tag == "script":
            self.found.append(tag)


def assert_offline(page: Path) -> None:
    assert References(page.read_text(encoding="utf-8")).found == []


def test_runs_in_order_reports_failures_and_goes_on(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = "import sys\nfor i in range(3): print(f'\\rstep {i}', end='', flush=True)"
    study.add("01_later", "print('epochs', epochs)", "import os; print('in', os.getcwd())")
    study.add("00_first", progress, parameters="# Settings\nrun: str = 'x'  # name")
    study.add("02_fails", "1 / 0", "print('never')")
    study.add("03_after", "print('reached', margin_clean)",
              parameters="margin_clean: float = 0.5  # margin")  # fmt: skip

    assert study.run("-p", "epochs", "7", "-p", "margin_clean", "1e-4", "--run", "mine") == 1

    printed = capsys.readouterr().out
    assert re.findall(r"notebook (\d/4 \w+) \.\.\. \d+ s", printed) == [
        "1/4 00_first", "2/4 01_later", "3/4 02_fails", "4/4 03_after",
    ]  # fmt: skip
    assert "4 notebooks in" in printed
    assert "02_fails: ZeroDivisionError: division by zero" in printed
    assert study.printed("01_later", "mine").splitlines() == [
        "epochs 7",
        f"in {study.notebooks}",
    ]
    assert study.printed("00_first", "mine") == "step 2"
    assert "reached 0.0001" in study.printed("03_after", "mine")
    assert "never" not in study.printed("02_fails", "mine")

    folder = study.reports / "mine"
    for stem in ("00_first", "01_later", "02_fails", "03_after"):
        assert_offline(folder / f"{stem}.html")
        notes = json.dumps(study.executed(stem, "mine").metadata)
        assert str(study.notebooks.parent) not in notes
        assert str(paths.project_root()) not in notes
    assert_offline(folder / "index.html")
    index = (folder / "index.html").read_text()
    assert "Run mine" in index
    assert "Notebook 02_fails" in index
    assert "failed: <code>ZeroDivisionError: division by zero" in index
    assert index.count(">ok<") == 3
    assert "torch 2" in index
    page = (folder / "02_fails.html").read_text()
    assert "<math" in page
    assert 'href="01_later.html"' in page
    assert 'href="03_after.html"' in page
    anchor = re.search(r'class="failure">.*?href="#(cell-id=\w+)"', page)
    assert anchor
    assert f'id="{anchor[1]}"' in page

    pages = {path: path.read_text() for path in folder.glob("0*.html")}
    for path in folder.glob("*.html"):
        path.unlink()
    assert study.run("--no-execute") == 0
    assert (folder / "index.html").is_file()
    assert len(pages) == 4
    assert {path: path.read_text() for path in folder.glob("0*.html")} == pages


def test_parameter_files_are_coerced_and_overridden(study: Study, tmp_path: Path) -> None:
    study.add(
        "00_a",
        "print(repr(margin_clean), epochs, run, seeds)",
        parameters=(
            "margin_clean: float = 0.5  # margin\nepochs: int = 2  # passes\n"
            "seeds: list[int] = [0]  # seeds\nrun: str = 'study'  # name"
        ),
    )
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "00_a.yaml").write_text("margin_clean: 1e-4\nepochs: 3\nrun: ignored\n")
    assert study.run("--params", str(folder), "-p", "epochs", "5", "-p", "seeds", "3,4") == 0
    assert study.printed("00_a", "tiny") == "0.0001 5 tiny [3, 4]\n"


def test_only_chosen_notebooks_run(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    study.add("00_a")
    study.add("01_b")
    assert study.run("--only", "01") == 0
    assert [path.name for path in sorted((study.reports / "study").glob("*.ipynb"))] == [
        "01_b.ipynb"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "epoch", "3"], "Did you mean 'epochs'"),
        (["-p", "seeds", "3"], "unknown parameter .*'seeds'"),
        (
            ["-p", "epochs", "0"],
            r"00_a\.ipynb: parameter 'epochs' = 0: .* at least 1",
        ),
        (["-p", "epochs", "many"], "parameter 'epochs' must be a whole number; got 'many'"),
        (["-p", "run", "x"], "--run NAME"),
        (["--only", "00_b"], "Did you mean '00_a'"),
        (["-p", "options", "pgd.stepps=3"], "'pgd' 'stepps'. Did you mean 'steps'"),
        (["-p", "options", "pgd.steps=many"], "pgd.steps must be a whole number"),
        (["--run", "../x"], "letters, digits"),
        (["--params", "no-such-folder"], "no folder of parameters"),
        (["--no-execute", "--only", "00_a"], "goes with --run only"),
        (["--no-execute"], "no run to make a report of"),
        (["--no-execute", "--run", "none"], "no executed notebook"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    study: Study, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    study.add("00_a", parameters="epochs: int = 2  # passes\noptions: list[str] = []  # options")
    assert study.run(*arguments) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err)
    assert captured.out == ""
    assert not study.reports.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("00_b.yaml", "epochs: 3", "Did you mean '00_a'"),
        ("00_a.yaml", "epoch: 3", r"parameter of 00_a\.ipynb.* 'epoch'. Did you mean 'epochs'"),
        ("00_a.yaml", "epochs: [", r"00_a\.yaml can't be read"),
        ("00_a.yaml", "- 3", "must hold lines 'name: value'"),
        ("00_a.yaml", "epochs: 'false'", "must be a whole number; got 'false'"),
        ("readme.txt", "", "holds no YAML file"),
    ],
)
def test_bad_parameter_files_are_refused(
    study: Study, tmp_path: Path, name: str, content: str, message: str
) -> None:
    study.add("00_a")
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        plan(study.notebooks, run="x", params=tmp_path)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("epochs: float = 2.0  # passes", r"declares 'epochs' as float; it must be int"),
        ("epoch: int = 2  # passes", "unknown parameter in 00_a.ipynb: 'epoch'"),
        ("epochs = 2", "only lines such as"),
        ("epochs: int = 0  # passes", "must be a number of at least 1"),
    ],
)
def test_bad_declarations_are_refused(study: Study, parameters: str, message: str) -> None:
    study.add("00_a", parameters=parameters)
    with pytest.raises(ValueError, match=message):
        plan(study.notebooks, run="x")


def test_unwritable_folders_are_refused(
    study: Study,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study.add("00_a")
    (tmp_path / "file").touch()
    monkeypatch.setenv("ROBUSTLIB_REPORTS", str(tmp_path / "file"))
    assert study.run() == 2
    assert "ROBUSTLIB_REPORTS" in capsys.readouterr().err
    monkeypatch.setenv("ROBUSTLIB_REPORTS", str(study.reports))
    monkeypatch.setenv("ROBUSTLIB_STORE", str(tmp_path / "file"))
    assert study.run() == 2
    assert "ROBUSTLIB_STORE" in capsys.readouterr().err


def test_a_data_folder_is_found_from_the_working_directory(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train", "test"):
        (tmp_path / "images" / name).mkdir(parents=True)
    parameters = "dataset: str = 'shapes10'  # data\ndata_root: str = ''  # folder"
    study.add("00_a", parameters=parameters)
    monkeypatch.chdir(tmp_path)
    overrides = [("dataset", "folder"), ("data_root", "images")]
    (job,) = plan(study.notebooks, run="x", overrides=overrides)
    assert (paths.project_root() / job.passed["data_root"]).resolve() == tmp_path / "images"


def test_a_folder_in_an_option_is_found_from_the_working_directory(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ice").mkdir()
    study.add("00_a", parameters="options: list[str] = []  # options")
    monkeypatch.chdir(tmp_path)
    overrides = [("options", "pgd.steps=3, frost.photographs=ice")]
    (job,) = plan(study.notebooks, run="x", overrides=overrides)
    steps, folder = job.passed["options"]
    assert steps == "pgd.steps=3"
    name, _, given = folder.partition("=")
    assert name == "frost.photographs"
    assert (paths.project_root() / given).resolve() == tmp_path / "ice"


def test_without_the_notebooks_one_sentence_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([], notebooks=tmp_path / "notebooks") == 2
    captured = capsys.readouterr()
    assert "has no folder 'notebooks': get the project with git clone" in captured.err
    assert captured.err.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["--help"], prog="robustlib study")
    assert "usage: robustlib study" in capsys.readouterr().out


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(paths.project_root()), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Jobs in the background inherit that Ctrl-C is ignored, and the study leaves it so.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("package", ["papermill", "nbconvert", "yaml", "seaborn", "ipykernel"])
def test_without_the_extra_one_sentence_says_so(package: str) -> None:
    code = f"""
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from robustlib.study import main
sys.exit(main([], prog="robustlib study"))
"""
    process = python(code)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert out == ""
    assert err == (
        f"robustlib study: the study needs the package {package!r}, which is not installed; "
        'install what it needs with: pip install "robustlib[study]"\n'
    )


@pytest.mark.slow
@pytest.mark.parametrize("request_to_stop", ["SIGINT", "SIGTERM"])
def test_interrupted_it_ends_its_kernel_and_says_how_to_go_on(
    study: Study, tmp_path: Path, request_to_stop: str
) -> None:
    mark = tmp_path / "kernel"
    study.add("00_a", "print('done')")
    study.add(
        "01_b",
        "import os, pathlib, time",
        f"pathlib.Path({str(mark)!r}).write_text(str(os.getpid()))",
        "for _ in range(6000): time.sleep(0.1)",
    )
    code = f"""
import sys
from pathlib import Path
from robustlib import study
from robustlib.core import paths
paths.project_root = lambda: Path({str(tmp_path)!r})
sys.exit(study.main([]))
"""
    process = python(code)
    for _ in range(900):
        if mark.exists() and mark.read_text():
            break
        time.sleep(0.1)
    kernel = int(mark.read_text())
    process.send_signal(getattr(signal, request_to_stop))
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in err
    assert "the same command goes on" in err
    assert err.count("\n") == 1
    assert gone(kernel)
    assert "done" in study.printed("00_a")
    assert not (study.reports / "study" / "01_b.ipynb").exists()


def test_a_kernel_that_dies_is_a_failure(study: Study) -> None:
    study.add("00_a", "import os; os._exit(3)")
    study.add("01_b", "print('reached')")
    assert study.run() == 1
    assert "Kernel" in report.recorded(study.executed("00_a")).error
    assert "reached" in study.printed("01_b")


def test_pages_fetch_nothing(tmp_path: Path) -> None:
    remote = "//example.org/x"
    outputs = [
        new_output(
            "display_data", {"text/html": f'<script src="https:{remote}.js"></script><b>kept</b>'}
        ),
        new_output("display_data", {"text/html": f'<img src="{remote}.png"><p>also kept</p>'}),
        new_output("display_data", {"application/javascript": "alert(1)", "text/plain": "plain"}),
        new_output("display_data", {"text/latex": r"$\frac{1}{2}$", "text/plain": "1/2"}),
        new_output("display_data", {"image/png": "iVBORw0KGgo="}),
        new_output("stream", name="stdout", text="10%\r20%"),
    ]
    cells = [
        new_markdown_cell(f"# Title & more\n\n![figure](https:{remote}) [link](https:{remote})"),
        new_code_cell("1", outputs=outputs, execution_count=1),
    ]
    nbformat.write(new_notebook(cells=cells, metadata=METADATA), tmp_path / "00_a.ipynb")
    index = build_site(tmp_path, "demo")
    page = tmp_path / "00_a.html"
    assert_offline(index)
    assert_offline(page)
    text = page.read_text()
    assert "<title>Title &amp; more</title>" in text
    for kept in ("<b>kept</b>", "also kept", "plain", "<mfrac>", "20%", 'alt="Title &amp; more"'):
        assert kept in text
    assert "10%" not in text


def test_notebooks_run_by_papermill_alone_are_reported(tmp_path: Path) -> None:
    error = new_output("error", ename="KeyError", evalue="'x'\nmore", traceback=["boom"])
    notebook = new_notebook(cells=[new_code_cell("d['x']", outputs=[error])])
    notebook.metadata["papermill"] = {"duration": 3.2, "parameters": {"epochs": 1}}
    assert report.recorded(notebook) == Outcome(
        "KeyError: 'x'", 3.2, {"epochs": 1}, {}, notebook.cells[0].id
    )
    nbformat.write(notebook, tmp_path / "00_a.ipynb")
    assert "KeyError" in build_site(tmp_path, "demo").read_text()


def test_provenance_holds_no_path() -> None:
    facts = results.provenance()
    assert {"date", "processor", "precision", "python", "packages"} <= set(facts)
    assert str(Path.home()) not in str(facts)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text

"""Every notebook keeps the common form, and all of them run at their smallest size."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
import yaml

from robustlib.analysis import metrics
from robustlib.analysis.hypotheses import ONE_SEED
from robustlib.core.checks import UnknownNameError
from robustlib.pages.markdown import markdown
from robustlib.study import plotting
from robustlib.study.declarations import declared
from robustlib.study.parameters import PARAMETERS, validated
from robustlib.study.values import coerce

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OPENING = ("Question", "What you will learn", "Prerequisites", "Inputs and outputs", "Time")
CLOSING = ("Findings", "Limitations", "Exercises", "References", "Next")
EXPECTED = [
    "00_start_here",
    "01_benchmark_construction",
    "02_common_vs_adversarial",
    "03_mtlat",
    "04_corruption_overlap",
    "05_better_benchmarks",
    "06_synthesis",
    "07_your_model",
]
LONGEST_CELL = 30
READ = "settings = parameters.read(globals())"


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def has_section(text: str, name: str) -> bool:
    """Whether a heading or a bold run-in, alone or at the start of a line or cell, is `name`."""
    return re.search(rf"^\W*\|?\s*(#+\s*|\*\*){name}\b", text, re.MULTILINE) is not None


def test_the_study_is_complete() -> None:
    assert [path.stem for path in NOTEBOOKS] == EXPECTED


def test_is_valid_and_for_the_python3_kernel(notebook: nbformat.NotebookNode) -> None:
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


def test_is_committed_without_outputs(notebook: nbformat.NotebookNode) -> None:
    assert "papermill" not in notebook.metadata
    assert "robustlib" not in notebook.metadata
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
        assert set(cell.metadata) <= {"tags"}
        assert "injected-parameters" not in cell.metadata.get("tags", [])


def test_opens_and_closes_with_the_common_sections(notebook: nbformat.NotebookNode) -> None:
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    before_code = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            break
        before_code.append(cell.source)
    for name in OPENING:
        assert has_section("\n".join(before_code), name), name
    for name in CLOSING:
        assert has_section("\n".join(texts[-6:]), name), name


def position_of_parameters(notebook: nbformat.NotebookNode) -> int:
    """Which of the code cells is tagged `parameters`."""
    tagged = ["parameters" in cell.metadata.get("tags", []) for cell in code_cells(notebook)]
    return tagged.index(True)


def test_parameters_are_declared_and_typed(path: Path) -> None:
    found = declared(path)
    for name, declaration in found.items():
        assert name in PARAMETERS
        assert declaration.type == PARAMETERS[name].type, name
        assert coerce(name, declaration.default, declaration.type) == declaration.default
    validated(**{name: declaration.default for name, declaration in found.items()})


def test_the_next_cell_reads_them_in_one_line(path: Path, notebook: nbformat.NotebookNode) -> None:
    position = position_of_parameters(notebook)
    declaring, reading = code_cells(notebook)[position : position + 2]
    lines = reading.source.split("\n")
    assert lines[::2] == ["from robustlib.study import parameters", READ]
    assert lines[1::2] == ["", "settings"]
    namespace: dict[str, object] = {}
    exec(declaring.source, namespace)
    exec(reading.source, namespace)
    expected = validated(**{name: d.default for name, d in declared(path).items()})
    assert asdict(namespace["settings"]) == asdict(expected)
    with pytest.raises(UnknownNameError, match="epcohs"):
        exec(f"{declaring.source}\nepcohs = 3\n{reading.source}", {})


def names_in(source: str) -> Iterator[str]:
    """Every name that the code reads, binds, imports or takes as an argument."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).split(".")[0]
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(getattr(node, "name", None), str):  # of a function, class or exception
            yield node.name


@pytest.mark.parametrize(
    "source",
    [
        "f(seeds[0])",
        "seeds = 3",
        "for seeds in x: pass",
        "import numpy as seeds",
        "from robustlib import seeds",
        "def f(seeds): pass",
        "def seeds(): pass",
        "[seeds for seeds in x]",
        "f'{seeds}'",
        "(seeds := 3)",
        "del seeds",
    ],
)
def test_names_are_found(source: str) -> None:
    assert "seeds" in names_in(source)
    assert "seeds" not in names_in("f(settings.seeds[0], seeds=settings.seeds)")


def test_no_cell_uses_a_parameter_past_its_check(
    path: Path, notebook: nbformat.NotebookNode
) -> None:
    """`settings.seeds`, never `seeds`, which may still be the text "3, 4"; nor another `seeds`."""
    cells = code_cells(notebook)
    del cells[position_of_parameters(notebook)]
    for cell in cells:
        assert not set(names_in(cell.source)) & set(declared(path)), cell.source


def test_every_declared_parameter_is_used(path: Path, notebook: nbformat.NotebookNode) -> None:
    source = "\n".join(cell.source for cell in code_cells(notebook))
    used = {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "settings"
    }
    assert used == set(declared(path))


def test_all_training_augments_as_set(notebook: nbformat.NotebookNode) -> None:
    source = "\n".join(cell.source for cell in code_cells(notebook))
    budgets = [
        {keyword.arg or ast.unparse(keyword.value) for keyword in node.keywords}
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Budget"
    ]
    assert all({"augmentation", "shared"} & names for names in budgets)
    assert ("train(" in source) == bool(budgets)


def test_every_parameter_is_used_by_a_notebook() -> None:
    assert set(PARAMETERS) == set().union(*(declared(path) for path in NOTEBOOKS))


def test_papermill_sees_the_same_parameters(path: Path) -> None:
    seen = papermill.inspect_notebook(str(path))
    assert list(seen) == list(declared(path))
    assert all(entry["help"] for entry in seen.values())


def test_cells_are_many_and_short(notebook: nbformat.NotebookNode) -> None:
    cells = code_cells(notebook)
    assert 10 <= len(cells) <= 30
    for cell in cells:
        assert cell.source.strip()
        if "parameters" not in cell.metadata.get("tags", []):
            assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source


def test_code_keeps_the_rules(notebook: nbformat.NotebookNode) -> None:
    source = "\n".join(cell.source for cell in code_cells(notebook))
    for banned in ("if smoke", "tqdm.auto", "tqdm.notebook", "filterwarnings", "simplefilter"):
        assert banned not in source, banned
    assert not re.search(r"['\"]/(home|root|work|tmp|Users)/", source)


def formulas(notebook: nbformat.NotebookNode) -> Iterator[str]:
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield from re.findall(r'<code class="fault" title="([^"]*)"', markdown(cell.source))


def test_every_formula_can_be_shown_offline(notebook: nbformat.NotebookNode) -> None:
    assert list(formulas(notebook)) == []


@pytest.mark.parametrize("size", ["smoke", "full"])
def test_parameter_files_fit_the_notebook(path: Path, size: str) -> None:
    file = ROOT / "params" / size / f"{path.stem}.yaml"
    values = yaml.safe_load(file.read_text()) or {}
    found = declared(path)
    assert set(values) <= set(found)
    for name, value in values.items():
        assert coerce(name, value, found[name].type) == value, f"{name}: give it its own type"
    validated(**{name: d.default for name, d in found.items()} | values)


@pytest.mark.parametrize("file", sorted((ROOT / "params").rglob("*.*")), ids=lambda f: f.name)
def test_parameter_files_belong_to_a_notebook(file: Path) -> None:
    assert file.suffix == ".yaml"
    assert file.stem in {path.stem for path in NOTEBOOKS}


def opening(tmp_path: Path) -> Path:
    """The beginning of a notebook, up to the cell that reads the parameters."""
    source = NOTEBOOKS[0]
    notebook = nbformat.read(source, as_version=4)
    reading = code_cells(notebook)[position_of_parameters(notebook) + 1]
    notebook.cells = notebook.cells[: notebook.cells.index(reading) + 1]
    path = tmp_path / source.name
    nbformat.write(notebook, path)
    return path


def tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of this environment, for which warnings are no errors."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments], env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_papermill_alone_refuses_what_isn_t_declared(tmp_path: Path) -> None:
    path, out = opening(tmp_path), tmp_path / "out.ipynb"
    result = tool("papermill", str(path), str(out), "-p", "epcohs", "3", "-p", "n_test", "50")
    assert result.returncode == 1
    assert "unknown parameter, not declared by this notebook: 'epcohs'" in result.stderr
    assert "Did you mean 'epochs'" in result.stderr


@pytest.mark.slow
def test_papermill_alone_passes_what_is_declared(tmp_path: Path) -> None:
    path, out = opening(tmp_path), tmp_path / "out.ipynb"
    values = ("-p", "epochs", "3", "-p", "seeds", "4, 5", "-p", "eps_test", "2/255")
    result = tool("papermill", str(path), str(out), *values)
    assert result.returncode == 0, result.stderr
    shown = code_cells(nbformat.read(out, as_version=4))[-1].outputs[0].data["text/plain"]
    for expected in ("epochs=3", "seeds=(4, 5)", f"eps_test={2 / 255}"):
        assert expected in shown


@pytest.mark.slow
def test_nbconvert_runs_the_defaults(tmp_path: Path) -> None:
    path = opening(tmp_path)
    epochs = declared(path)["epochs"].default
    result = tool("nbconvert", "--execute", "--to", "notebook", "--inplace", str(path))
    assert result.returncode == 0, result.stderr
    (output,) = code_cells(nbformat.read(path, as_version=4))[-1].outputs
    assert f"epochs={epochs}" in output.data["text/plain"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a run from an empty store, of which one was made."""
    folder = tmp_path_factory.mktemp("smoke")
    kinds = ("store", "results", "reports")
    own = {f"ROBUSTLIB_{kind.upper()}": str(folder / kind) for kind in kinds}
    environment = {**os.environ, **own}
    run_smoke(environment, folder)
    return environment


def run_smoke(environment: dict[str, str], cwd: Path, *only: str) -> None:
    command = [sys.executable, "-m", "robustlib.study", "--params", "params/smoke", *only]
    result = subprocess.run(
        command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stdout + result.stderr


def executed(environment: dict[str, str], stem: str) -> nbformat.NotebookNode:
    folder = Path(environment["ROBUSTLIB_REPORTS"]) / "smoke"
    return nbformat.read(folder / f"{stem}.ipynb", as_version=4)


@pytest.mark.slow
def test_smoke_run_is_clean(smoke: dict[str, str], path: Path) -> None:
    notebook = executed(smoke, path.stem)
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
    page = Path(smoke["ROBUSTLIB_REPORTS"]) / "smoke" / f"{path.stem}.html"
    assert 'class="fault"' not in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_figure_is_shown(smoke: dict[str, str], path: Path) -> None:
    drawing = [f"plotting.{name}(" for name in plotting.__all__ if name != "use_style"]
    for cell in code_cells(executed(smoke, path.stem)):
        if any(call in cell.source for call in drawing):
            images = [output for output in cell.outputs if "image/png" in output.get("data", {})]
            assert images, cell.source


@pytest.mark.slow
def test_second_smoke_run_makes_nothing_anew(smoke: dict[str, str], tmp_path: Path) -> None:
    store = Path(smoke["ROBUSTLIB_STORE"])
    before = {file: file.stat().st_mtime_ns for file in store.rglob("*.safetensors")}
    assert before
    run_smoke(smoke, tmp_path, "--only", "02", "03")  # of each kind, all that is stored
    after = {file: file.stat().st_mtime_ns for file in store.rglob("*.safetensors")}
    assert after == before


@pytest.mark.slow
@pytest.mark.parametrize("run", ["smoke", "cifar10"])
def test_tables_follow_from_per_image_results(
    smoke: dict[str, str], tmp_path: Path, run: str
) -> None:
    run_smoke(smoke, tmp_path, "--only", "02", "03", "--run", "again", "-p", "from_run", run)
    folder = Path(smoke["ROBUSTLIB_RESULTS"])
    first = folder / run if run == "smoke" else ROOT / "results" / run
    for name in (
        *("adversarial_gains", "adversarial_overlap", "unseen_gains", "claims_independence"),
        *("mtlat_gains", "mtlat_levels", "mtlat_over", "mtlat_mce", "claims_mtlat"),
    ):
        tables = (pd.read_csv(place / f"{name}.csv") for place in (first, folder / "again"))
        pd.testing.assert_frame_equal(*tables)


def table(environment: dict[str, str], name: str, **options: str) -> pd.DataFrame:
    return pd.read_csv(Path(environment["ROBUSTLIB_RESULTS"]) / "smoke" / f"{name}.csv", **options)


@pytest.mark.slow
def test_mce_follows_from_the_accuracies_written(smoke: dict[str, str]) -> None:
    written = table(smoke, "mtlat_mce")
    found = written[written["comparison"] == "equal steps"].set_index("recipe")["mce"]
    assert found["standard"] == pytest.approx(100)
    expected = metrics.mce(metrics.corruption_errors(table(smoke, "mtlat")))[found.index]
    assert found.to_dict() == pytest.approx(expected.to_dict(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("paper", ["independence", "mtlat", "overlap"])
def test_claims_of_one_seed_speak_of_these_models_only(smoke: dict[str, str], paper: str) -> None:
    claims = table(smoke, f"claims_{paper}")
    assert len(claims)
    assert (claims["verdict"] == ONE_SEED).all()
    assert not (claims["low"] > claims["high"]).any()

"""Every notebook keeps the common form, and all of them run at their smallest size."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
import yaml

from robustlib.analysis import metrics, overlap, statistics
from robustlib.study import report
from robustlib.study.parameters import PARAMETERS, coerce, declared, validated

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
    "05_synthesis",
]
LONGEST_CELL = 30


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


def test_parameters_are_declared_typed_and_validated(
    path: Path, notebook: nbformat.NotebookNode
) -> None:
    found = declared(path)
    for name, declaration in found.items():
        assert name in PARAMETERS
        assert declaration.type == PARAMETERS[name].type, name
        assert coerce(name, declaration.default, declaration.type) == declaration.default
    validated(**{name: declaration.default for name, declaration in found.items()})
    cells = code_cells(notebook)
    (index,) = [i for i, c in enumerate(cells) if "parameters" in c.metadata.get("tags", [])]
    assert "validated(" in cells[index + 1].source
    calls = [
        node
        for node in ast.walk(ast.parse(cells[index + 1].source))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "validated"
    ]
    assert {keyword.arg for keyword in calls[0].keywords} == set(found)


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
            yield from re.findall(
                r'<code class="fault" title="([^"]*)"', report.markdown(cell.source)
            )


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


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a run from an empty store, of which one was made."""
    folder = tmp_path_factory.mktemp("smoke")
    kinds = ("store", "results", "reports")
    own = {f"ROBUSTLIB_{kind.upper()}": str(folder / kind) for kind in kinds}
    environment = {**os.environ, **own}
    run_smoke(environment, folder)
    return environment


def run_smoke(environment: dict[str, str], cwd: Path) -> None:
    command = [sys.executable, "-m", "robustlib.study", "--params", "params/smoke"]
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
def test_second_smoke_run_makes_nothing_anew(smoke: dict[str, str], tmp_path: Path) -> None:
    store = Path(smoke["ROBUSTLIB_STORE"])
    before = {file: file.stat().st_mtime_ns for file in store.rglob("*.safetensors")}
    assert before
    run_smoke(smoke, tmp_path)
    after = {file: file.stat().st_mtime_ns for file in store.rglob("*.safetensors")}
    assert after == before


def table(environment: dict[str, str], name: str, **options: str) -> pd.DataFrame:
    return pd.read_csv(Path(environment["ROBUSTLIB_RESULTS"]) / "smoke" / f"{name}.csv", **options)


@pytest.mark.slow
def test_mce_follows_from_the_accuracies_written(smoke: dict[str, str]) -> None:
    summary = table(smoke, "mtlat_summary", index_col="recipe")
    assert summary.loc["standard", "mCE"] == pytest.approx(100)
    expected = metrics.mce(metrics.corruption_errors(table(smoke, "mtlat")))
    assert summary["mCE"].to_dict() == pytest.approx(expected.to_dict(), rel=1e-4)


@pytest.mark.slow
def test_overlap_follows_from_the_accuracies_written(smoke: dict[str, str]) -> None:
    accuracy = table(smoke, "overlap_accuracy", index_col="model")
    scores = overlap.overlapping_scores(accuracy)
    for pair in table(smoke, "overlap").itertuples():
        expected = scores.loc[pair.first, pair.second]
        assert pair.overlap == pytest.approx(expected, rel=1e-3, abs=1e-3, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("paper", ["independence", "mtlat", "overlap"])
def test_claims_agree_with_their_intervals(smoke: dict[str, str], paper: str) -> None:
    for claim in table(smoke, f"claims_{paper}").itertuples():
        assert claim.verdict == statistics.verdict(claim.low, claim.high, threshold=claim.threshold)
        assert not claim.low > claim.high

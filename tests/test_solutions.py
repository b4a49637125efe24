"""The solutions belong to the exercises, keep their form, and run at the smallest size."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from robustlib.study import plotting
from robustlib.study.declarations import declared

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
LONGEST_CELL = 30
RUN = """
import sys
from pathlib import Path
from robustlib.study import kernels, runner
code = runner.main(["--params", sys.argv[1], "--run", "solutions"], notebooks=Path(sys.argv[2]))
kernels.end_all()
sys.exit(code)
"""


@pytest.fixture(params=SOLUTIONS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def solution(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def exercises(stem: str) -> list[str]:
    """The numbers of a chapter's exercises that have a solution."""
    chapter = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4)
    text = chapter.cells[-1].source
    section = text.partition("## Exercises\n")[2].partition("\n## ")[0]
    if f"notebooks/solutions/{stem}.ipynb" not in section:
        return []
    return re.findall(r"^(\d)\. \*\*(?:Predict|By hand|Write)\.\*\*", section, re.MULTILINE)


def test_solutions_are_where_chapters_say() -> None:
    named = [path.stem for path in CHAPTERS if exercises(path.stem)]
    assert [path.stem for path in SOLUTIONS] == named
    assert len(named) >= 7


def test_every_exercise_is_solved(path: Path, solution: nbformat.NotebookNode) -> None:
    numbers = exercises(path.stem)
    assert 2 <= len(numbers) <= 3
    assert numbers == [str(number + 1) for number in range(len(numbers))]
    texts = [cell.source for cell in solution.cells if cell.cell_type == "markdown"]
    assert re.findall(r"^## Exercise (\d): ", "\n".join(texts), re.MULTILINE) == numbers


def test_keeps_the_form_of_the_chapters(path: Path, solution: nbformat.NotebookNode) -> None:
    nbformat.validate(solution)
    assert solution.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in solution.cells]
    assert len(set(ids)) == len(ids)
    code = [cell for cell in solution.cells if cell.cell_type == "code"]
    for cell in code:
        assert cell.outputs == []
        assert cell.execution_count is None
        assert set(cell.metadata) <= {"tags"}
    assert [cell.metadata.get("tags") for cell in code[:2]] == [["parameters"], None]
    for cell in code[1:]:
        assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source
    assert code[1].source.splitlines()[2] == "settings = parameters.read(globals())"
    source = "\n".join(cell.source for cell in code)
    assert set(re.findall(r"\bsettings\.(\w+)", source)) == set(declared(path))


def test_takes_what_the_chapter_has_trained(path: Path) -> None:
    """Where both declare a parameter, its default is the same, so that the store has the models."""
    chapter = declared(ROOT / "notebooks" / path.name)
    for name, declaration in declared(path).items():
        assert declaration.default == chapter[name].default, name


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The solutions run at the size of `params/smoke`, from an empty store."""
    folder = tmp_path_factory.mktemp("solutions")
    (folder / "params").mkdir()
    for path in SOLUTIONS:
        values = yaml.safe_load((ROOT / "params" / "smoke" / f"{path.stem}.yaml").read_text())
        fitting = {k: v for k, v in values.items() if k in declared(path) and v != []}
        (folder / "params" / f"{path.stem}.yaml").write_text(yaml.safe_dump(fitting))
    kinds = ("store", "results", "reports")
    own = {f"ROBUSTLIB_{kind.upper()}": str(folder / kind) for kind in kinds}
    command = [sys.executable, "-c", RUN, str(folder / "params"), str(SOLUTIONS[0].parent)]
    result = subprocess.run(
        command, env={**os.environ, **own}, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "reports" / "solutions"


@pytest.mark.slow
def test_runs_without_a_warning_and_shows_its_figures(executed: Path, path: Path) -> None:
    drawing = [f"plotting.{name}(" for name in plotting.__all__ if name != "use_style"]
    for cell in nbformat.read(executed / path.name, as_version=4).cells:
        if cell.cell_type == "code":
            kinds = [kind for output in cell.outputs for kind in output.get("data", {})]
            assert ("image/png" in kinds) == any(call in cell.source for call in drawing)
            assert all(output.get("name") != "stderr" for output in cell.outputs), cell.outputs

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from robustlib.core import paths
from robustlib.evaluation import COLUMNS, Evaluation
from robustlib.study import results
from robustlib.study.parameters import validated


@dataclass(frozen=True)
class Settings:
    epochs: int = 3
    data_root: str = "somewhere/deep/images"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBUSTLIB_RESULTS", str(tmp_path))
    return tmp_path / "trial"


TABLE = pd.DataFrame({"recipe": ["standard", "mtlat"], "accuracy": [0.123456789, 1 / 3]})


def test_tables_are_read_back_with_six_digits(folder: Path) -> None:
    results.save("trial", "03_mtlat", {"mtlat": TABLE}, settings=Settings(), seconds=1.23)
    found = results.load("trial", "mtlat")
    assert found["accuracy"].tolist() == [0.123457, 0.333333]
    assert found["recipe"].tolist() == ["standard", "mtlat"]


def test_provenance_names_versions_and_parameters_but_no_path(folder: Path) -> None:
    results.save(
        "trial", "03_mtlat", {"mtlat": TABLE}, settings=Settings(), seconds=1.23, data="12ab"
    )
    record = results.records("trial")["03_mtlat"]
    assert record["data"] == "12ab"
    assert record["parameters"] == {"epochs": 3, "data_root": "images"}
    assert record["seconds"] == 1.2
    assert record["tables"] == ["mtlat"]
    assert "torch 2.13.0" in record["packages"]
    assert record["processor"]
    assert "/" not in (folder / "03_mtlat.json").read_text()


def test_parameters_of_a_run_here_or_of_record(folder: Path) -> None:
    results.save("trial", "03_mtlat", {}, settings=Settings(), seconds=1)
    assert results.parameters("trial", "03_mtlat") == {"epochs": 3, "data_root": "images"}
    assert results.parameters("cifar10", "02_common_vs_adversarial")["seeds"] == [0, 1, 2]
    with pytest.raises(results.MissingResultsError, match="has no 04_corruption_overlap"):
        results.parameters("trial", "04_corruption_overlap")


def test_provenance_names_options_but_no_folder(folder: Path, tmp_path: Path) -> None:
    options = [f"frost.photographs={tmp_path}", "pgd.steps=3"]
    settings = validated(epochs=2, seeds=[0, 1], options=options)
    results.save("trial", "x", {}, settings=settings, seconds=0)
    assert results.records("trial")["x"]["parameters"] == {
        "epochs": 2,
        "seeds": [0, 1],
        "options": f"frost.photographs={tmp_path.name}, pgd.steps=3",
    }


def test_provenance_says_if_the_code_differs_from_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "project_root", lambda: tmp_path)

    def git(*arguments: str) -> None:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run([*command, *arguments], check=True, capture_output=True)

    code, result = tmp_path / "code.py", tmp_path / "results" / "a.csv"
    result.parent.mkdir()
    for file in (code, result):
        file.write_text("1")
    assert "commit" not in results.provenance()
    git("init")
    git("add", ".")
    assert "commit" not in results.provenance()
    git("commit", "-m", "first")
    commit = results.provenance()["commit"]
    assert len(commit) == 12
    result.write_text("2")
    assert results.provenance()["commit"] == commit
    code.write_text("2")
    assert results.provenance()["commit"] == f"{commit}, with uncommitted changes"


def test_figures_are_written_beside_the_tables(folder: Path) -> None:
    figure, axis = plt.subplots()
    axis.plot([1, 2])
    results.save("trial", "x", {}, settings=Settings(), seconds=0, figures={"line": figure})
    plt.close(figure)
    assert plt.imread(folder / "line.png").ndim == 3
    assert sorted(path.name for path in folder.iterdir()) == ["line.png", "x.json"]


def test_a_missing_table_says_what_to_run(folder: Path) -> None:
    with pytest.raises(results.MissingResultsError, match="make study"):
        results.load("trial", "mtlat")
    assert results.records("trial") == {}


def test_per_image_results_of_a_run_here_or_of_record(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pd.DataFrame([dict.fromkeys(COLUMNS, "")]).assign(accuracy=0.5, n=4)
    evaluation = Evaluation(table, np.array([[True, False, True, False]]), computed=1)
    found = {"evaluations": {"overlap": evaluation}, "settings": Settings(), "seconds": 0}
    results.save("trial", "04", {"mtlat": TABLE}, **found)
    assert results.evaluation("trial", "overlap").correct.tolist() == evaluation.correct.tolist()
    monkeypatch.setattr(paths, "project_root", lambda: tmp_path)
    (tmp_path / "results").mkdir()
    folder.rename(tmp_path / "results" / "record")
    assert results.evaluation("record", "overlap").correct.tolist() == evaluation.correct.tolist()
    assert results.table("record", "mtlat")["recipe"].tolist() == ["standard", "mtlat"]
    for find in (results.evaluation, results.table):
        with pytest.raises(results.MissingResultsError, match=r"'trial' has no .*run='trial'"):
            find("trial", "overlap")

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
TARGETS = (
    "setup",
    "study",
    "smoke",
    "full",
    "test",
    "lint",
    "bench",
    "fidelity",
    "lab",
    "report",
    "clean",
)


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def lock() -> dict[str, list[tuple[Version, list[str]]]]:
    """For each package its locked versions (several if they differ by Python), with hashes."""
    locked: dict[str, list[tuple[Version, list[str]]]] = {}
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip() and not line.strip().startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line.strip())
            parsed = Requirement(requirement)
            (pin,) = parsed.specifier
            assert pin.operator == "==", line
            name = canonicalize_name(parsed.name)
            locked.setdefault(name, []).append((Version(pin.version), hashes))
    return locked


def make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    names = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments], cwd=cwd, env=names, capture_output=True, text=True, timeout=60
    )


def test_the_lock_is_hashed_and_free_of_addresses(
    lock: dict[str, list[tuple[Version, list[str]]]],
) -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert "index-url" not in text
    for name, versions in lock.items():
        for _, hashes in versions:
            assert hashes, name
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes)


def test_the_lock_agrees_with_pyproject(
    project: dict[str, Any], lock: dict[str, list[tuple[Version, list[str]]]]
) -> None:
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["study"], *extras["dev"]]:
        wanted = Requirement(text)
        versions = lock.get(canonicalize_name(wanted.name))
        assert versions, f"{wanted.name} is missing: run make lock"
        assert all(version in wanted.specifier for version, _ in versions), wanted
    assert [str(version) for version, _ in lock["torch"]] == ["2.13.0"]
    assert [str(version) for version, _ in lock["torchvision"]] == ["0.28.0"]


def test_the_conda_environment_cannot_drift(project: dict[str, Any]) -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == project["name"]
    python, *others = environment["dependencies"]
    name, _, versions = python.partition(" ")
    assert name == "python"
    assert SpecifierSet(versions) == SpecifierSet(project["requires-python"])
    assert others == ["pip", {"pip": ["-e .[study,dev]"]}]


def test_bare_make_lists_every_target() -> None:
    result = make()
    assert result.returncode == 0, result.stderr
    listed = re.findall(r"^make (\w+) {2,}\S", result.stdout, re.MULTILINE)
    assert set(TARGETS) <= set(listed)
    makefile = (ROOT / "Makefile").read_text()
    for target in listed:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "There is no"),
        ('case "$1" in -V) echo Python 3.9.1;; *) exit 1;; esac', "3.9.1. Name another"),
        ('case "$2" in *venv*) exit 1;; esac', "has no venv module"),
    ],
)
def test_set_up_says_which_python_it_needs(tmp_path: Path, body: str | None, message: str) -> None:
    """`body` is a stand-in for the interpreter."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    python = tmp_path / "a-python"
    if body:
        python.write_text(f"#!/bin/sh\n{body}\n")
        python.chmod(0o755)
    result = make("setup", f"PYTHON={python}", cwd=tmp_path)
    assert result.returncode != 0
    assert message in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_extra_arguments_reach_the_study() -> None:
    result = make("-n", "study", "ARGS=-p epochs 4")
    assert "robustlib.study -p epochs 4" in result.stdout


def test_jupyterlab_opens_copies_and_keeps_them(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    program = tmp_path / ".venv" / "bin" / "jupyter-lab"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    (tmp_path / ".venv" / ".installed").touch()
    for name in ("00_start_here.ipynb", "solutions/00_start_here.ipynb"):
        (tmp_path / "notebooks" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "notebooks" / name).write_text("as it came")
    first = make("lab", cwd=tmp_path)
    assert "tree/lab/00_start_here.ipynb" in first.stdout, first.stderr
    mine, solution = (
        tmp_path / "lab" / f"{kind}00_start_here.ipynb" for kind in ("", "solutions/")
    )
    assert mine.read_text() == solution.read_text() == "as it came"
    mine.write_text("with outputs")
    assert make("lab", cwd=tmp_path).returncode == 0
    assert mine.read_text() == "with outputs"


def test_citation_names_the_three_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    references = citation["references"]
    assert [r["identifiers"][0]["value"] for r in references] == [
        "arXiv:1909.02436",
        "arXiv:2008.08384",
        "arXiv:2105.12357",
    ]
    for reference in references:
        assert [a["family-names"] for a in reference["authors"]] == ["Laugros", "Caplier", "Ospici"]


def test_citation_and_licence_agree_with_pyproject(project: dict[str, Any]) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_continuous_integration_runs_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text().splitlines()

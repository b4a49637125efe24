"""The library lives without its checkout: built as a wheel, in an environment of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STUDY = PROJECT["optional-dependencies"]["study"]

LIBRARY = """
import sys, torch
from PIL import Image
from robustlib import attacks, corruptions, models
from robustlib.analysis import accuracy_matrix
from robustlib.core.store import Store
from robustlib.corruptions.transforms import RandomCorruption
from robustlib.data import Split
from robustlib.evaluation import evaluate
from robustlib.perturbations import Attack, corruption_grid

network = models.build("small_resnet", classes=3, image_size=32, seed=0).eval()
images = torch.rand(6, 3, 32, 32)
labels = network(images).argmax(1)
assert corruptions.corrupt(images, "jpeg_compression", 3).shape == images.shape
assert RandomCorruption("noc")(Image.new("RGB", (20, 20))).size == (20, 20)
assert attacks.run(network, images, labels, "pgd", eps=0.03).clean_correct.all()
split = Split((images * 255).byte(), labels, torch.arange(6))
cells = [*corruption_grid(["fog"], [3]), Attack("fgsm", "2/255")]
mine = models.wrap(network, name="mine")
table = evaluate([mine], split, cells, store=Store("store"), progress=False).table
print(list(accuracy_matrix(table)))
for module in ("matplotlib", "papermill", "jupyterlab", "nbformat", "yaml", "seaborn"):
    assert module not in sys.modules
"""


def closure(requirements: list[str]) -> set[str]:
    """Names of the installed distributions that these need, in turn."""
    found: set[str] = set()
    left = [Requirement(text) for text in requirements]
    while left:
        wanted = left.pop()
        extras = {"", *wanted.extras}
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        name = canonicalize_name(wanted.name)
        if name in found:
            continue
        found.add(name)
        for text in metadata.requires(name) or []:
            inner = Requirement(text)
            if not inner.marker or any(inner.marker.evaluate({"extra": e}) for e in extras):
                inner.marker = None
                left.append(inner)
    return found


def environment(folder: Path, wheel: Path, requirements: list[str]) -> Path:
    """A fresh environment with the wheel, and with what is required, linked from this one."""
    venv.create(folder, with_pip=False)
    here = Path(sysconfig.get_path("purelib"))
    site = next(folder.glob("lib*/python3*/site-packages"))
    tops: set[str] = set()
    for name in closure(requirements):
        for file in metadata.files(name) or []:
            if file.parts[0] != ".." and file.parts[0] != "__pycache__":
                tops.add(file.parts[0])
    for top in tops:
        if (here / top).exists():
            (site / top).symlink_to(here / top)
    python = folder / "bin" / "python"
    install = [Path(sys.executable).with_name("uv"), "pip", "install", "--quiet", "--offline"]
    run([*install, "--no-deps", "--python", python, wheel], folder)
    return folder / "bin"


def run(command: list[object], cwd: Path, code: int = 0) -> str:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "ROBUSTLIB"))}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=own,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("bare"), wheel, PROJECT["dependencies"])


@pytest.mark.slow
def test_corruptions_attacks_and_evaluations_need_no_checkout(bare: Path, tmp_path: Path) -> None:
    assert "['clean', 'fog', 'fgsm']" in run([bare / "python", "-c", LIBRARY], tmp_path)


@pytest.mark.slow
def test_the_command_corrupts_without_a_checkout(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "images" / "a.jpg")
    options = ["--corruptions", "fog", "noc", "--severities", "1"]
    run([bare / "robustlib", "corrupt", "images", "images-c", *options], tmp_path)
    assert len(list((tmp_path / "images-c").glob("*/1/a.png"))) == 9
    assert {path.name for path in tmp_path.iterdir()} == {"images", "images-c"}


@pytest.mark.slow
def test_the_study_says_what_it_needs(bare: Path, wheel: Path, tmp_path: Path) -> None:
    said = run([bare / "robustlib", "study"], tmp_path, code=2)
    assert 'pip install "robustlib[study]"' in said
    assert "Traceback" not in said
    whole = environment(tmp_path / "whole", wheel, PROJECT["dependencies"] + STUDY)
    (tmp_path / "elsewhere").mkdir()
    said = run([whole / "robustlib", "study"], tmp_path / "elsewhere", code=2)
    assert "notebooks" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.slow
def test_help_reads_well(bare: Path, tmp_path: Path) -> None:
    for arguments in ([], ["--help"]):
        said = run([bare / "robustlib", *arguments], tmp_path)
        assert re.search(r"study +\w.*\n.*corrupt +\w", said)
    assert PROJECT["version"] in run([bare / "robustlib", "--version"], tmp_path)
    assert "Did you mean 'corrupt'" in run([bare / "robustlib", "corupt"], tmp_path, code=2)
    assert "usage: robustlib corrupt" in run([bare / "robustlib", "corrupt", "--help"], tmp_path)


def imported(folder: Path) -> set[str]:
    found: set[str] = set()
    for file in folder.rglob("*.py"):
        found |= set(re.findall(r"^\s*(?:import|from) ([A-Za-z_]\w*)", file.read_text(), re.M))
    return found - set(sys.stdlib_module_names) - {"robustlib"}


ABOVE = ("pages", "study", "card", "book")
"""Floors that come with the extra `study`."""


def test_every_package_that_is_imported_is_declared() -> None:
    """What the study or a cluster alone needs is in its extra; the rest is a dependency."""
    known = metadata.packages_distributions()
    base = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    study = base | {canonicalize_name(Requirement(text).name) for text in STUDY}
    extras = PROJECT["optional-dependencies"]
    core = base | {canonicalize_name(Requirement(text).name) for text in extras["cluster"]}
    floors = [path for path in (ROOT / "robustlib").iterdir() if path.is_dir()]
    for folder in floors:
        for module in imported(folder) & set(known):
            owners = {canonicalize_name(name) for name in known[module]}
            allowed = core if folder.name == "core" else study if folder.name in ABOVE else base
            assert owners & allowed, (folder.name, module)
    cells = "".join(path.read_text() for path in (ROOT / "notebooks").glob("*.ipynb"))
    for module in set(re.findall(r'"(?:import|from) (\w+)', cells)) & set(known):
        if module != "robustlib":
            assert {canonicalize_name(name) for name in known[module]} & study, module

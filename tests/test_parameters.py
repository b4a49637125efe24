from __future__ import annotations

import dataclasses
from pathlib import Path

import nbformat
import pytest

from robustlib.core.checks import UnknownNameError
from robustlib.study.parameters import PARAMETERS, coerce, declared, validated


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("false", "bool", False),
        ("True", "bool", True),
        (True, "bool", True),
        (0, "bool", False),
        ("1e-4", "float", 1e-4),
        ("8/255", "float", 8 / 255),
        (1, "float", 1.0),
        (3.0, "int", 3),
        ("10_000", "int", 10_000),
        ("1e4", "int", 10_000),
        (2**60 + 1, "int", 2**60 + 1),
        (2026, "str", "2026"),
        ("blur", "list[str]", ["blur"]),
        ("1, 2,3", "list[int]", [1, 2, 3]),
        ("[1, 2]", "list[int]", [1, 2]),
        (3, "list[int]", [3]),
        ((1, 2), "list[float]", [1.0, 2.0]),
        ("", "list[str]", []),
        (["1e-4"], "list[float]", [1e-4]),
    ],
)
def test_well_meant_values_are_coerced(value: object, kind: str, expected: object) -> None:
    result = coerce("x", value, kind)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("maybe", "bool"),
        (2, "bool"),
        (None, "bool"),
        (1.5, "int"),
        (True, "int"),
        ("many", "int"),
        ("nan", "float"),
        ("1/0", "float"),
        (None, "float"),
        (False, "str"),
        (None, "str"),
        ({"a": 1}, "list[int]"),
        ("1,x", "list[int]"),
        ("[1, 2", "list[int]"),
        ([[1]], "list[int]"),
    ],
)
def test_other_values_are_refused_by_name(value: object, kind: str) -> None:
    with pytest.raises(ValueError, match=r"parameter 'x' must be .*; got"):
        coerce("x", value, kind)


def test_settings_are_frozen_and_typed() -> None:
    settings = validated(epochs="3", seeds=[0, 1], eps_test="8/255", run="a-1")
    assert settings.epochs == 3
    assert settings.seeds == (0, 1)
    assert settings.eps_test == 8 / 255
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.epochs = 4
    assert "passes over the training images" in settings._repr_html_()


def test_unknown_parameter_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'epochs'"):
        validated(epoch=3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": "cifar"}, "Did you mean 'cifar10'"),
        ({"image_size": 8}, "'image_size' = 8: must be at least 16 and at most 512"),
        ({"n_train": 5}, "at least 100, or 0 for all"),
        ({"n_test": -1}, "at least 10, or 0 for all"),
        ({"architecture": "resnet19"}, "Did you mean 'resnet18'"),
        ({"epochs": 0}, "at least 1"),
        ({"batch_size": 1}, "at least 2"),
        ({"seeds": []}, "'seeds'.*empty"),
        ({"seeds": [1, 1]}, "'seeds'.*repeats"),
        ({"seeds": [-1]}, "'seeds'.*at least 0"),
        ({"severities": [6]}, "'severities'.*from 1 to 5, got 6"),
        ({"severities": [1, 1]}, "'severities'.*repeats"),
        ({"eps_test": 0}, "more than 0 and at most 0.5"),
        ({"eps_train": 8}, "more than 0 and at most 0.5"),
        ({"label_weight": 1.1}, "at least 0 and at most 1"),
        ({"mixup_alpha": 0}, "more than 0"),
        ({"attack_steps": 0}, "at least 1"),
        ({"normalise": "rato"}, "Did you mean 'ratio'"),
        ({"bootstrap": 5}, "at least 100"),
        ({"run": "a/b"}, "letters, digits"),
        ({"run": ".."}, "letters, digits"),
        ({"record_runs": ["x y"]}, "letters, digits"),
        ({"device": "gpu"}, "unknown device"),
        ({"corruptions": ["gausian_noise"]}, "unknown corruption 'gausian_noise'"),
        ({"dataset": "folder", "data_root": ""}, "needs the parameter 'data_root'"),
        ({"dataset": "shapes10", "image_size": 64}, "32 pixels"),
        ({"dataset": "folder", "data_root": "nowhere-at-all"}, "no existing folder"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validated(**values)


def test_trained_corruptions_are_not_unseen() -> None:
    from robustlib import corruptions

    name = corruptions.names("all")[0]
    with pytest.raises(ValueError, match=f"share {name}"):
        validated(train_corruptions=[name], unseen_corruptions=[name])


def test_data_root_needs_both_splits(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="the latter is missing"):
        validated(dataset="folder", data_root=str(tmp_path))
    (tmp_path / "val").mkdir()
    assert validated(dataset="folder", data_root=str(tmp_path)).data_root == str(tmp_path)


def notebook(path: Path, *sources: str) -> Path:
    cells = [
        nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]}) for source in sources
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_declarations_are_read(tmp_path: Path) -> None:
    source = (
        "n_train: int = 10_000  # training images\n"
        "eps_test: float = -1e-4  # radius\n"
        "corruptions: list[str] = [\n    'a',\n    'b',\n]  # two of them"
    )
    found = declared(notebook(tmp_path / "a.ipynb", source))
    assert list(found) == ["n_train", "eps_test", "corruptions"]
    assert (found["n_train"].type, found["n_train"].default) == ("int", 10_000)
    assert found["corruptions"].type == "list[str]"
    assert found["corruptions"].help == "two of them"


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "one code cell tagged 'parameters', found 0"),
        (["a: int = 1  # x", "b: int = 1  # x"], "found 2"),
        (["import os"], "only lines such as"),
        (["a = 1  # x"], "only lines such as"),
        (["a: int = 1"], "trailing comment"),
        (["b: int = 2 * a  # derived"], "must be a literal"),
        (["a: int = 1  # x\na: int = 2  # x"], "declared twice"),
        (["a: int ="], "not Python"),
        (["run: str = 'study'  # name"], "%run"),
    ],
)
def test_other_content_of_the_cell_is_refused(
    tmp_path: Path, sources: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        declared(notebook(tmp_path / "a.ipynb", *sources))


def test_not_a_notebook(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"a\.ipynb can't be read as a notebook"):
        declared(path)


def test_every_parameter_says_what_it_is() -> None:
    assert all(parameter.help for parameter in PARAMETERS.values())

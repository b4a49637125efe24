from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from robustlib.core.checks import UnknownNameError
from robustlib.data import DATASETS
from robustlib.study.declarations import declared
from robustlib.study.parameters import PARAMETERS, validated
from robustlib.study.values import coerce


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


def test_workers_and_scheduler_take_what_dask_prints() -> None:
    assert validated(workers="0", scheduler="").scheduler == ""
    assert validated(workers=1024).workers == 1024
    for address in ("tcp://10.0.0.7:8786", "tls://node-3.cluster:1", "tcp://[fe80::1]:65535"):
        assert validated(scheduler=address, workers=0).scheduler == address


def test_the_help_names_every_data_set() -> None:
    assert PARAMETERS["dataset"].help == "data set: " + ", ".join(DATASETS)


def test_unknown_parameter_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'epochs'"):
        validated(epoch=3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": "cifar"}, "Did you mean 'cifar10'"),
        ({"image_size": 8}, "'image_size' = 8: it must be a number from 16 to 512"),
        ({"n_train": 5}, r"at least 100 \(or 0 for all\)"),
        ({"n_test": -1}, r"at least 10 \(or 0 for all\)"),
        ({"architecture": "resnet19"}, "Did you mean 'resnet18'"),
        ({"epochs": 0}, "at least 1"),
        ({"batch_size": 1}, "at least 2"),
        ({"seeds": []}, "'seeds'.*empty"),
        ({"seeds": [1, 1]}, "'seeds'.*repeats"),
        ({"seeds": [-1]}, "'seeds'.*at least 0"),
        ({"severities": [6]}, "'severities'.*from 1 to 5, got 6"),
        ({"severities": [1, 1]}, "'severities'.*repeats"),
        ({"eps_test": 0}, "above 0, at most 0.5"),
        ({"recipes": ["standard", "mtlt"]}, "Did you mean 'mtlat'"),
        ({"recipes": ["mtlat"]}, "'recipes' must hold 'standard'"),
        ({"hyperparameters": ["mtlat.eps=7"]}, "must be a number from 0 to 0.5"),
        ({"hyperparameters": ["mtlat.epz=0.1"]}, "Did you mean 'eps'"),
        ({"from_run": "../mine"}, "must be letters"),
        ({"attack_steps": 0}, "from 1 to 1000"),
        ({"augmentation": "flip_shift"}, "Did you mean 'flip_and_shift'"),
        ({"normalise": "rato"}, "Did you mean 'ratio'"),
        ({"margin_clean": 0}, "'margin_clean' = 0.*above 0"),
        ({"margin_overlap": -0.1}, "'margin_overlap' = -0.1.*above 0"),
        ({"atlas_run": "a b"}, "letters, digits"),
        ({"public_data": "cifar-10"}, "Did you mean 'cifar10'"),
        ({"sizes": [0]}, "'sizes'.*from 1 to 15"),
        ({"overlap_limit": -1}, "at least 0"),
        ({"train_radii": [0.01, 2]}, "'train_radii'.*above 0, at most 0.5"),
        ({"train_radii": [0.01, 0.01]}, "'train_radii'.*repeats"),
        ({"set_size": 0}, "at least 1"),
        ({"set_size": 2, "train_corruptions": ["fog", "snow"]}, "less than the 2"),
        ({"random_sets": 0}, "at least 1"),
        ({"from_run": "a/b"}, "letters, digits"),
        ({"calibrated_loss": 1.5}, "at most 1"),
        ({"weight_decay": -1e-4}, "at least 0"),
        ({"eps_adversarial": 0.6}, "or 0 for none"),
        ({"run": "a/b"}, "letters, digits"),
        ({"run": ".."}, "letters, digits"),
        ({"record_runs": ["x y"]}, "letters, digits"),
        ({"device": "gpu"}, "unknown device"),
        ({"workers": -1}, r"1 to 1024 \(or 0 for as many as cores\)"),
        ({"workers": 2000}, r"1 to 1024 \(or 0 for as many as cores\)"),
        ({"scheduler": "8786"}, "'scheduler' = '8786': must be the address of a Dask scheduler"),
        ({"scheduler": "host:8786"}, "such as tcp://host:8786"),
        ({"scheduler": "tcp://host"}, "such as tcp://host:8786"),
        ({"scheduler": "tcp://host:99999"}, "such as tcp://host:8786"),
        ({"scheduler": "tcp://a b:1"}, "or '' for this machine"),
        ({"scheduler": "tcp://host:8786", "workers": 2}, "leave 'workers' at 0"),
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


def test_a_run_to_analyse_may_be_left_out() -> None:
    assert validated(from_run="").from_run == ""
    assert validated(from_run="cifar10").from_run == "cifar10"


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


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"worksheets": []}', '{"cells": [{}]}'])
def test_not_a_notebook(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.ipynb can't be read as a notebook"):
        declared(path)


def test_every_parameter_says_what_it_is() -> None:
    assert all(parameter.help for parameter in PARAMETERS.values())


# --- Options --------------------------------------------------------------------------------------


def test_options_have_the_types_of_their_defaults(tmp_path: Path) -> None:
    entries = ["cw.steps=9", "cw.stepsize=1/50", "glass_blur.swap=true",
               f"frost.photographs={tmp_path}"]  # fmt: skip
    options = validated(options=entries).options
    assert dict(options) == {
        "cw": {"steps": 9, "stepsize": 0.02},
        "glass_blur": {"swap": True},
        "frost": {"photographs": tmp_path.resolve()},
    }
    assert options.of("cw", steps=3, gamma=7) == {"steps": 9, "stepsize": 0.02, "gamma": 7}
    assert options.of("pgd", steps=7) == {"steps": 7}
    assert options.among(["cw", "fog"]) == {"cw": options["cw"]}
    assert str(tmp_path) not in str(options)
    assert tmp_path.name in str(options)
    assert validated(options=[]).options.of("cw") == {}


def test_options_reach_what_they_are_options_of() -> None:
    from robustlib.perturbations import Attack, corruption_grid

    options = validated(options="cw.steps=9, glass_blur.swap=yes").options
    assert Attack("cw", 0.5, **options.of("cw")).options["steps"] == 9
    blurred, fog = corruption_grid(
        ["glass_blur", "fog"], [3], options=options.among(["glass_blur", "fog"])
    )
    assert blurred.options["swap"] is True
    assert not fog.options


def test_options_without_effect_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    options = validated(options=["cw.steps=9", "pgd.steps=3"]).options
    options.say_unused(["pgd", "cw"])
    assert capsys.readouterr().out == ""
    options.say_unused(["pgd"])
    assert capsys.readouterr().out == "Without effect in this notebook: the options of cw.\n"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("cww.steps=9", "unknown corruption or attack 'cww'. Did you mean 'cw'"),
        ("cw.stepps=9", "Did you mean 'steps'"),
        ("cw.steps=many", "cw.steps must be a whole number, got 'many'"),
        ("cw.steps=1.5", "cw.steps must be a whole number"),
        ("cw.steps=0", "at least 1"),
        ("cw.stepsize=-1", "at least 0"),
        ("glass_blur.swap=perhaps", "must be true or false"),
        ("fgsm.steps=3", "'fgsm' takes no options"),
        ("fog.swap=true", "'fog' takes no options"),
        ("frost.photographs=nowhere", "no file or folder 'nowhere'"),
        ("cw.steps", "form name.option=value"),
        ("steps=9", "form name.option=value"),
        ("cw.steps=", "form name.option=value"),
        ("cw.steps=2, cw.steps=3", "given twice"),
    ],
)
def test_other_options_are_refused(entry: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"parameter 'options' = .*{message}"):
        validated(options=entry)


# --- Reading in a notebook ------------------------------------------------------------------------

DECLARE = "epochs: int = 3  # passes\nseeds: list[int] = [0]  # seeds"
READ = "from robustlib.study import parameters\nsettings = parameters.read(globals())"
LATER = "import os\nfrom time import time\nlimit = 0.4\nkept: list[str] = []"
Run = Callable[..., dict[str, Any]]


def run_by_exec(*cells: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    for cell in cells:
        exec(cell, namespace)
    return namespace


def run_in_a_shell(*cells: str) -> dict[str, Any]:
    """As a kernel runs cells, one after the other; the first error is raised."""
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
    for cell in cells:
        shell.run_cell(cell, store_history=True).raise_error()
    return shell.user_ns


@pytest.fixture(params=[run_by_exec, run_in_a_shell])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param


def test_declared_names_are_read_and_taken_away(run: Run) -> None:
    namespace = run(DECLARE, READ)
    assert asdict(namespace["settings"]) == {"epochs": 3, "seeds": (0,)}
    assert "epochs" not in namespace
    assert "seeds" not in namespace


def test_injected_values_replace_defaults(run: Run) -> None:
    namespace = run(DECLARE, "# Parameters\nepochs = '5'\nseeds = '1,2'", READ)
    assert asdict(namespace["settings"]) == {"epochs": 5, "seeds": (1, 2)}


@pytest.mark.parametrize("comment", ["# Parameters\n", ""])
@pytest.mark.parametrize("value", ["3", "'x'", "[1]", "None", "{'a': 1}", "True"])
def test_injected_names_that_are_not_declared_are_refused(
    run: Run, comment: str, value: str
) -> None:
    with pytest.raises(UnknownNameError, match=r"'epcohs'\. Did you mean 'epochs'"):
        run(DECLARE, f"{comment}seeds = [1]\nepcohs = {value}", READ)


def unchanged(namespace: dict[str, Any]) -> bool:
    return asdict(namespace["settings"]) == {"epochs": 3, "seeds": (0,)}


def test_reading_again_minds_no_other_variables(run: Run) -> None:
    assert unchanged(run(DECLARE, READ, LATER, READ))
    assert unchanged(run(DECLARE, READ, LATER, READ, READ))
    assert unchanged(run(DECLARE, READ, LATER, "x = 3", DECLARE, READ))
    assert unchanged(run(DECLARE, READ, LATER, "x = 3", DECLARE, "x = 3", LATER, READ))


def test_reading_again_minds_new_values(run: Run) -> None:
    changed = run(DECLARE, READ, LATER, "epochs = 7", READ)["settings"]
    assert asdict(changed) == {"epochs": 7, "seeds": (0,)}
    assert run(DECLARE, "epochs = 7", READ, DECLARE, READ)["settings"].epochs == 3
    fewer = run(DECLARE, READ, "epochs: int = 4  # passes", READ)["settings"]
    assert fewer.epochs == 4


def test_cells_before_the_first_reading_don_t_matter_in_a_kernel() -> None:
    """Whoever runs the imports before the line that reads the parameters."""
    imports = "import time\nstarted = time.time()\nnames = ['a', 'b']"
    assert unchanged(run_in_a_shell(DECLARE, imports, READ))
    assert unchanged(run_in_a_shell(LATER, "x = 3", DECLARE, READ, LATER, READ))


def test_a_corrected_injection_is_accepted() -> None:
    cells = [DECLARE, "# Parameters\nepcohs = 3", "try:\n    import robustlib.study.parameters as p"
             "\n    p.read(globals())\nexcept ValueError as error: caught = str(error)",
             "# Parameters\nepochs = 9", READ]  # fmt: skip
    namespace = run_in_a_shell(*cells)
    assert "run again from the cell of the parameters" in namespace["caught"]
    assert namespace["settings"].epochs == 9


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("epochs: float = 2.0  # passes", "declares 'epochs' as float; it must be int"),
        ("epoch: int = 2  # passes", "unknown parameter in this notebook: 'epoch'"),
        ("epochs: int = 0  # passes", "of at least 1"),
        ("epochs: 'float' = 2.0  # passes", "declares 'epochs' as"),
        ("x = 2", "no parameter is declared"),
    ],
)
def test_bad_declarations_are_refused_when_read(run: Run, source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(source, READ)


def test_a_parameter_can_t_be_used_unread(run: Run) -> None:
    with pytest.raises(NameError, match="epochs"):
        run(DECLARE, READ, "print(epochs)")


def test_settings_are_shown_as_text_only() -> None:
    shown = validated(device="cpu", options=["cw.steps=9"])._repr_html_()
    assert "cw.steps=9" in shown
    assert "mathjax_ignore" in shown

"""The one truth on notebook parameters: their names, types, allowed values and meaning.

Notebooks declare a subset of `PARAMETERS` in their cell tagged `parameters` and pass the values
through `validated`; the study runner reads the same declarations with `declared`.
"""

from __future__ import annotations

import ast
import dataclasses
import html
import io
import math
import re
import tokenize
from collections.abc import Callable, Collection
from fractions import Fraction
from pathlib import Path
from typing import Any

import nbformat
import yaml

from robustlib.core import paths
from robustlib.core.checks import check_name, check_nonempty, check_severity
from robustlib.core.devices import pick_device
from robustlib.data import DATASETS

Check = Callable[[Any], object]
"""Takes a value of the right type; raises `ValueError` if it is not allowed."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One notebook parameter.

    Attributes:
        type: `int`, `float`, `str`, `bool`, or a list of one of them such as `list[int]`.
        check: raises `ValueError` for a value of that type which is not allowed.
        help: the meaning, in one line.
    """

    type: str
    check: Check
    help: str


def _between(low: float, high: float = math.inf, *, zero: str = "", above: bool = False) -> Check:
    """From `low` (excluded if `above`) to `high`; `zero` says what 0 means, if it is allowed."""

    def check(value: float) -> None:
        if zero and value == 0:
            return
        if not (low < value if above else low <= value) or value > high:
            bound = f"more than {low:g}" if above else f"at least {low:g}"
            limit = f" and at most {high:g}" if math.isfinite(high) else ""
            alternative = f", or 0 for {zero}" if zero else ""
            raise ValueError(f"must be {bound}{limit}{alternative}")

    return check


def _one_of(allowed: Callable[[], Collection[str]], kind: str) -> Check:
    return lambda value: check_name(value, allowed(), kind)


def _each(check: Check) -> Check:
    """A list that is not empty and repeats nothing, each entry of which passes `check`."""

    def check_all(values: list[Any]) -> None:
        check_nonempty(values, "the list")
        for value in values:
            check(value)

    return check_all


def _corruption_names() -> Collection[str]:
    from robustlib import corruptions

    return corruptions.names("all")


def _architecture_names() -> Collection[str]:
    from robustlib.models import ARCHITECTURES

    return ARCHITECTURES


def _run_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError("must be letters, digits, '-', '_' and '.', and start with the first two")


def _run_names(names: list[str]) -> None:
    for name in names:
        _run_name(name)


def _data_root(root: str) -> None:
    """Empty, or a folder with train/ and test/ or val/, seen from here or from the project."""
    if not root:
        return
    folder = Path(root).expanduser()
    if not folder.is_dir():
        folder = paths.project_root() / folder
    if not folder.is_dir():
        raise ValueError("is no existing folder")
    if not (folder / "train").is_dir():
        raise ValueError("must be a folder with train/ and test/ (or val/); train/ is missing")
    if not ((folder / "test").is_dir() or (folder / "val").is_dir()):
        raise ValueError("must be a folder with train/ and test/ (or val/); the latter is missing")


_CORRUPTIONS = _each(_one_of(_corruption_names, "corruption"))
_RADIUS = _between(0, 0.5, above=True)

PARAMETERS: dict[str, Parameter] = {
    "dataset": Parameter(
        "str", _one_of(lambda: DATASETS, "data set"), "data set: " + ", ".join(DATASETS)
    ),
    "data_root": Parameter("str", _data_root, "folder of the data; '' for the default place"),
    "image_size": Parameter("int", _between(16, 512), "side of the images in pixels"),
    "n_train": Parameter("int", _between(100, zero="all"), "training images; 0 for all"),
    "n_test": Parameter("int", _between(10, zero="all"), "test images; 0 for all"),
    "n_attack": Parameter("int", _between(10), "test images that are attacked, the first ones"),
    "n_sanity": Parameter("int", _between(10), "images for the sanity checks of attacks"),
    "n_ablation": Parameter("int", _between(100), "training images of an ablation"),
    "architecture": Parameter(
        "str", _one_of(_architecture_names, "architecture"), "network: small_resnet, resnet18, ..."
    ),
    "epochs": Parameter("int", _between(1), "passes over the training images"),
    "ablation_epochs": Parameter("int", _between(1), "passes over the images of an ablation"),
    "batch_size": Parameter("int", _between(2), "images in a training batch"),
    "seeds": Parameter("list[int]", _each(_between(0)), "training seeds, one model for each"),
    "severities": Parameter("list[int]", _each(check_severity), "severities, from 1 to 5"),
    "corruptions": Parameter("list[str]", _CORRUPTIONS, "corruptions to study"),
    "train_corruptions": Parameter("list[str]", _CORRUPTIONS, "corruptions to train with"),
    "unseen_corruptions": Parameter("list[str]", _CORRUPTIONS, "corruptions for the test only"),
    "eps_test": Parameter("float", _RADIUS, "Linf radius of the test attacks, pixels in [0, 1]"),
    "eps_l2": Parameter("float", _between(0, above=True), "L2 radius of the test attacks"),
    "eps_train": Parameter("float", _RADIUS, "largest Linf radius in adversarial training"),
    "label_weight": Parameter("float", _between(0, 1), "weight of the target in TLAT's labels"),
    "mixup_alpha": Parameter("float", _between(0, 10, above=True), "alpha of Mixup's Beta(a, a)"),
    "attack_steps": Parameter("int", _between(1, 1000), "steps of the iterated attacks"),
    "restarts": Parameter("int", _between(1, 100), "random starts of PGD"),
    "normalise": Parameter(
        "str",
        _one_of(lambda: ("ratio", "raw"), "normalisation"),
        "overlap of accuracies relative to clean (ratio) or as they are (raw)",
    ),
    "bootstrap": Parameter("int", _between(100, 100_000), "resamples for each interval"),
    "run": Parameter("str", _run_name, "name of the run, for its tables and report"),
    "record_runs": Parameter("list[str]", _run_names, "runs whose tables are cited, if any"),
    "device": Parameter("str", pick_device, "device: auto, cpu or cuda"),
}


def coerce(name: str, value: object, kind: str) -> Any:
    """Return `value` as `kind`, one of the types that `Parameter.type` names.

    Accepts what papermill and YAML turn well-meant values into: 'false' for a bool, '1e-4' or
    '8/255' for a float, 3.0 for an int, a scalar or a comma-separated string for a list.

    Raises `ValueError` that names the parameter, what was given and what is expected.
    """
    element = re.fullmatch(r"list\[(\w+)\]", kind)
    try:
        if element is None:
            return _SCALARS[kind](value)
        return [_SCALARS[element[1]](entry) for entry in _entries(value)]
    except (ValueError, TypeError, ZeroDivisionError, yaml.YAMLError):
        expected = _EXPECTED[element[1] if element else kind]
        form = f"a list, each entry {expected}" if element else expected
        raise ValueError(f"parameter {name!r} must be {form}; got {value!r}.") from None


def _entries(value: object) -> list[object]:
    if isinstance(value, (list, tuple)):
        return list(value)
    if not isinstance(value, str):
        return [value]
    if value.strip().startswith("["):
        return list(yaml.safe_load(value))
    return [entry.strip() for entry in value.split(",")] if value.strip() else []


def _int(value: object) -> int:
    number = _float(value)
    if number != int(number):
        raise ValueError
    return int(value) if isinstance(value, int) else int(number)


def _float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError
    if isinstance(value, str) and "/" in value:
        number = float(Fraction(value.replace(" ", "")))
    else:
        number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _bool(value: object) -> bool:
    text = str(value).strip().lower()
    if text in ("true", "yes", "1"):
        return True
    if text in ("false", "no", "0"):
        return False
    raise ValueError


def _str(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise TypeError
    return str(value)


_SCALARS: dict[str, Callable[[object], Any]] = {
    "int": _int,
    "float": _float,
    "bool": _bool,
    "str": _str,
}
_EXPECTED = {
    "int": "a whole number",
    "float": "a finite number",
    "bool": "true or false",
    "str": "text",
}


class Settings:
    """Base of what `validated` returns: a frozen dataclass, shown as a table in a notebook."""

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{field.name}</th>"
            f"<td style='text-align:left'>{html.escape(_shown(getattr(self, field.name)))}</td>"
            f"<td style='text-align:left'>{html.escape(PARAMETERS[field.name].help)}</td></tr>"
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
        )
        return f"<table><tbody>{rows}</tbody></table>"


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def validated(**values: object) -> Any:
    """Coerce and check parameters; return them as the attributes of a frozen dataclass.

    Lists become tuples, so that nothing in the result can change.

    Raises:
        UnknownNameError: a name that is not in `PARAMETERS`.
        ValueError: a value of the wrong type or out of range, or values that contradict each
            other. The message names the parameter.
    """
    checked = {name: _checked(name, value) for name, value in values.items()}
    _check_together(checked)
    fields = [(name, type(value)) for name, value in checked.items()]
    settings = dataclasses.make_dataclass("Settings", fields, bases=(Settings,), frozen=True)
    return settings(**checked)


def _checked(name: str, value: object) -> Any:
    check_name(name, PARAMETERS, "parameter")
    parameter = PARAMETERS[name]
    coerced = coerce(name, value, parameter.type)
    try:
        parameter.check(coerced)
    except ValueError as error:
        raise ValueError(f"parameter {name!r} = {coerced!r}: {str(error).rstrip('.')}.") from None
    return tuple(coerced) if isinstance(coerced, list) else coerced


def _check_together(values: dict[str, Any]) -> None:
    dataset = values.get("dataset")
    if dataset == "folder" and not values.get("data_root"):
        raise ValueError(
            "dataset 'folder' needs the parameter 'data_root', a folder with train/ and test/ "
            "(or val/)."
        )
    if dataset == "shapes10" and values.get("data_root"):
        raise ValueError("dataset 'shapes10' is generated: leave the parameter 'data_root' empty.")
    if dataset not in (None, "folder") and values.get("image_size", 32) != 32:
        raise ValueError(f"dataset {dataset!r} has images of 32 pixels: set 'image_size' to 32.")
    seen = set(values.get("train_corruptions", ())) & set(values.get("unseen_corruptions", ()))
    if seen:
        raise ValueError(
            "'train_corruptions' and 'unseen_corruptions' share "
            f"{', '.join(sorted(seen))}: what is trained with is not unseen."
        )


@dataclasses.dataclass(frozen=True)
class Declared:
    """A parameter as a notebook declares it: its annotation, default value and comment."""

    type: str
    default: Any
    help: str


def declared(notebook: str | Path) -> dict[str, Declared]:
    """The parameters that a notebook declares in its cell tagged `parameters`, in order.

    Raises `ValueError` if the notebook can't be read, has no such cell or several, or if anything
    stands in it but lines of the form `n_train: int = 10_000  # comment`.
    """
    path = Path(notebook)
    try:
        cells = nbformat.read(path, as_version=4).cells
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise ValueError(f"{path.name} can't be read as a notebook: {error}") from None
    tagged = [
        cell.source
        for cell in cells
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", [])
    ]
    if len(tagged) != 1:
        raise ValueError(
            f"{path.name} must have one code cell tagged 'parameters', found {len(tagged)}."
        )
    return _declarations(tagged[0], path.name)


def _declarations(source: str, where: str) -> dict[str, Declared]:
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(f"{where}: the parameters cell is not Python: {error}.") from None
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, Declared] = {}
    for statement in statements:
        text = ast.unparse(statement)
        fault = f"{where}: the parameters cell holds {text!r}; "
        if not (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.value is not None
        ):
            raise ValueError(f"{fault}only lines such as 'epochs: int = 8  # comment' may stand.")
        try:
            default = ast.literal_eval(statement.value)
        except ValueError:
            raise ValueError(f"{fault}its value must be a literal.") from None
        comment = comments.get(statement.end_lineno or 0) or comments.get(statement.lineno)
        if not comment:
            raise ValueError(f"{fault}it needs a trailing comment that says what it is.")
        name = statement.target.id
        if name in found:
            raise ValueError(f"{fault}{name!r} is declared twice.")
        found[name] = Declared(ast.unparse(statement.annotation), default, comment)
    if list(found) == ["run"] and "\n" not in source.strip():
        raise ValueError(
            f"{where}: IPython takes a cell of the single line 'run: ...' for its command %run; "
            "put a comment line above it."
        )
    return found

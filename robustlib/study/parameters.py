"""The one truth on notebook parameters: their names, types, allowed values and meaning.

Notebooks declare a subset of `PARAMETERS` in their cell tagged `parameters` and `read` the values
in the next one; the study runner reads the same declarations from their files.
"""

from __future__ import annotations

import dataclasses
import html
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from robustlib.core import paths
from robustlib.core.checks import (
    UnknownNameError,
    check_name,
    check_nonempty,
    check_number,
    check_severity,
)
from robustlib.study.declarations import KEPT, executed
from robustlib.study.values import coerce

Check = Callable[[Any], Any]
"""Takes a value of the right type; returns it as settings hold it, or raises `ValueError`."""


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
    unit = f"or 0 for {zero}" if zero else ""

    def check(value: float) -> float:
        if not (zero and value == 0):
            check_number(value, "it", low=low, high=high, above=above, unit=unit)
        return value

    return check


def _one_of(allowed: Callable[[], Iterable[str]], kind: str) -> Check:
    return lambda value: check_name(value, allowed(), kind)


def _each(check: Check) -> Check:
    """A list that is not empty and repeats nothing, each entry of which passes `check`."""

    def check_all(values: list[Any]) -> tuple[Any, ...]:
        check_nonempty(values, "the list")
        return tuple(check(value) for value in values)

    return check_all


# What needs torch is imported late: a notebook needn't wait for what it doesn't declare.


def _dataset_names() -> Iterable[str]:
    from robustlib.data import DATASETS

    return DATASETS


def _corruption_names() -> Iterable[str]:
    from robustlib import corruptions

    return corruptions.names("all")


def _architecture_names() -> Iterable[str]:
    from robustlib.models import ARCHITECTURES

    return ARCHITECTURES


def _augmentation_names() -> Iterable[str]:
    from robustlib.training import AUGMENTATIONS

    return AUGMENTATIONS


def _recipe_names() -> Iterable[str]:
    from robustlib.recipes.suite import SUITE

    return [recipe.name for recipe in SUITE]


def _hyperparameters(entries: list[str]) -> tuple[str, ...]:
    from robustlib.recipes.suite import suite

    suite(entries)
    return tuple(entries)


def _options(entries: list[str]) -> Mapping[str, Mapping[str, Any]]:
    from robustlib.study.options import Options

    return Options(entries)


def _device(name: str) -> str:
    from robustlib.core.devices import pick_device

    pick_device(name)
    return name


def _scheduler(address: str) -> str:
    """Empty, or protocol://host:port, as a Dask scheduler prints it."""
    found = re.fullmatch(r"[a-z]+://(\[[0-9A-Fa-f:.%]+\]|[^\s/:\[\]]+):(\d+)/?", address)
    if address and not (found and 0 < int(found[2]) < 65536):
        raise ValueError(
            "must be the address of a Dask scheduler, such as tcp://host:8786, or '' for this "
            "machine"
        )
    return address


def _run_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError("must be letters, digits, '-', '_' and '.', and start with the first two")
    return name


def _run_names(names: list[str]) -> tuple[str, ...]:
    return tuple(_run_name(name) for name in names)


def _card_data(name: str) -> str:
    return check_name(name, ("none", "cifar10", "cifar100", "imagenet"), "data to stand beside")


def _path(text: str) -> str:
    """Empty, or a file or folder, seen from here or from the project."""
    if text and not any((place / Path(text).expanduser()).exists() for place in _places()):
        raise ValueError("is no existing file or folder")
    return text


def _places() -> tuple[Path, Path]:
    return Path(), paths.project_root()


def _data_root(root: str) -> str:
    """Empty, or a folder with train/ and test/ or val/, seen from here or from the project."""
    if not root:
        return root
    folder = Path(root).expanduser()
    if not folder.is_dir():
        folder = paths.project_root() / folder
    if not folder.is_dir():
        raise ValueError("is no existing folder")
    if not (folder / "train").is_dir():
        raise ValueError("must be a folder with train/ and test/ (or val/); train/ is missing")
    if not ((folder / "test").is_dir() or (folder / "val").is_dir()):
        raise ValueError("must be a folder with train/ and test/ (or val/); the latter is missing")
    return root


_CORRUPTIONS = _each(_one_of(_corruption_names, "corruption"))
_RADIUS = _between(0, 0.5, above=True)

PARAMETERS: dict[str, Parameter] = {
    "dataset": Parameter(
        "str",
        _one_of(_dataset_names, "data set"),
        "data set: shapes10, cifar10, cifar100, folder",
    ),
    "data_root": Parameter("str", _data_root, "folder of the data; '' for the default place"),
    "image_size": Parameter("int", _between(16, 512), "side of the images in pixels"),
    "n_train": Parameter("int", _between(100, zero="all"), "training images; 0 for all"),
    "n_test": Parameter("int", _between(10, zero="all"), "test images; 0 for all"),
    "n_attack": Parameter("int", _between(10), "test images that are attacked, the first ones"),
    "n_sanity": Parameter("int", _between(10), "images for the sanity checks of attacks"),
    "architecture": Parameter(
        "str", _one_of(_architecture_names, "architecture"), "network: small_resnet, resnet18, ..."
    ),
    "epochs": Parameter("int", _between(1), "passes over the training images"),
    "finetune_epochs": Parameter(
        "int",
        _between(1, zero="training from scratch"),
        "passes of each recipe from a trained standard model on; 0 for all from scratch",
    ),
    "recipes": Parameter(
        "list[str]", _each(_one_of(_recipe_names, "recipe")), "training recipes to compare"
    ),
    "hyperparameters": Parameter(
        "list[str]", _hyperparameters, "hyperparameters of recipes, recipe.hyperparameter=value"
    ),
    "equal_compute": Parameter(
        "bool", lambda value: value, "train each recipe for as much compute as M-TLAT, too"
    ),
    "ablation": Parameter("bool", lambda value: value, "train the variants of an ablation, too"),
    "weight_decay": Parameter("float", _between(0), "L2 penalty on the weights in training"),
    "batch_size": Parameter("int", _between(2), "images in a training batch"),
    "augmentation": Parameter(
        "str",
        _one_of(_augmentation_names, "augmentation"),
        "of training images: flips and shifts, wrong for digits, text and signs; none, shift, ...",
    ),
    "models": Parameter(
        "list[str]", tuple, "one or two models, as for robustlib card; [] for two of this study"
    ),
    "weights": Parameter("list[str]", tuple, "a file of weights for each model, if it needs one"),
    "mean": Parameter(
        "list[float]", tuple, "of red, green, blue, if models want normalised images"
    ),
    "std": Parameter("list[float]", tuple, "standard deviations, see mean"),
    "images": Parameter("str", str, "folder of class folders; '' for the test images of dataset"),
    "classes": Parameter("str", _path, "file with a class a line, in the order of the outputs"),
    "budget": Parameter("float", _between(0), "minutes for a card; 0 for all images"),
    "beside": Parameter("str", _card_data, "published accuracies to show beside, or none"),
    "seeds": Parameter("list[int]", _each(_between(0)), "training seeds, one model for each"),
    "severities": Parameter("list[int]", _each(check_severity), "severities, from 1 to 5"),
    "corruptions": Parameter("list[str]", _CORRUPTIONS, "corruptions to study"),
    "train_corruptions": Parameter("list[str]", _CORRUPTIONS, "corruptions to train with"),
    "unseen_corruptions": Parameter("list[str]", _CORRUPTIONS, "corruptions for the test only"),
    "eps_test": Parameter("float", _RADIUS, "Linf radius of the test attacks, pixels in [0, 1]"),
    "eps_l2": Parameter("float", _between(0, above=True), "L2 radius of the test attacks"),
    "eps_adversarial": Parameter(
        "float",
        _between(0, 0.5, above=True, zero="none"),
        "Linf radius of PGD as one more perturbation; 0 for none",
    ),
    "train_radii": Parameter(
        "list[float]", _each(_RADIUS), "Linf radii of adversarial training, pixels in [0, 1]"
    ),
    "attack_steps": Parameter("int", _between(1, 1000), "steps of the iterated attacks"),
    "restarts": Parameter("int", _between(1, 100), "random starts of PGD"),
    "margin_clean": Parameter(
        "float", _between(0, 1, above=True), "loss of clean accuracy, at most, that counts as none"
    ),
    "margin_overlap": Parameter(
        "float", _between(0, 1, above=True), "largest overlap that counts as independence"
    ),
    "normalise": Parameter(
        "str",
        _one_of(lambda: ("ratio", "raw"), "normalisation"),
        "overlap of accuracies relative to clean (ratio) or as they are (raw)",
    ),
    "from_run": Parameter(
        "str",
        lambda name: _run_name(name) if name else name,
        "run whose per-image results are analysed; '' to train here",
    ),
    "atlas_run": Parameter("str", _run_name, "run whose per-image results the atlas is made of"),
    "public_data": Parameter(
        "str",
        _one_of(lambda: ("cifar10", "cifar100", "imagenet", "imagenet100"), "data"),
        "data of the public models: cifar10, cifar100, imagenet or imagenet100",
    ),
    "sizes": Parameter("list[int]", _each(_between(1, 15)), "numbers of corruptions to choose"),
    "overlap_limit": Parameter(
        "float", _between(0), "overlap beyond which two corruptions count as alike"
    ),
    "set_size": Parameter("int", _between(1), "corruptions in a set to train with"),
    "random_sets": Parameter("int", _between(1), "random sets beside the chosen one"),
    "calibrated_loss": Parameter(
        "float", _between(0, 1, above=True), "accuracy that each corruption of a benchmark costs"
    ),
    "options": Parameter(
        "list[str]", _options, "options of corruptions and attacks in the tests, name.option=value"
    ),
    "run": Parameter("str", _run_name, "name of the run, for its tables and report"),
    "record_runs": Parameter("list[str]", _run_names, "runs whose tables are cited, if any"),
    "device": Parameter("str", _device, "device: auto, cpu or cuda"),
    "workers": Parameter(
        "int",
        _between(1, 1024, zero="as many as cores"),
        "processes that train and evaluate; 0 for as many as cores",
    ),
    "scheduler": Parameter(
        "str", _scheduler, "address of a Dask scheduler, tcp://host:8786; '' for this machine"
    ),
}


class Settings:
    """Base of what `read` returns: a frozen dataclass, shown as a table in a notebook."""

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{field.name}</th>"
            f"<td style='text-align:left'>{html.escape(_shown(getattr(self, field.name)))}</td>"
            f"<td style='text-align:left'>{html.escape(PARAMETERS[field.name].help)}</td></tr>"
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
        )
        # JupyterLab takes no $ in it for a formula
        return f"<table class='tex2jax_ignore mathjax_ignore'><tbody>{rows}</tbody></table>"


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def read(namespace: dict[str, Any]) -> Any:
    """The parameters that a notebook has declared, as `validated` returns them.

    To be called as `settings = parameters.read(globals())` after the parameters cell. It takes the
    values out of the namespace, so that no later cell can use one that wasn't checked, and
    keeps them aside: it may be called again, with other values assigned in between or not.

    Raises:
        ValueError: there is nothing declared, or see `validated` and `check_declared`.
        UnknownNameError: a name was assigned beside the declared ones, say by
            `papermill -p epcohs 3`, that the notebook doesn't declare.
    """
    types, injected = executed(namespace, PARAMETERS)
    if not types:
        raise ValueError("no parameter is declared; run the cell with the parameters first.")
    check_declared(types, "this notebook")
    for name in sorted(injected):
        try:
            check_name(name, types, "parameter, not declared by this notebook:")
        except UnknownNameError as error:
            raise UnknownNameError(
                f"{error} Correct it, and run again from the cell of the parameters on."
            ) from None
    kept = namespace.setdefault(KEPT, {})
    kept |= {name: namespace[name] for name in types if name in namespace}
    settings = validated(**{name: kept[name] for name in types})
    for name in types:
        namespace.pop(name, None)
    return settings


def check_declared(types: Mapping[str, str], where: str) -> None:
    """Raise `ValueError` if a name isn't in `PARAMETERS` or is declared with another type."""
    for name, kind in types.items():
        check_name(name, PARAMETERS, f"parameter in {where}:")
        if kind != PARAMETERS[name].type:
            raise ValueError(
                f"{where} declares {name!r} as {kind}; it must be {PARAMETERS[name].type}."
            )


def validated(**values: object) -> Any:
    """Coerce and check parameters; return them as the attributes of a frozen dataclass.

    Lists become tuples, and `options` a mapping, so that nothing in the result can change.

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
        return parameter.check(coerced)
    except ValueError as error:
        raise ValueError(f"parameter {name!r} = {coerced!r}: {str(error).rstrip('.')}.") from None


def _check_together(values: dict[str, Any]) -> None:
    if values.get("scheduler") and values.get("workers"):
        raise ValueError(
            "the workers of a scheduler are those it has: with 'scheduler', leave 'workers' at 0."
        )
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
    if "standard" not in values.get("recipes", ["standard"]):
        raise ValueError("'recipes' must hold 'standard', which the others are compared with.")
    seen = set(values.get("train_corruptions", ())) & set(values.get("unseen_corruptions", ()))
    if seen:
        raise ValueError(
            "'train_corruptions' and 'unseen_corruptions' share "
            f"{', '.join(sorted(seen))}: what is trained with is not unseen."
        )
    if "set_size" in values and values["set_size"] >= len(values.get("train_corruptions", ())):
        raise ValueError(
            f"'set_size' is {values['set_size']}: it must be less than the "
            f"{len(values.get('train_corruptions', ()))} 'train_corruptions' that sets are made of."
        )

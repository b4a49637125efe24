"""A benchmark of corruptions as a small file: which ones, how strong, and what each counts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustlib import corruptions
from robustlib.core.checks import (
    check_name,
    check_names,
    check_nonempty,
    check_number,
    check_severity,
    check_whole,
    settle,
)
from robustlib.data import Split, StreamedSplit
from robustlib.data.images import shown
from robustlib.perturbations import Corruption, corruption_grid

if TYPE_CHECKING:
    import pandas as pd

FORMAT_VERSION = 1
_KEYS = ("format_version", "name", "version", "image_size", "corruptions", "provenance")
_ENTRY_KEYS = ("name", "severities", "weight", "options")


@dataclass(frozen=True)
class Benchmark:
    """Corruptions, their severities, and the weight of each in the score.

        benchmark = Benchmark.load("mine.json")
        result = evaluate(models, dataset.test, benchmark.perturbations(dataset.test), store=store)
        benchmark.score(result.table)

    Attributes:
        name: what it is called.
        version: of the benchmark, such as "1.0". Change it with anything that changes a score.
        severities: by corruption, each one or more of 1 to 5.
        weights: by corruption, above 0, summing to 1; equal ones if not given.
        image_size: side in pixels of the images that it is for, as a severity means something else
            at another size; None for any.
        options: by corruption, where some are wanted, as {"glass_blur": {"swap": True}}.
        provenance: how it was chosen, anything that JSON can hold.

    Raises `ValueError` for anything else, and for an option that names a file, which others don't
    have; `UnknownNameError` for an unknown corruption or option.
    """

    name: str
    version: str
    severities: Mapping[str, Sequence[int]]
    weights: Mapping[str, float] = field(default_factory=dict)
    image_size: int | None = field(default=None, kw_only=True)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, kw_only=True)
    provenance: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("version", self.version)):
            if not (isinstance(text, str) and text.strip()):
                raise ValueError(f"the {what} of a benchmark must be a text, got {text!r}.")
        names = check_names(list(self.severities), corruptions.names(), "corruption")
        severities = {name: _checked_severities(name, self.severities[name]) for name in names}
        settle(self, severities=severities, weights=_checked_weights(dict(self.weights), names))
        if self.image_size is not None:
            settle(self, image_size=check_whole(self.image_size, "image_size", low=1))
        settle(self, options=_checked_options(self.options, names))
        try:
            settle(self, provenance=json.loads(json.dumps(dict(self.provenance), allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the provenance must be names and values for JSON: {error}") from None

    @classmethod
    def load(cls, path: str | Path) -> Benchmark:
        """The benchmark in a file that `save` wrote, or that was written by hand.

        Raises `ValueError` for a file that isn't there, isn't JSON, has an unknown format version,
        or lacks a key; for an unknown key, `UnknownNameError`; and as for any benchmark.
        """
        path = Path(path)
        try:
            record = json.loads(path.read_text("utf-8"), object_pairs_hook=_each_once)
        except OSError as error:
            raise ValueError(f"can't read the benchmark {shown(path)}: {error.strerror}.") from None
        except ValueError as error:
            raise ValueError(f"{shown(path)} is no benchmark in JSON: {error}.") from None
        try:
            return _parsed(record)
        except ValueError as error:
            raise type(error)(f"the benchmark {shown(path)}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write it as JSON, in place of what is there."""
        entries = [
            {
                "name": name,
                "severities": list(severities),
                "weight": self.weights[name],
                **({"options": self.options[name]} if name in self.options else {}),
            }
            for name, severities in self.severities.items()
        ]
        record = {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "version": self.version,
            "image_size": self.image_size,
            "corruptions": entries,
            "provenance": self.provenance,
        }
        Path(path).write_text(json.dumps(record, indent=2) + "\n", "utf-8")

    def perturbations(self, split: Split | StreamedSplit) -> list[Corruption]:
        """What `robustlib.evaluation.evaluate` takes, for the images of `split`.

        Raises `ValueError` if the benchmark is for images of another size.
        """
        if self.image_size not in (None, split.image_size):
            raise ValueError(
                f"the benchmark {self.name!r} is for images of {self.image_size} px, but these "
                f"have {split.image_size} px; load them with image_size={self.image_size}."
            )
        return corruption_grid(self.severities, self.severities, self.options)

    def score(self, table: pd.DataFrame) -> pd.Series:
        """The benchmark's score of each model: the weighted mean of its accuracies, in [0, 1].

        The accuracy under a corruption is the mean over the benchmark's severities.

        Args:
            table: tidy table with the columns of `robustlib.evaluation.COLUMNS`. Other rows than
                those of the benchmark don't matter.

        Returns a score by model, in the order of the table.

        Raises:
            ValueError: a model that was not evaluated under a corruption at a severity of the
                benchmark, or more than once, or with other options, or models evaluated on
                different numbers of images.
        """
        cells = corruption_grid(self.severities, self.severities, self.options)
        options = {(cell.name, cell.severity): str(cell.options) for cell in cells}
        found = table.dropna(subset=["accuracy"]).set_index(["perturbation", "severity"])
        found = found[found.index.isin(list(options))]
        for (name, severity), wanted in options.items():
            rows = found[found.index == (name, severity)]
            twice = rows["model"][rows["model"].duplicated()]
            if len(twice):
                raise ValueError(
                    f"{twice.iloc[0]!r} was evaluated more than once under {name} at severity "
                    f"{severity}; drop the rows that repeat."
                )
            for given in rows["options"].fillna(""):
                if given != wanted and not given.startswith("stored in "):
                    raise ValueError(
                        f"{name} was evaluated with the options {given or 'none'}, but the "
                        f"benchmark {self.name!r} has {wanted or 'none'}."
                    )
        if found["n"].nunique() > 1:
            raise ValueError(
                f"the models were evaluated on different numbers of images, "
                f"{sorted(set(found['n']))}; evaluate all on the same ones."
            )
        evaluated = set(zip(found["model"], found.index, strict=True))
        for model in table["model"].unique():
            for name, severity in options:
                if (model, (name, severity)) not in evaluated:
                    raise ValueError(
                        f"{model!r} was not evaluated under {name} at severity {severity}, as the "
                        f"benchmark {self.name!r} wants; evaluate it under "
                        "benchmark.perturbations(split)."
                    )
        accuracy = found.groupby(["model", "perturbation"])["accuracy"].mean().unstack()
        accuracy = accuracy.loc[table["model"].unique(), list(self.weights)]
        return accuracy.dot(list(self.weights.values())).rename(self.name)


def _checked_severities(name: str, severities: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(severities, list | tuple):
        raise ValueError(f"the severities of {name} must be a list, got {severities!r}.")
    checked = tuple(check_severity(severity) for severity in severities)
    check_nonempty(checked, f"the list of severities of {name}")
    return checked


def _checked_weights(weights: dict[str, float], names: Sequence[str]) -> dict[str, float]:
    if not weights:
        return dict.fromkeys(names, 1 / len(names))
    for name in weights:
        check_name(name, names, "corruption with a weight; the benchmark holds")
    without = [name for name in names if name not in weights]
    if without:
        raise ValueError(f"no weight is given for {', '.join(without)}.")
    checked = {
        name: check_number(weights[name], f"the weight of {name}", low=0, above=True, high=1)
        for name in names
    }
    if not math.isclose(sum(checked.values()), 1, abs_tol=1e-6):
        raise ValueError(f"the weights must sum to 1, got {sum(checked.values()):g}.")
    return checked


def _checked_options(
    options: Mapping[str, Mapping[str, Any]], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    checked = corruptions.check_options_by_name(options, names)
    for name, given in checked.items():
        for option, value in given.items():
            if isinstance(value, Path):
                raise ValueError(
                    f"a benchmark can't hold {name}.{option}, which names a file or folder: "
                    "others don't have it."
                )
    return {name: given for name, given in checked.items() if given}


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise ValueError(f"the key {twice[0]!r} is given twice")
    return dict(pairs)


def _parsed(record: Any) -> Benchmark:
    """The benchmark of a file's content."""
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"format_version must be {FORMAT_VERSION}, which this robustlib reads, got {version!r}."
        )
    _check_keys(record, _KEYS, "key")
    entries = record["corruptions"]
    if not isinstance(entries, list):
        raise ValueError(f"corruptions must be a list, got {entries!r}.")
    for entry in entries:
        _check_keys(entry, _ENTRY_KEYS, "key of a corruption", optional=("options",))
        check_name(entry["name"], corruptions.names(), "corruption")
    check_nonempty([entry["name"] for entry in entries], "the list of corruptions")
    by_what = {"provenance": record["provenance"]}
    by_what |= {f"options of {entry['name']}": entry.get("options", {}) for entry in entries}
    for what, value in by_what.items():
        if not isinstance(value, dict):
            raise ValueError(f"{what} must be names and values, got {value!r}.")
    return Benchmark(
        record["name"],
        record["version"],
        {entry["name"]: entry["severities"] for entry in entries},
        {entry["name"]: entry["weight"] for entry in entries},
        image_size=record["image_size"],
        options={entry["name"]: entry.get("options", {}) for entry in entries},
        provenance=record["provenance"],
    )


def _check_keys(record: Any, known: Sequence[str], kind: str, optional: Sequence[str] = ()) -> None:
    if not isinstance(record, dict):
        raise ValueError(f"a corruption must have the keys {', '.join(known)}, got {record!r}.")
    for key in record:
        check_name(key, known, kind)
    missing = [key for key in known if key not in record and key not in optional]
    if missing:
        raise ValueError(f"the {kind} {missing[0]!r} is missing.")

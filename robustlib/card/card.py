"""The report card: all numbers of a model, as a JSON file of a documented format."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustlib import corruptions
from robustlib.analysis import published
from robustlib.analysis.references import Reference, alexnet, of_published
from robustlib.card import summary
from robustlib.card.advice import advice
from robustlib.card.measure import Measured
from robustlib.core.checks import check_name
from robustlib.study import results

FORMAT_VERSION = 1
SCHEMA = Path(__file__).with_name("schema.json")
"""The format, as a JSON Schema."""
DATA = ("imagenet", "cifar10", "cifar100")
"""Data sets with published accuracies to stand beside."""
NONE = "none"


@dataclass(frozen=True)
class Card:
    """What is known of a model; the frames are those of `robustlib.card.summary`.

    Attributes:
        model: name, architecture, outputs, image_size, parameters (their number) and notes.
        images: n, how many; of, how many there were; classes (outputs with images); notes.
        settings: corruptions, severities, attacks, attacked, checked, eps, seed, budget.
        slips: kind, found and advice of each.
        accuracy, calibration, errors, few, attacks, sanity, failures, beside: tables.
        few_says: as `robustlib.card.summary.few_for_many` says; empty without the fifteen.
        reference: whose errors divide, "" for nobody's.
        advice: sentences.
        provenance: when, on what and with which versions.
    """

    model: dict[str, Any]
    images: dict[str, Any]
    settings: dict[str, Any]
    slips: list[dict[str, str]]
    accuracy: pd.DataFrame = field(repr=False)
    calibration: pd.DataFrame = field(repr=False)
    errors: pd.DataFrame = field(repr=False)
    few: pd.DataFrame = field(repr=False)
    few_says: dict[str, float]
    attacks: pd.DataFrame = field(repr=False)
    sanity: pd.DataFrame = field(repr=False)
    failures: pd.DataFrame = field(repr=False)
    beside: pd.DataFrame = field(repr=False)
    reference: str
    advice: list[str]
    provenance: dict[str, str]

    @property
    def name(self) -> str:
        """Of the model."""
        return str(self.model["name"])

    def as_reference(self) -> Reference:
        """This model's errors, to divide those of others."""
        by_severity: dict[str, dict[int, float]] = {}
        for row in self.accuracy.to_dict("records"):
            by_severity.setdefault(row["perturbation"], {})[row["severity"]] = 1 - row["accuracy"]
        clean = by_severity.pop("clean")[0]
        return Reference(self.name, clean, by_severity)

    def save(self, path: str | Path) -> None:
        """Write it as JSON, in the format that `SCHEMA` describes."""
        record = {"format_version": FORMAT_VERSION} | {
            name: _plain(value) for name, value in vars(self).items()
        }
        text = json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False)
        Path(path).write_text(text + "\n", "utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Card:
        """The card in a file that `save` wrote.

        Raises:
            ValueError: there is no such file, or it is no card of this version.
        """
        path = Path(path)
        try:
            record = json.loads(path.read_text("utf-8"))
            version = record.pop("format_version")
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path} is no report card: {error!r}.") from None
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{path} is a card of version {version!r}, this is for version {FORMAT_VERSION}; "
                "make it again."
            )
        wanted = {entry.name: str(entry.type) for entry in fields(cls)}
        if odd := sorted(set(record) ^ set(wanted)):
            raise ValueError(f"{path} is no report card: it lacks, or shouldn't have, {odd}.")
        values: dict[str, Any] = {
            name: pd.DataFrame(record[name]) if kind == "pd.DataFrame" else record[name]
            for name, kind in wanted.items()
        }
        return cls(**values)


def _plain(value: Any) -> Any:
    """For JSON: frames as lists of rows, what isn't finite as null."""
    if isinstance(value, pd.DataFrame):
        return [_plain(row) for row in value.to_dict("records")]
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def make_card(
    measured: Measured, *, data: str | None = None, reference: Reference | None = None
) -> Card:
    """The card of what was measured.

    Args:
        measured: as from `robustlib.card.measure`.
        data: whose published accuracies it is shown beside, one of `DATA`, or "none"; default:
            "imagenet" for 1000 outputs at more than 64 px, else "none".
        reference: whose errors divide in the mCE; default: AlexNet for 1000 outputs at more
            than 64 px, the standard model of RobustBench for CIFAR-10, else nobody's, and there
            is no mCE.

    Raises:
        UnknownNameError: unknown data.
        FileNotFoundError: published accuracies are asked for, but the package was installed
            without its checkout, which holds them.
    """
    size, outputs = measured.protocol.image_size, measured.model.outputs
    if data is None:
        known = outputs == 1000 and size > 64 and published.available()
        data = "imagenet" if known else NONE
    check_name(data, (*DATA, NONE), "data to stand beside")
    if reference is None and outputs == 1000 and size > 64:
        reference = alexnet()
    elif reference is None and data == "cifar10":
        reference = of_published("cifar10", "Standard")
    few, few_says = summary.few_for_many(measured)
    return Card(
        model=_about_model(measured),
        images=_about_images(measured),
        settings=_settings(measured),
        slips=[vars(slip) for slip in measured.slips],
        accuracy=summary.accuracies(measured),
        calibration=summary.calibration(measured),
        errors=summary.corruption_errors(measured, reference),
        few=few,
        few_says=few_says,
        attacks=summary.attack_table(measured),
        sanity=pd.DataFrame() if measured.sanity is None else measured.sanity,
        failures=summary.failures(measured),
        beside=beside(measured, data),
        reference=reference.name if reference else "",
        advice=advice(measured),
        provenance=results.provenance(),
    )


def beside(measured: Measured, data: str) -> pd.DataFrame:
    """Mean accuracy over the fifteen, of this model, published ones and those of record.

    Columns: model, source ("this card", "published" or "this study"), clean
    (NaN where not published), corrupted. Empty unless the fifteen were measured, and but for this
    model without `data`. The published are for all test images and severities 1 to 5.
    """
    fifteen = list(corruptions.names("imagenet_c_15"))
    found = summary.accuracies(measured)
    accuracy = found.groupby("perturbation", sort=False)["accuracy"].last()  # over severities
    if not set(fifteen) <= set(accuracy.index):
        return pd.DataFrame(columns=["model", "source", "clean", "corrupted"])
    parts = {"this card": pd.DataFrame({measured.model.classifier.recipe: accuracy}).T}
    if data != NONE:
        parts["published"] = published.load(data).droplevel("paper")
    record = summary.record_table("overlap_accuracy")
    if data == summary.RECORD and record is not None:
        chosen = record.set_index("model").loc[["standard", "adversarial"]]
        parts["this study"] = chosen.rename(index="{} (this study)".format)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "model": part.index,
                    "source": source,
                    "clean": part["clean"].to_numpy(),
                    "corrupted": part[fifteen].mean(axis=1).to_numpy(),
                }
            )
            for source, part in parts.items()
        ],
        ignore_index=True,
    )


def _about_model(measured: Measured) -> dict[str, Any]:
    model = measured.model
    return {
        "name": model.classifier.recipe,
        "architecture": model.classifier.architecture,
        "outputs": model.outputs,
        "image_size": model.image_size,
        "parameters": sum(parameter.numel() for parameter in model.network.parameters()),
        "notes": list(model.notes),
    }


def _about_images(measured: Measured) -> dict[str, Any]:
    images = measured.images
    return {
        "n": measured.n,
        "of": len(images.split),
        "classes": len(measured.split.labels.unique()),
        "notes": list(images.notes),
    }


def _settings(measured: Measured) -> dict[str, Any]:
    protocol = measured.protocol
    return {
        "corruptions": list(protocol.corruptions),
        "severities": list(protocol.severities),
        "stored": protocol.stored.name if protocol.stored else "",
        "attacks": list(protocol.attacks),
        "attacked": protocol.attacked,
        "checked": protocol.checked,
        "eps": protocol.radius,
        "eps_l2": protocol.radius_l2,
        "seed": protocol.seed,
        "budget": measured.budget,
    }

"""Pictures of a card."""

from __future__ import annotations

import pandas as pd
import torch
from matplotlib.figure import Figure

from robustlib.analysis.calibration import reliability
from robustlib.card.card import Card
from robustlib.card.measure import Measured
from robustlib.perturbations import Perturbation
from robustlib.study import plotting


def figures(measured: Measured, card: Card, *, images: bool = True) -> dict[str, Figure]:
    """By what each shows: accuracy, calibration, failures, beside; those that there is data for.

    images: whether images may be shown; without them there is no picture of failures.
    """
    found = {"accuracy": accuracy(card), "calibration": calibration(measured)}
    if images and len(card.failures):
        found["failures"] = failures(measured, card)
    if len(card.beside) > 1:
        found["beside"] = beside(card)
    return found


def accuracy(card: Card) -> Figure:
    """Accuracy under each corruption, severities averaged, with intervals; a line at clean."""
    table = card.accuracy.groupby("perturbation", sort=False).last().reset_index()
    clean = float(table["accuracy"].iloc[0])
    rows = table.iloc[1:].assign(**{c: 100 * table[c] for c in ("accuracy", "low", "high")})
    return plotting.intervals(
        rows.sort_values("accuracy", ascending=False, kind="stable"),
        value="accuracy",
        label="accuracy in percent, mean over severities (line: clean)",
        group="family",
        reference=100 * clean,
    )


def calibration(measured: Measured) -> Figure:
    """Reliability diagram: clean, and all corruptions together."""
    answers = measured.answers
    parts = {"as a calibrated model": pd.DataFrame({"confidence": [0, 100], "accuracy": [0, 100]})}
    for name, places in {"clean": slice(1), "all corruptions": slice(1, None)}.items():
        table = reliability(answers.confidence[places].ravel(), answers.correct[places].ravel())
        parts[name] = 100 * table[["confidence", "accuracy"]]
    return plotting.lines(
        pd.concat([table.assign(images=name) for name, table in parts.items()]),
        x="confidence",
        y="accuracy",
        group="images",
        xlabel="confidence in percent",
        ylabel="accuracy in percent",
    )


def failures(measured: Measured, card: Card) -> Figure:
    """The images of `card.failures`, clean above corrupted, and what the model says of each."""
    split, table = measured.split, card.failures
    places = torch.tensor(table["image"].tolist())
    clean = split.float_images(places)
    cells = {(cell.label, cell.severity): cell for cell in measured.protocol.cells}
    corrupted = torch.cat(
        [
            _shown(cells[row.corruption, row.severity], measured, image)  # type: ignore[index]
            for row, image in zip(table.itertuples(), places.tolist(), strict=True)
        ]
    )
    said = [
        pd.DataFrame(
            {
                "row": row,
                "column": range(len(table)),
                "model": card.name,
                "predicted": table[names],
                "confidence": table[confidences],
                "right": row == 0,
            }
        )
        for row, (names, confidences) in enumerate(
            [("label", "clean_confidence"), ("predicted", "confidence")]
        )
    ]
    return plotting.predictions(
        [clean, corrupted],
        pd.concat(said, ignore_index=True),
        row_labels=["clean", f"severity {table['severity'].iloc[0]}"],
        column_labels=list(table["corruption"]),
        size=1.5,
    )


def _shown(cell: Perturbation, measured: Measured, image: int) -> torch.Tensor:
    split, place = measured.split, torch.tensor([image])
    pixels, labels, ids = split.float_images(place), split.labels[place], split.ids[place]
    return cell.apply(pixels, labels, ids, None, measured.protocol.seed)


def beside(card: Card) -> Figure:
    """Mean accuracy over the fifteen corruptions, this model among others."""
    table = card.beside.assign(accuracy=100 * card.beside["corrupted"])
    own = table["source"] == "this card"  # which may be called as a published model is
    names = table["model"].mask(own, table["model"] + " (this card)")
    table = table.assign(model=names, low=table["accuracy"], high=table["accuracy"])
    return plotting.intervals(
        table.sort_values("accuracy", ascending=False, kind="stable"),
        value="accuracy",
        label="mean accuracy over the fifteen corruptions, in percent",
        item="model",
        group="source",
        reference=float(table["accuracy"].iloc[0]),
    )


def gains(table: pd.DataFrame) -> Figure:
    """What `robustlib.card.comparison.compare` found, with intervals."""
    return plotting.intervals(table, value="gain", label="points gained on the same images")

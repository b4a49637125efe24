"""Two models on the same images: who gains what, paired."""

from __future__ import annotations

import numpy as np
import pandas as pd

from robustlib.analysis import crossed_interval
from robustlib.card.measure import Measured


def compare(first: Measured, second: Measured) -> pd.DataFrame:
    """Accuracy of the second model minus that of the first on the same images, in points.

    Columns: perturbation ("clean", each corruption with severities averaged, "all corruptions",
    each attack), gain, low, high (95 %, paired over images, each alone), n. Of these two models:
    other training seeds could differ.

    Raises:
        ValueError: they weren't measured on the same images in the same way.
    """
    if first.split.digest() != second.split.digest() or first.protocol != second.protocol:
        raise ValueError(
            "the two models were measured on other images, or in another way; measure both with "
            "the same images, protocol and, if any, budget in minutes that is enough for both."
        )
    differences: dict[str, np.ndarray] = {}
    gained = second.answers.correct.astype(float) - first.answers.correct
    labels = [cell.label for cell in first.answers.cells]
    for name in dict.fromkeys(labels):
        differences[name] = gained[[label == name for label in labels]].mean(axis=0)
    differences["all corruptions"] = gained[1:].mean(axis=0)
    if first.attacked is not None and second.attacked is not None:
        by_attack = second.attacked.correct.astype(float) - first.attacked.correct
        names = first.attacked.table["perturbation"]
        differences |= dict(zip(names[1:], by_attack[1:], strict=True))
    rows = []
    for name, values in differences.items():
        found = crossed_interval(100 * values[None])
        ends = {"gain": float(found.estimate), "low": float(found.low), "high": float(found.high)}
        rows.append({"perturbation": name, **ends, "n": len(values)})
    return pd.DataFrame(rows)

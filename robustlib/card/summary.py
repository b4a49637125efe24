"""Tables of a card, computed from what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from robustlib import corruptions
from robustlib.analysis import crossed_interval, selection, wilson_interval
from robustlib.analysis.calibration import calibration_error, error_if_calibrated
from robustlib.analysis.references import Reference
from robustlib.card.answers import NOT_FINITE, Answers
from robustlib.card.images import readable
from robustlib.card.measure import Measured
from robustlib.study import results

RECORD = "cifar10"
"""The run of record whose atlas the card refers to."""
OVERLAP_LIMIT = 0.5
"""Largest overlap of two of the few corruptions, as in notebook 05."""
FEW = 4
SETS = {"fifteen": "imagenet_c_15", "nineteen": "imagenet_c"}


def accuracies(measured: Measured) -> pd.DataFrame:
    """Accuracy under each corruption, by severity and averaged over severities (severity 0).

    Columns: perturbation, family, severity, accuracy, low, high (95 %, over images: Wilson's for
    a single severity, Student's for a mean over them), confidence (mean of the probability of the
    predicted class), n.
    """
    answers = measured.answers
    rows = []
    for name, places in _by_name(answers).items():
        for place in places:
            low, high = wilson_interval(answers.correct[place].mean(), measured.n)
            cell = answers.cells[place]
            rows.append(_row(answers, [place], name, cell.severity, float(low), float(high)))
        if len(places) > 1:
            ends = _interval(answers.correct[places].mean(axis=0))
            rows.append(_row(answers, places, name, 0, *ends))
    return pd.DataFrame(rows)


def _row(
    answers: Answers, places: Sequence[int], name: str, severity: int, low: float, high: float
) -> dict[str, object]:
    places = list(places)
    return {
        "perturbation": name,
        "family": answers.cells[places[0]].family,
        "severity": severity,
        "accuracy": float(answers.correct[places].mean()),
        "low": low,
        "high": high,
        "confidence": float(answers.confidence[places].mean()),
        "n": answers.correct.shape[1],
    }


def _by_name(answers: Answers) -> dict[str, list[int]]:
    """The positions of the cells of each perturbation."""
    found: dict[str, list[int]] = {}
    for place, cell in enumerate(answers.cells):
        found.setdefault(cell.label, []).append(place)
    return found


def _interval(values: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of the mean of (n,) values in [0, 1], of one model over images."""
    found = crossed_interval(values[None])
    return max(0.0, float(found.low)), min(1.0, float(found.high))


def calibration(measured: Measured) -> pd.DataFrame:
    """Calibration on clean images, under each corruption over its severities, and under all.

    Columns: perturbation ("all corruptions" last), ece, ece_if_calibrated (what a calibrated
    model with these confidences would show by chance), gap (mean confidence minus accuracy: above
    0 where it is too sure), nll (nats), brier (0 to 2), low and high (95 %, of the Brier score).
    """
    answers = measured.answers
    groups = _by_name(answers)
    corrupted = [place for name, places in groups.items() if name != "clean" for place in places]
    rows = []
    for name, places in {**groups, "all corruptions": corrupted}.items():
        confidence, correct = answers.confidence[places].ravel(), answers.correct[places].ravel()
        by_image = crossed_interval(answers.brier[places].mean(axis=0)[None])
        rows.append(
            {
                "perturbation": name,
                "ece": calibration_error(confidence, correct),
                "ece_if_calibrated": error_if_calibrated(confidence, draws=20),
                "gap": float(confidence.mean() - correct.mean()),
                "nll": float(answers.nll[places].mean()),
                "brier": float(by_image.estimate),
                "low": float(by_image.low),
                "high": float(by_image.high),
            }
        )
    return pd.DataFrame(rows)


def corruption_errors(measured: Measured, reference: Reference | None) -> pd.DataFrame:
    """Mean error and mCE over the fifteen and the nineteen corruptions of ImageNet-C.

    Columns: corruptions ("fifteen" or "nineteen"); mean_error, in percent; mce and relative_mce,
    as in `robustlib.analysis.corruption_errors`, divided by the reference's errors at the same
    severities; each with _low and _high (95 %, over images). NaN where there is no reference, its
    errors at these severities aren't known, or what is to divide isn't above 0. A set of which
    corruptions weren't measured is left out.
    """
    answers, severities = measured.answers, measured.protocol.severities
    groups = _by_name(answers)
    rows = []
    for words, suite in SETS.items():
        names = corruptions.names(suite)
        if not set(names) <= set(groups):
            continue
        error = np.stack([1 - answers.correct[groups[name]].mean(axis=0) for name in names])
        clean = 1 - answers.correct[groups["clean"]].mean(axis=0)
        known = [reference.error(name, severities) if reference else None for name in names]
        divisor = np.array([np.nan if one is None else one for one in known])[:, None]
        lost = divisor - (reference.clean if reference else np.nan)
        values = {
            "mean_error": error.mean(axis=0),
            "mce": (error / np.where(divisor > 0, divisor, np.nan)).mean(axis=0),
            "relative_mce": ((error - clean) / np.where(lost > 0, lost, np.nan)).mean(axis=0),
        }
        row: dict[str, object] = {"corruptions": words}
        for name, by_image in values.items():
            ends = [np.nan] * 3
            if np.isfinite(by_image).all():
                found = crossed_interval(100 * by_image[None])
                ends = [float(end) for end in (found.estimate, found.low, found.high)]
            row[name], row[f"{name}_low"], row[f"{name}_high"] = ends
        rows.append(row)
    return pd.DataFrame(rows)


def record_table(name: str) -> pd.DataFrame | None:
    """A table of the run of record; None where the package was installed without its checkout."""
    try:
        return results.committed(RECORD, name)
    except results.MissingResultsError:
        return None


def few_for_many(measured: Measured) -> tuple[pd.DataFrame, dict[str, float]]:
    """The few of the fifteen that stand for all by the atlas of record, and what they say.

    Returns a frame with a row for each of them (corruption, weight, accuracy), empty unless all
    fifteen were measured; and predicted, the weighted mean of their accuracies; measured, the mean
    over the fifteen; usual_miss, the root mean square by which such a prediction missed for public
    models (notebook 05), and better_than, the share of all choices that missed by more; all in
    [0, 1].
    """
    fifteen = corruptions.names("imagenet_c_15")
    groups = _by_name(measured.answers)
    pairs, judged = record_table("overlap"), record_table("chosen")
    if not set(fifteen) <= set(groups) or pairs is None or judged is None:
        return pd.DataFrame(columns=["corruption", "weight", "accuracy"]), {}
    overlap = atlas_overlap(pairs, fifteen)
    weights = selection.weights(overlap, selection.choose(overlap, FEW, OVERLAP_LIMIT))
    accuracy = {name: float(measured.answers.correct[groups[name]].mean()) for name in fifteen}
    table = weights.rename_axis("corruption").reset_index()
    table["accuracy"] = [accuracy[name] for name in table["corruption"]]
    own = judged.query("size == @FEW and choice == 'chosen by overlap, weighted'")
    return table, {
        "predicted": float((table["weight"] * table["accuracy"]).sum()),
        "measured": float(np.mean(list(accuracy.values()))),
        "usual_miss": float(own["rmse"].iloc[0]),
        "better_than": float(own["better_than_random"].iloc[0]),
    }


def atlas_overlap(pairs: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Scores between these corruptions, from a table of pairs; 0 where there is no score."""
    pairs = pairs.dropna(subset=["overlap"])
    both = pd.concat([pairs, pairs.rename(columns={"first": "second", "second": "first"})])
    found = both.pivot_table(index="first", columns="second", values="overlap")
    found = found.reindex(index=list(names), columns=list(names)).fillna(0.0)
    return found.where(~np.eye(len(names), dtype=bool), 1.0)


def attack_table(measured: Measured) -> pd.DataFrame:
    """Accuracy under each attack and under the worst of them for each image, after clean.

    Columns: attack, norm, eps (in the norm, pixels in [0, 1]), accuracy (right both clean and
    attacked), low, high (95 %, Wilson's), n.
    """
    if measured.attacked is None:
        return pd.DataFrame(columns=["attack", "norm", "eps", "accuracy", "low", "high", "n"])
    found = measured.attacked
    table = found.table[["perturbation", "norm", "eps", "accuracy", "n"]]
    table = table.rename(columns={"perturbation": "attack"})
    worst = {"attack": "all of them", "norm": "", "eps": np.nan, "n": found.correct.shape[1]}
    worst["accuracy"] = found.correct.all(axis=0).mean()
    table = pd.concat([table, pd.DataFrame([worst])], ignore_index=True)
    low, high = wilson_interval(table["accuracy"].to_numpy(), table["n"].to_numpy())
    return table.assign(low=low, high=high)[
        ["attack", "norm", "eps", "accuracy", "low", "high", "n"]
    ]


def failures(measured: Measured, *, most: int = 8) -> pd.DataFrame:
    """Images that are right clean and surely wrong corrupted, each of another corruption.

    Of every corruption at the lowest severity measured, the image with the most confident wrong
    answer; then the most confident of these, `most` at most, no image twice.

    Columns: image (position), file ("" if images come from no files), corruption, severity, label,
    predicted (names of classes), clean_confidence, confidence.
    """
    answers, classes = measured.answers, measured.images.classes
    lowest = min(measured.protocol.severities)
    right = answers.correct[0]
    rows: list[dict[str, object]] = []
    taken: set[int] = set()
    places = [i for i, cell in enumerate(answers.cells) if i and cell.severity == lowest]
    wrong = np.where(right & ~answers.correct, answers.confidence, -1.0)
    wrong[answers.predicted == NOT_FINITE] = -1.0
    for place in sorted(places, key=lambda i: -wrong[i].max()):
        order = np.argsort(-wrong[place], kind="stable")
        image = next((int(i) for i in order if int(i) not in taken), None)
        if len(rows) == most or image is None or wrong[place][image] <= 0:
            continue
        taken.add(image)
        files = measured.images.split.files
        rows.append(
            {
                "image": image,
                "file": files[image] if files else "",
                "corruption": answers.cells[place].label,
                "severity": lowest,
                "label": readable(classes[answers.labels[image]]),
                "predicted": readable(classes[answers.predicted[place, image]]),
                "clean_confidence": float(answers.confidence[0, image]),
                "confidence": float(answers.confidence[place, image]),
            }
        )
    columns = ["image", "file", "corruption", "severity", "label", "predicted"]
    return pd.DataFrame(rows, columns=[*columns, "clean_confidence", "confidence"])


def hardest(measured: Measured) -> pd.Series:
    """Points of accuracy lost to each corruption, severities averaged, the most first."""
    answers = measured.answers
    groups = _by_name(answers)
    clean = answers.correct[0].mean()
    lost = {
        name: 100 * float(clean - answers.correct[places].mean())
        for name, places in groups.items()
        if name != "clean"
    }
    return pd.Series(lost).sort_values(ascending=False, kind="stable")

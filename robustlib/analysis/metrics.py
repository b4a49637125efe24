"""Summaries of the tidy table: accuracy by model and perturbation, robustness score, CE and mCE."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from robustlib.analysis.crossed import (
    Estimate,
    accuracy_gains,
    crossed_estimate,
    crossed_interval,
    jackknife,
)
from robustlib.core.checks import check_name, check_whole
from robustlib.evaluation import Evaluation, check_comparable


def accuracy_matrix(table: pd.DataFrame) -> pd.DataFrame:
    """A_m(c): accuracy averaged over severities and training seeds.

    Args:
        table: tidy table with the columns of `robustlib.evaluation.COLUMNS`.

    Returns a frame with one row for each recipe and one column for each perturbation, "clean"
    included, both in their order of appearance.
    """
    check_comparable(table)
    return table.pivot_table(
        index="recipe", columns="perturbation", values="accuracy", aggfunc="mean", sort=False
    ).rename_axis(index=None, columns=None)


def accuracy_with_intervals(evaluation: Evaluation) -> pd.DataFrame:
    """A_m(c) averaged over severities and training seeds, with 95 % intervals.

    Args:
        evaluation: each recipe under the same perturbations for all its seeds.

    Returns one row for each (recipe, perturbation): accuracy, low and high, which cover seeds and
    images, with one seed images only; seeds; and n, the images.

    Raises:
        ValueError: as for `Evaluation.per_seed`.
    """
    rows = []
    for recipe, table in evaluation.table.groupby("recipe", sort=False):
        names = list(table["perturbation"].unique())
        correct = evaluation.per_seed([str(recipe)], names)[:, 0]
        found = crossed_interval(np.moveaxis(correct, 0, 1))
        ends = {"accuracy": found.estimate, "low": found.low, "high": found.high}
        part = pd.DataFrame({"recipe": recipe, "perturbation": names, **ends})
        rows.append(part.assign(seeds=found.seeds, n=found.images))
    return pd.concat(rows, ignore_index=True)


def robustness_scores(accuracy: pd.DataFrame) -> pd.DataFrame:
    """R_m(c) = A_m(c) / A_m(clean) (Laugros et al. 2019), for each column but "clean".

    Args:
        accuracy: as from `accuracy_matrix`.

    Raises:
        ValueError: no column "clean", or a clean accuracy of zero.
    """
    if "clean" not in accuracy:
        raise ValueError('the robustness score needs a column "clean".')
    if not (accuracy["clean"] > 0).all():
        raise ValueError("the robustness score needs a clean accuracy above zero for every model.")
    return accuracy.drop(columns="clean").div(accuracy["clean"], axis=0)


def corruption_errors(
    table: pd.DataFrame, *, reference: str = "standard", relative: bool = False
) -> pd.DataFrame:
    """Corruption errors against a reference model, in percent (Hendrycks and Dietterich 2019).

    CE_c = 100 sum_s E_s,c / sum_s E_ref,s,c over the severities s; with `relative`, the clean
    error is subtracted from every E first. Laugros et al. 2021 use the relative form for their
    benchmark. The reference model scores 100 everywhere.

    Args:
        table: tidy table. Severities must be the same for all models.
        reference: recipe whose errors divide.
        relative: subtract clean errors.

    Returns a frame with a row for each recipe and a column for each corruption; attacks and clean
    images are left out. A column is NaN where the reference's sum isn't positive.

    Raises:
        UnknownNameError: the reference isn't in the table.
    """
    check_name(reference, table["recipe"].unique(), "recipe")
    common = table[~table["family"].isin(["clean", "adversarial"])]
    errors = 1 - accuracy_matrix(common)
    if relative:
        clean = 1 - accuracy_matrix(table)["clean"]
        errors = errors.sub(clean, axis=0)
    divisor = errors.T[reference]
    return 100 * errors / divisor.where(divisor > 0)


def mce(errors: pd.DataFrame, corruptions: Sequence[str] | None = None) -> pd.Series:
    """Mean corruption error in percent: the mean of the CE over corruptions.

    Args:
        errors: as from `corruption_errors`.
        corruptions: columns to average; default all.

    Returns a value for each recipe; NaN if a CE that enters is NaN.
    """
    chosen = errors[list(corruptions) if corruptions is not None else list(errors)]
    return chosen.mean(axis=1, skipna=False)


def gains_over(
    evaluation: Evaluation,
    recipe: str,
    perturbations: Sequence[str],
    *,
    reference: str = "standard",
) -> pd.DataFrame:
    """Accuracy of a recipe minus that of a reference on the same images, with 95 % intervals.

    Args:
        evaluation: of both, with the same training seeds.
        recipe: its name.
        perturbations: their names; severities are averaged.
        reference: name of the recipe to compare with.

    Returns one row for each perturbation: perturbation, gain, low, high and recipe. Intervals cover
    training seeds and images, with one seed images only.

    Raises:
        ValueError: as for `Evaluation.per_seed`.
    """
    correct = evaluation.per_seed([reference, recipe], perturbations)
    found = accuracy_gains(correct)[0].interval()
    ends = {"gain": found.estimate, "low": found.low, "high": found.high}
    return pd.DataFrame({"perturbation": list(perturbations), **ends, "recipe": recipe})


def mean_gain_over(
    evaluation: Evaluation,
    recipe: str,
    perturbations: Sequence[str],
    *,
    reference: str = "standard",
) -> Estimate:
    """`gains_over` averaged over perturbations, a single estimate, to be tested as a claim."""
    correct = evaluation.per_seed([reference, recipe], perturbations).mean(axis=2)
    return crossed_estimate(correct[:, 1] - correct[:, 0])


def mce_estimates(
    correct: np.ndarray, *, reference: int = 0, clean: np.ndarray | None = None
) -> Estimate:
    """Mean corruption error in percent, with what its interval over seeds and images needs.

    The errors are averaged over seeds before they are divided, so the reference model varies with
    the seed as the others do.

    Args:
        correct: (seeds, models, corruptions, n), bool or numbers in [0, 1], averaged over
            severities, as from `Evaluation.per_seed`.
        reference: position of the model whose errors divide.
        clean: (seeds, models, n), the same on clean images: given, the errors are relative, as in
            `corruption_errors`.

    Returns (models,): `.interval()` gives the interval, and a difference of two models is tested
    as any estimate is. NaN where the reference makes no error.

    Raises:
        ValueError: shapes that don't match, or values outside [0, 1].
    """
    correct = np.asarray(correct)
    if correct.ndim != 4 or (
        clean is not None and np.shape(clean) != (*correct.shape[:2], correct.shape[3])
    ):
        raise ValueError(
            "correct must be (seeds, models, corruptions, n) and clean (seeds, models, n), got "
            f"{correct.shape} and {None if clean is None else np.shape(clean)}."
        )
    reference = check_whole(reference, "reference", low=0, high=correct.shape[1] - 1)

    def of(accuracy: np.ndarray) -> np.ndarray:
        error = 1 - accuracy
        if clean is not None:
            error = error[..., 1:] - error[..., :1]
        divisor = error[..., [reference], :]
        return 100 * (error / np.where(divisor > 0, divisor, np.nan)).mean(-1)

    if clean is not None:
        correct = np.concatenate([np.asarray(clean)[:, :, None], correct], axis=2)
    return jackknife(of, correct)

"""The overlapping score: how far robustness to one corruption carries over to another.

Laugros, Caplier and Ospici, ICIP 2021. With m1, m2 trained with augmentation by c1, c2, the
standard model s, and R_m(c) = A_m(c) / A_m(clean):

    O(c1, c2) = max(0, 1/2 [ (R_m1(c2) - R_s(c2)) / (R_m2(c2) - R_s(c2))
                           + (R_m2(c1) - R_s(c1)) / (R_m1(c1) - R_s(c1)) ])

The two terms are the directed halves: what training with the one gains on the other, as a share
of the own gain, that is of what training with that other itself gains. Nothing bounds O above.
A corruption without a clear own gain (`is_clear`) has no score: its cells are NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from robustlib.analysis.crossed import Estimate, Interval, MeanOfRatios, Ratio, jackknife
from robustlib.core.checks import check_name

NORMALISATIONS = ("ratio", "raw")
MIN_GAIN = 0.01


def overlapping_scores(
    accuracy: pd.DataFrame, normalise: str = "ratio", *, min_gain: float = MIN_GAIN
) -> pd.DataFrame:
    """O(c1, c2) for every pair of corruptions.

    Args:
        accuracy: one row for each model, "standard" and one for each corruption (the model trained
            with it), and the columns "clean" and one for each corruption; values in [0, 1].
        normalise: "ratio" uses R = A / A(clean), the ICIP 2021 score; "raw" uses A, as the
            authors' later code does.
        min_gain: the smallest own gain of a corruption that counts as one (this project's guard
            of the denominator; the paper has none). See `own_gains`.

    Returns a symmetric frame, corruptions by corruptions, with 1 on the diagonal, and NaN in row
    and column of a corruption whose own gain is at most `min_gain`.

    Raises:
        ValueError: rows and columns that don't match, missing "standard" or "clean", values
            outside [0, 1], or a clean accuracy of zero under "ratio".
        UnknownNameError: unknown normalisation.
    """
    names, values = _arrays(accuracy, normalise)
    scores = symmetric(directed(values, normalise, min_gain))
    return pd.DataFrame(scores, index=names, columns=names)


def directed_overlaps(
    accuracy: pd.DataFrame, normalise: str = "ratio", *, min_gain: float = MIN_GAIN
) -> pd.DataFrame:
    """The directed halves: row c1, column c2 is (R_m1(c2) - R_s(c2)) / (R_m2(c2) - R_s(c2)).

    Row: the corruption trained with; column: the one tested on. Arguments, NaN and errors as for
    `overlapping_scores`. Values may be negative.
    """
    names, values = _arrays(accuracy, normalise)
    return pd.DataFrame(directed(values, normalise, min_gain), index=names, columns=names)


def own_gains(accuracy: pd.DataFrame, normalise: str = "ratio") -> pd.Series:
    """R_m(c) - R_s(c) of the model trained with c: the denominators of the score."""
    names, values = _arrays(accuracy, normalise)
    gains = normalised_gains(values, normalise)
    return pd.Series(np.diagonal(gains, axis1=-2, axis2=-1), index=names, name="own gain")


@dataclass(frozen=True)
class OverlapIntervals:
    """Own gains, directed halves and overlapping scores with their intervals.

    Attributes:
        own_gains: (K,), see `own_gains`; in accuracy under "raw", in R under "ratio".
        directed: (K, K), see `directed_overlaps`; Fieller's intervals.
        overlap: (K, K), the overlapping scores, estimate and ends clamped at 0 as the score is.

    Cells that need an own gain that isn't clear (`is_clear`) are NaN: for a directed half, that of
    the corruption tested on; for the score, either.
    """

    own_gains: Interval
    directed: Interval
    overlap: Interval


def is_clear(own_gain: Interval) -> np.ndarray:
    """Whether own gains, with 95 % intervals, can be divided by: bool, of the same shape.

    They must be clearly positive and above `MIN_GAIN`, as for `overlapping_scores`: a tiny gain
    that is sure makes a score that is sure to explode.
    """
    return (own_gain.low > 0) & (own_gain.estimate > MIN_GAIN)


def overlap_intervals(
    correct: np.ndarray, normalise: str = "ratio", *, confidence: float = 0.95, family: int = 1
) -> OverlapIntervals:
    """Overlapping scores with intervals that cover training seeds and test images.

    Scores are those of accuracies averaged over seeds. A half is a ratio, with Fieller's interval,
    and the interval of the mean of two halves joins theirs (`crossed.MeanOfRatios`), before the
    clamp at 0; so it is wide, and skewed, where an own gain is small.

    Args:
        correct: (seeds, 1 + K, 1 + K, n), bool or numbers in [0, 1]: seeds by models (standard
            first) by perturbations (clean first, then in the models' order) by images, as from
            `Evaluation.per_seed`.
        normalise: as in `overlapping_scores`.
        confidence: above 0, below 1; whatever it is, the same cells are NaN.
        family: number of scores that shall be covered at once (see `crossed.largest`). It widens
            the intervals of halves and scores, not those of own gains.

    Raises:
        ValueError: shapes that don't match, or values outside [0, 1].
        UnknownNameError: unknown normalisation.
    """
    gains = _gain_estimates(correct, normalise)
    own, half, signed = _own(gains), _halves(gains), _signed(gains)
    clear = is_clear(own.interval())
    return OverlapIntervals(
        own.interval(confidence=confidence),
        _where(
            np.broadcast_to(clear, half.value.shape),
            half.interval(confidence=confidence, family=family),
        ),
        _where(
            clear & clear[:, None],
            signed.interval(confidence=confidence, family=family),
            floor=0.0,
        ),
    )


def signed_overlaps(correct: np.ndarray, normalise: str = "ratio") -> MeanOfRatios:
    """The means of both directed halves before the clamp at 0, (K, K), to be tested.

    Args and errors as for `overlap_intervals`. None is left out: where an own gain is small its
    interval is infinite, and no test finds anything.
    """
    return _signed(_gain_estimates(correct, normalise))


Number = Callable[[np.ndarray], np.ndarray]
"""Maps overlaps (..., K, K), clipped to [0, 1], to numbers (...), say the effective number."""


def clipped_interval(function: Number, correct: np.ndarray, normalise: str = "ratio") -> Interval:
    """95 % interval of a number that falls as overlaps rise, such as the effective number.

    Noise around a true overlap of 0 is clipped to something positive, so many pairs that don't
    overlap look as if they did a little, and the number too small by more than an interval about
    it tells. So the lower end is that of the number of all overlaps, the upper end that of
    `from_clear_overlaps` (this project's choice).

    Args:
        function: see `Number`.
        correct: as in `overlap_intervals`, of corruptions that all have a score.
        normalise: as in `overlapping_scores`.

    Errors as for `overlap_intervals`.
    """
    every = _from_overlaps(function, correct, normalise, True).interval()
    certain = from_clear_overlaps(function, correct, normalise).interval()
    return Interval(every.estimate, every.low, certain.high, every.seeds, every.images)


def from_clear_overlaps(
    function: Number, correct: np.ndarray, normalise: str = "ratio"
) -> Estimate:
    """A number of overlaps, with those at 0 whose own 95 % interval isn't above 0.

    It errs on the side of no overlap. Args and errors as for `clipped_interval`.
    """
    clear = signed_overlaps(correct, normalise).interval().low > 0
    kept = clear | clear.T | np.eye(len(clear), dtype=bool)
    return _from_overlaps(function, correct, normalise, kept)


def _from_overlaps(
    function: Number, correct: np.ndarray, normalise: str, kept: np.ndarray | bool
) -> Estimate:
    def statistic(accuracy: np.ndarray) -> np.ndarray:
        scores = symmetric(directed(accuracy, normalise, 0.0))
        return function(np.where(kept, np.minimum(scores, 1), 0))

    return jackknife(statistic, correct)


def _gain_estimates(correct: np.ndarray, normalise: str) -> Estimate:
    check_name(normalise, NORMALISATIONS, "normalisation")
    shape = np.shape(correct)
    if len(shape) != 4 or shape[1] != shape[2]:
        raise ValueError(
            "correct must be (seeds, 1 + K, 1 + K, n), a model for each perturbation, got "
            f"{shape}; evaluate one seed as correct[None]."
        )
    return jackknife(lambda accuracy: normalised_gains(accuracy, normalise), correct)


def _own(gains: Estimate) -> Estimate:
    corruption = np.arange(len(gains.value))
    return gains[corruption, corruption]


def _halves(gains: Estimate) -> Ratio:
    size = len(gains.value)
    return Ratio(gains, _own(gains)[np.broadcast_to(np.arange(size), (size, size))])


def _signed(gains: Estimate) -> MeanOfRatios:
    half = _halves(gains)
    rows, columns = np.indices(half.value.shape)
    return MeanOfRatios(half, half[columns, rows])


def _where(defined: np.ndarray, found: Interval, *, floor: float = -np.inf) -> Interval:
    """The interval where defined, NaN elsewhere; estimate and ends at least `floor`."""
    estimate, low, high = (
        np.where(defined, np.maximum(floor, values), np.nan)
        for values in (found.estimate, found.low, found.high)
    )
    return Interval(estimate, low, high, found.seeds, found.images)


def directed(accuracy: np.ndarray, normalise: str, min_gain: float) -> np.ndarray:
    """The directed halves of (..., 1 + K, 1 + K) accuracies as (..., K, K).

    Rows are models, standard first; columns are perturbations, clean first.
    """
    gains = normalised_gains(accuracy, normalise)
    own = np.diagonal(gains, axis1=-2, axis2=-1)
    defined = own > min_gain
    own = np.where(defined, own, np.nan)
    return gains / own[..., None, :]


def symmetric(halves: np.ndarray) -> np.ndarray:
    """max(0, mean of the two directed halves), (..., K, K)."""
    return np.maximum(0, (halves + np.swapaxes(halves, -1, -2)) / 2)


def normalised_gains(accuracy: np.ndarray, normalise: str) -> np.ndarray:
    """Gains over the first model of (..., 1 + M, 1 + P) accuracies, clean first, as (..., M, P).

    normalise: "ratio" for gains in R, with NaN where a clean accuracy is zero; "raw" in accuracy.
    """
    score = accuracy[..., 1:]
    if normalise == "ratio":
        clean = accuracy[..., :1]
        score = score / np.where(clean > 0, clean, np.nan)
    return score[..., 1:, :] - score[..., :1, :]


def _arrays(accuracy: pd.DataFrame, normalise: str) -> tuple[list[str], np.ndarray]:
    check_name(normalise, NORMALISATIONS, "normalisation")
    names = [str(name) for name in accuracy.columns if name != "clean"]
    if sorted(accuracy.index.astype(str)) != sorted(["standard", *names]) or (
        "clean" not in accuracy.columns
    ):
        raise ValueError(
            'accuracy needs one row for each model ("standard" and one for each corruption) and '
            'the columns "clean" and one for each corruption; got the rows '
            f"{list(accuracy.index)} and the columns {list(accuracy.columns)}."
        )
    values = accuracy.loc[["standard", *names], ["clean", *names]].to_numpy(dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("accuracies must lie in [0, 1], without NaN; divide percentages by 100.")
    if normalise == "ratio" and not (values[:, 0] > 0).all():
        raise ValueError('the "ratio" score needs a clean accuracy above zero for every model.')
    return names, values

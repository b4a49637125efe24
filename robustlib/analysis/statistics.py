"""Intervals: for an accuracy, and for differences of accuracies on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd

_BLOCK = 2**25  # bytes of an array in a bootstrap, but for its input and output


def wilson_interval(
    accuracy: np.ndarray | float, n: np.ndarray | int, *, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Wilson score interval of a proportion (Wilson 1927).

    Args:
        accuracy: observed proportion(s) in [0, 1].
        n: number of images, positive; same shape.
        confidence: 0 to 1.

    Returns the lower and upper ends, within [0, 1].
    """
    # late: it takes a second
    from statsmodels.stats.proportion import proportion_confint  # type: ignore[import-untyped]

    p, n = np.asarray(accuracy, dtype=float), np.asarray(n, dtype=float)
    low, high = proportion_confint(p * n, n, alpha=1 - confidence, method="wilson")
    return np.clip(low, 0, 1), np.clip(high, 0, 1)


def paired_difference_interval(
    first: np.ndarray, second: np.ndarray, *, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Difference of two accuracies measured on the same images, with a normal interval.

    Args:
        first: per-image correctness (n,) of one model, in [0, 1].
        second: the same of the other.
        confidence: 0 to 1.

    Returns mean(first - second), and the ends of the interval, which uses the standard error of
    the per-image differences. It covers the choice of test images, not that of training seeds.

    Raises:
        ValueError: different shapes, or fewer than two images.
    """
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise ValueError(
            f"two vectors of equal length, 2 or more, are needed; got {first.shape} and "
            f"{second.shape}."
        )
    difference = first.astype(float) - second.astype(float)
    centre = float(difference.mean())
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    half = z * float(difference.std(ddof=1)) / np.sqrt(len(difference))
    return centre, centre - half, centre + half


def mean_interval(
    values: np.ndarray, *, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over repeated runs, such as training seeds, with Student's t interval.

    Args:
        values: float (runs, ...).
        confidence: 0 to 1.

    Returns the mean and the ends of the interval, each (...). It covers what varies between the
    runs, and takes them for normally distributed. The ends are NaN for a single run.

    Raises:
        ValueError: no runs.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim == 0 or not len(values):
        raise ValueError(f"values must be (runs, ...) with at least one run, got {values.shape}.")
    mean, runs = values.mean(axis=0), len(values)
    if runs == 1:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    from scipy import stats  # late: it takes the better part of a second

    quantile = stats.t.ppf(0.5 + confidence / 2, runs - 1)
    half = quantile * values.std(axis=0, ddof=1) / np.sqrt(runs)
    return mean, mean - half, mean + half


def resampled_accuracies(correct: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Bootstrap over test images: accuracies had other images of the same kind been drawn.

    Images are resampled jointly for all models and perturbations, so that differences between
    them keep their pairing.

    Args:
        correct: float (models, perturbations, n) in [0, 1], as from `Evaluation.per_image`.
        resamples: number of draws.
        seed: of the resampling.

    Returns float (resamples, models, perturbations).
    """
    draws = np.empty((resamples, *correct.shape[:-1]))
    for part, accuracies in resampled_in_parts(correct, resamples=resamples, seed=seed):
        draws[part] = accuracies
    return draws


def resampled_in_parts(
    correct: np.ndarray, *, resamples: int, seed: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """`resampled_accuracies` part by part, so that memory doesn't grow with `resamples`.

    Yields where a part belongs among the draws, and its float (draws, models, perturbations).
    The images drawn are those of one draw of all; sums of fractions may differ in rounding.
    """
    images = correct.shape[-1]
    rows = correct.reshape(-1, images).astype(float)
    size = max(1, _BLOCK // (8 * max(rows.shape)))
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, size):
        part = slice(start, min(start + size, resamples))
        counts = rng.multinomial(
            images, np.full(images, 1 / images), size=part.stop - part.start
        ).astype(float)
        yield part, (counts @ rows.T / images).reshape(-1, *correct.shape[:-1])


def percentile_interval(draws: np.ndarray, *, confidence: float = 0.95) -> np.ndarray:
    """Percentile interval of bootstrap draws along the first axis, (2, ...); NaN if any draw is."""
    tail = 50 * (1 - confidence)
    return np.percentile(draws, [tail, 100 - tail], axis=0)


def verdict(low: float, high: float, *, threshold: float = 0.0) -> str:
    """What an interval says of the claim that a quantity exceeds `threshold`.

    Returns "supported" if the whole interval lies above, "contradicted" if it lies below, and
    "undecided" otherwise, also where an end is NaN.
    """
    if low > threshold:
        return "supported"
    return "contradicted" if high < threshold else "undecided"


def interval_text(low: float, high: float, *, digits: int = 3) -> str:
    """An interval in words: "0.010 to 0.200", or "undefined" if an end is NaN."""
    if np.isnan(low) or np.isnan(high):
        return "undefined"
    return f"{low:.{digits}f} to {high:.{digits}f}"


@dataclass(frozen=True)
class Claim:
    """A published claim, as a quantity that must exceed a threshold, and what was measured.

    Attributes:
        paper: short name of the paper.
        statement: the claim in words.
        measure: what was measured, in words.
        value: its estimate.
        low: lower end of its 95 % interval.
        high: upper end.
        threshold: the claim says that the quantity exceeds this.
    """

    paper: str
    statement: str
    measure: str
    value: float
    low: float
    high: float
    threshold: float = 0.0


def claims_table(claims: Sequence[Claim]) -> pd.DataFrame:
    """One row a claim: the attributes of `Claim`, and its `verdict`."""
    table = pd.DataFrame([asdict(claim) for claim in claims])
    table["verdict"] = [
        verdict(claim.low, claim.high, threshold=claim.threshold) for claim in claims
    ]
    return table

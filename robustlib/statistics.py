"""Intervals: for an accuracy, and for differences of accuracies on the same images."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np


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
    p, n = np.asarray(accuracy, dtype=float), np.asarray(n, dtype=float)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


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


def percentile_interval(draws: np.ndarray, *, confidence: float = 0.95) -> np.ndarray:
    """Percentile interval of bootstrap draws along the first axis, (2, ...); NaN if any draw is."""
    tail = 50 * (1 - confidence)
    return np.percentile(draws, [tail, 100 - tail], axis=0)

"""The interval of a proportion, and intervals in words."""

from __future__ import annotations

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
    # late: it takes a second
    from statsmodels.stats.proportion import proportion_confint  # type: ignore[import-untyped]

    p, n = np.asarray(accuracy, dtype=float), np.asarray(n, dtype=float)
    low, high = proportion_confint(p * n, n, alpha=1 - confidence, method="wilson")
    return np.clip(low, 0, p), np.clip(high, p, 1)  # rounding may leave p outside


def interval_text(low: float, high: float, *, digits: int = 3) -> str:
    """An interval in words: "0.010 to 0.200", or "at least 0.010" where it has no upper end.

    "undefined" if an end is NaN, "unbounded" if it has none.
    """
    if np.isnan(low) or np.isnan(high):
        return "undefined"
    if np.isinf(low) and np.isinf(high):
        return "unbounded"
    if np.isinf(high):
        return f"at least {low:.{digits}f}"
    if np.isinf(low):
        return f"at most {high:.{digits}f}"
    return f"{low:.{digits}f} to {high:.{digits}f}"

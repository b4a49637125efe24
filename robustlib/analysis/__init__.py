"""Analysis: pure functions of the table of accuracies and of per-image results."""

from robustlib.analysis import clusters, metrics, overlap, published, statistics
from robustlib.analysis.metrics import (
    accuracy_by_seed,
    accuracy_matrix,
    accuracy_with_intervals,
    corruption_errors,
    mce,
    robustness_scores,
)
from robustlib.analysis.overlap import (
    directed_overlaps,
    overlap_draws,
    overlapping_scores,
    own_gains,
)
from robustlib.analysis.statistics import (
    Claim,
    claims_table,
    interval_text,
    mean_interval,
    paired_difference_interval,
    percentile_interval,
    resampled_accuracies,
    verdict,
    wilson_interval,
)

__all__ = [
    "Claim",
    "accuracy_by_seed",
    "accuracy_matrix",
    "accuracy_with_intervals",
    "claims_table",
    "clusters",
    "corruption_errors",
    "directed_overlaps",
    "interval_text",
    "mce",
    "mean_interval",
    "metrics",
    "overlap",
    "overlap_draws",
    "overlapping_scores",
    "own_gains",
    "paired_difference_interval",
    "percentile_interval",
    "published",
    "resampled_accuracies",
    "robustness_scores",
    "statistics",
    "verdict",
    "wilson_interval",
]

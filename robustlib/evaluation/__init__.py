"""Evaluation: one long table of accuracies, with per-image results; is robustness real?"""

from robustlib.evaluation import packed
from robustlib.evaluation.accuracy import (
    COLUMNS,
    Evaluation,
    accuracy_against_radius,
    check_comparable,
    evaluate,
    predict,
    tabulate,
)
from robustlib.evaluation.distance import features, minimal_sample_distances
from robustlib.evaluation.sanity import (
    MASKED,
    NOT_MASKED,
    loss_along_gradient,
    masking_verdict,
    sanity_attacks,
    sanity_table,
)

__all__ = [
    "COLUMNS",
    "MASKED",
    "NOT_MASKED",
    "Evaluation",
    "accuracy_against_radius",
    "check_comparable",
    "evaluate",
    "features",
    "loss_along_gradient",
    "masking_verdict",
    "minimal_sample_distances",
    "packed",
    "predict",
    "sanity_attacks",
    "sanity_table",
    "tabulate",
]

"""Calibration: does a model's confidence say how often it is right?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from robustlib.core.checks import check_seed, check_whole

BINS = 15
"""Bins of equal width, as in Guo et al. 2017."""


def proper_scores(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood, and Brier score (Brier 1950, Mon. Weather Rev. 78), of each image.

    Args:
        probabilities: floating (N, classes), rows that sum to 1.
        labels: int64 (N,).

    Returns float64 (N,) twice: -log p of the label, in nats, infinite where p is 0; and the sum
    over classes of (p - 1[label])^2, from 0 to 2.
    """
    p = probabilities.double()
    of_label = p.gather(1, labels[:, None])[:, 0]
    truth = F.one_hot(labels, p.shape[1]).double()
    return -of_label.log(), (p - truth).square().sum(1)


def calibration_error(confidence: np.ndarray, correct: np.ndarray, *, bins: int = BINS) -> float:
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017, eq. 3), in [0, 1].

    The mean distance between confidence and accuracy over bins of equal width, weighted by the
    images in them; by torchmetrics, in float64, since in float32 its sums are off by half a point
    for a million images.

    Args:
        confidence: (N,), probability of the predicted class, in [0, 1].
        correct: bool (N,), whether it is the right one.
        bins: number of bins.

    Raises:
        ValueError: no images, unequal lengths, or a confidence outside [0, 1].
    """
    from torchmetrics.functional.classification import binary_calibration_error

    bins = check_whole(bins, "bins", low=1)
    confidence, correct = _checked(confidence, correct)
    found = binary_calibration_error(
        torch.from_numpy(confidence), torch.from_numpy(correct.astype(np.int64)), n_bins=bins
    )
    return float(found)


def error_if_calibrated(
    confidence: np.ndarray, *, bins: int = BINS, draws: int = 200, seed: int = 0
) -> float:
    """`calibration_error` that a perfectly calibrated model would show with these confidences.

    It isn't 0, since in each bin chance moves the accuracy: more with few images. The mean over
    `draws` in which each image is right with the probability that its confidence says.
    """
    draws, seed = check_whole(draws, "draws", low=1), check_seed(seed)
    confidence, _ = _checked(confidence, np.zeros(np.shape(confidence), dtype=bool))
    generator = np.random.default_rng(seed)
    errors = [
        calibration_error(confidence, generator.random(len(confidence)) < confidence, bins=bins)
        for _ in range(draws)
    ]
    return float(np.mean(errors))


def reliability(confidence: np.ndarray, correct: np.ndarray, *, bins: int = 10) -> pd.DataFrame:
    """The reliability diagram: by bins of equal width, how often the model is right.

    Returns columns confidence (its mean), accuracy and n, a row for each bin with images.
    """
    bins = check_whole(bins, "bins", low=1)
    confidence, correct = _checked(confidence, correct)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    table = pd.DataFrame({"confidence": confidence, "accuracy": correct.astype(float), "n": 1})
    found = table.groupby(place).agg({"confidence": "mean", "accuracy": "mean", "n": "sum"})
    return found.reset_index(drop=True)


def _checked(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    confidence = np.asarray(confidence, dtype=np.float64)
    correct = np.asarray(correct, dtype=bool)
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise ValueError(
            "confidence and correct must have an entry for each of one or more images, got "
            f"shapes {confidence.shape} and {correct.shape}."
        )
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("confidences must be probabilities, in [0, 1]; give softmax outputs.")
    return confidence, correct

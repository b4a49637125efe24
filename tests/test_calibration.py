"""Calibration and proper scores against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from robustlib.analysis.calibration import (
    calibration_error,
    error_if_calibrated,
    proper_scores,
    reliability,
)


def test_proper_scores_by_hand() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]])
    nll, brier = proper_scores(probabilities, torch.tensor([0, 2]))
    assert nll[0] == pytest.approx(-math.log(0.7), rel=1e-6)
    assert nll[1] == math.inf
    assert brier.tolist() == pytest.approx([0.09 + 0.04 + 0.01, 2.0], rel=1e-6)


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    correct = np.array([True, False, True, True])
    assert calibration_error(confidence, correct, bins=10) == pytest.approx(0.45)


def test_calibration_error_is_the_weighted_gap_of_the_bins() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.random(2000)
    correct = generator.random(2000) < confidence**2
    place = (confidence * 15).astype(int)
    gaps = [
        abs(correct[place == k].mean() - confidence[place == k].mean()) * np.mean(place == k)
        for k in range(15)
    ]
    assert calibration_error(confidence, correct) == pytest.approx(sum(gaps), abs=1e-9)


def test_many_images_are_summed_exactly() -> None:
    correct = np.arange(1_000_000) % 10 < 3
    assert calibration_error(np.full(len(correct), 0.3), correct) == pytest.approx(0, abs=1e-9)


def test_chance_alone_moves_the_error_of_a_calibrated_model() -> None:
    found = error_if_calibrated(np.full(400, 0.5), draws=400)
    assert found == pytest.approx(math.sqrt(2 / math.pi * 0.25 / 400), rel=0.1)
    assert error_if_calibrated(np.ones(10)) == pytest.approx(0)  # sure, and right


def test_reliability_by_hand() -> None:
    table = reliability(np.array([0.1, 0.12, 0.95, 1.0]), np.array([0, 1, 1, 1]), bins=10)
    assert table["n"].tolist() == [2, 2]
    assert table["confidence"].tolist() == pytest.approx([0.11, 0.975])
    assert table["accuracy"].tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([], [], "one or more images"),
        ([0.5, 0.5], [True], "an entry for each"),
        ([1.5], [True], "probabilities"),
        ([float("nan")], [True], "probabilities"),
    ],
)
def test_what_is_no_confidence(confidence: list[float], correct: list[bool], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibration_error(np.array(confidence), np.array(correct))

"""Whose errors divide: known numbers, and None where they aren't known."""

from __future__ import annotations

import pytest

from robustlib import corruptions
from robustlib.analysis import published
from robustlib.analysis.references import Reference, alexnet, of_published

EVERY = (1, 2, 3, 4, 5)


def test_alexnet_has_its_published_means() -> None:
    """In percent, as Hendrycks and Dietterich 2019 print them."""
    noise, blur = (88.6, 89.4, 92.3), (82.0, 82.6, 78.6, 79.8)
    weather, digital = (86.7, 82.7, 81.9, 56.5), (85.3, 64.6, 71.8, 60.7)
    printed = (*noise, *blur, *weather, *digital)
    for name, percent in zip(corruptions.names("imagenet_c_15"), printed, strict=True):
        assert 100 * (alexnet().error(name, EVERY) or 0) == pytest.approx(percent, abs=0.051), name
    assert alexnet().error("speckle_noise", EVERY) == 0.845
    assert alexnet().clean == 0.435


def test_alexnet_agrees_with_another_measurement_of_it() -> None:
    """RobustBench evaluated another copy of AlexNet on the same files."""
    theirs = published.load("imagenet").loc[("AlexNet", "AlexNet")]
    for name in corruptions.names("imagenet_c_15"):
        assert alexnet().error(name, EVERY) == pytest.approx(1 - theirs[name], abs=0.007)


def test_the_mce_of_a_public_model_is_the_stated_one() -> None:
    """RobustBench states 41.7 for DeiT-B of Tian et al. 2022."""
    theirs = published.load("imagenet").droplevel("paper").T["Tian2022Deeper_DeiT-B"]
    ratios = [
        (1 - theirs[name]) / (alexnet().error(name, EVERY) or 0)
        for name in corruptions.names("imagenet_c_15")
    ]
    assert 100 * sum(ratios) / 15 == pytest.approx(41.7, abs=0.05)


def test_some_severities_are_averaged_only_where_each_is_known() -> None:
    reference = alexnet()
    assert reference.error("fog", (1, 3)) == pytest.approx((0.67474 + 0.84378) / 2)
    assert reference.error("speckle_noise", (1, 3)) is None
    assert reference.error("rain", EVERY) is None


def test_a_published_model_divides_by_its_means() -> None:
    reference = of_published("cifar10", "Standard")
    row = published.load("cifar10").droplevel("paper").loc["Standard"]
    assert reference.clean == pytest.approx(1 - row["clean"])
    assert reference.error("fog", EVERY) == pytest.approx(1 - row["fog"])
    assert reference.error("fog", (1, 3, 5)) is None


def test_a_misspelt_model_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match="Standard"):
        of_published("cifar10", "Standart")


def test_severities_in_another_order_are_the_same() -> None:
    reference = Reference("mine", 0.1, {"fog": {1: 0.2, 3: 0.4}}, {"fog": 0.5})
    assert reference.error("fog", (3, 1)) == pytest.approx(0.3)
    assert reference.error("fog", (5, 4, 3, 2, 1)) == 0.5

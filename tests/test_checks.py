import math
from pathlib import Path

import numpy as np
import pytest
import torch

from robustlib.core.checks import (
    UnknownNameError,
    as_number,
    as_whole,
    check_ids,
    check_images,
    check_labels,
    check_logits,
    check_name,
    check_names,
    check_nonempty,
    check_number,
    check_options,
    check_seed,
    check_severity,
    keyword_options,
)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'gaussian_noise'"):
        check_name("gausian_noise", ["fog", "gaussian_noise"], "corruption")
    with pytest.raises(UnknownNameError, match="Allowed: fog, snow"):
        check_name("zzz", ["fog", "snow"], "corruption")


@pytest.mark.parametrize("severity", [0, 6, 2.5, "3", True, None])
def test_severities_outside_1_to_5_are_refused(severity: object) -> None:
    with pytest.raises(ValueError, match="from 1 to 5"):
        check_severity(severity)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), r"images.float\(\) / 255"),
        (torch.zeros(2, 4, 4, 3), r"permute\(0, 3, 1, 2\)"),
        (torch.zeros(3, 4, 4), r"unsqueeze\(0\)"),
        (torch.full((1, 3, 2, 2), 1.01), r"in \[0, 1\]"),
        (torch.full((1, 3, 2, 2), -0.01), r"in \[0, 1\]"),
        (torch.full((1, 3, 2, 2), float("nan")), "NaN"),
        ([[0.0]], "torch.from_numpy"),
    ],
)
def test_bad_images_say_how_to_convert(images: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_images(images)  # type: ignore[arg-type]


def test_good_images_pass() -> None:
    assert check_images(torch.tensor([0.0, 1.0, 0.5]).view(1, 3, 1, 1)).shape == (1, 3, 1, 1)
    assert check_images(torch.zeros(0, 3, 8, 8)).shape == (0, 3, 8, 8)


def test_labels_must_match_images_and_classes() -> None:
    with pytest.raises(ValueError, match="int64"):
        check_labels(torch.zeros(2), 2, 3)
    with pytest.raises(ValueError, match=r"0 \.\. 2"):
        check_labels(torch.tensor([0, 3]), 2, 3)


def test_empty_or_repeated_entries_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        check_nonempty([], "corruptions")
    with pytest.raises(ValueError, match="repeats"):
        check_nonempty(["fog", "fog"], "corruptions")


def test_options_of_a_function() -> None:
    def function(
        x: int, *, steps: int = 3, rate: float = 0.5, swap: bool = False, folder: None = None
    ) -> None: ...

    defaults = keyword_options(function)
    assert defaults == {"steps": 3, "rate": 0.5, "swap": False, "folder": None}
    given = {"steps": np.int64(5), "rate": "8/255", "swap": np.True_, "folder": "here"}
    checked = check_options(given, defaults, "attack", "pgd")
    assert checked == {"steps": 5, "rate": 8 / 255, "swap": True, "folder": Path("here")}
    assert [type(value) for value in list(checked.values())[:3]] == [int, float, bool]
    with pytest.raises(UnknownNameError, match=r"option of 'pgd' 'step'. Did you mean 'steps'"):
        check_options({"step": 1}, defaults, "attack", "pgd")
    with pytest.raises(ValueError, match="the attack 'fgsm' takes no options, got 'steps'"):
        check_options({"steps": 1}, {}, "attack", "fgsm")
    for wrong in ({"steps": 0}, {"steps": 1.5}, {"rate": -1}, {"rate": "x"}, {"swap": 1}):
        (name,) = wrong
        with pytest.raises(ValueError, match=name):
            check_options(wrong, defaults, "attack", "pgd")


@pytest.mark.parametrize(
    "value", [3, 3.0, np.int64(3), np.float32(3), torch.tensor(3), torch.tensor(3.0), np.array(3)]
)
def test_whole_numbers_of_other_types_are_taken(value: object) -> None:
    for found in (as_whole(value), check_severity(value), check_seed(value)):
        assert found == 3
        assert type(found) is int


@pytest.mark.parametrize("value", [2.5, "3", True, np.True_, None, [3], torch.ones(2), math.nan])
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="not a whole number"):
        as_whole(value)
    with pytest.raises(ValueError, match="seed must be an integer, got"):
        check_seed(value)


@pytest.mark.parametrize(
    "value", [0.5, "1/2", " 1 / 2", "0.5", "5e-1", np.float32(0.5), torch.tensor(0.5)]
)
def test_numbers_of_other_types_are_taken(value: object) -> None:
    assert as_number(value) == 0.5
    assert type(check_number(value, "eps", low=0, high=0.5, above=True)) is float


@pytest.mark.parametrize("value", ["x", "1/0", True, None, math.inf, math.nan, -0.1, 0, 0.6, [1]])
def test_what_is_no_number_or_out_of_range_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"eps must be a number above 0, at most 0.5 \(pixels\)"):
        check_number(value, "eps", low=0, high=0.5, above=True, unit="pixels")


@pytest.mark.parametrize(
    "labels",
    [[0, 2], (0, 2), np.array([0, 2]), np.array([0, 2], np.uint8), torch.tensor([0, 2]).int()],
)
def test_labels_and_ids_of_other_types_are_taken(labels: object) -> None:
    for found in (check_labels(labels, 2, 3), check_ids(labels, 2)):
        assert found.dtype == torch.int64
        assert found.tolist() == [0, 2]


@pytest.mark.parametrize("labels", [[0.5, 1], [[0], [1]], ["a", "b"], [0], [True, False], [-1, 0]])
def test_what_is_no_list_of_labels_is_refused(labels: object) -> None:
    with pytest.raises(ValueError, match="labels must"):
        check_labels(labels, 2, 3)


def test_ids_are_positions_by_default() -> None:
    assert check_ids(None, 3).tolist() == [0, 1, 2]


def test_pixels_off_by_rounding_are_clipped_in_a_copy() -> None:
    images = torch.tensor([1 + 1e-6, -1e-6, 0.5]).view(1, 3, 1, 1)
    clipped = check_images(images)
    assert clipped.flatten().tolist() == [1.0, 0.0, 0.5]
    assert images.max() > 1
    with pytest.raises(ValueError, match=r"from 0 to 1\.0001"):
        check_images(torch.tensor([0.0, 0.5, 1.0001]).view(1, 3, 1, 1))


def test_names_come_as_a_list() -> None:
    assert check_names(["fog", "snow"], ["snow", "fog"], "corruption") == ("fog", "snow")
    with pytest.raises(ValueError, match=r"\['fog'\]"):
        check_names("fog", ["fog"], "corruption")


class Output:
    logits = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"logits": torch.zeros(2, 3), "loss": 0}, r"a dict with the keys logits, loss.*output="),
        ((torch.zeros(2, 3), 1), "a tuple of 2.*output="),
        (Output(), "a Output.*output="),
        (torch.zeros(3, 3), r"shape \(3, 3\)"),
        (torch.zeros(2, 3, 1), r"shape \(2, 3, 1\)"),
        (torch.zeros(2, 3, dtype=torch.int64), "int64"),
        (torch.zeros(2, 1), "1 output"),
        (torch.zeros(2, 2), "2 outputs, but the labels go up to 2"),
    ],
)
def test_outputs_that_are_no_logits(output: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_logits(output, 2, torch.tensor([0, 2]))
    assert check_logits(torch.zeros(2, 3), 2, torch.tensor([0, 2])).shape == (2, 3)

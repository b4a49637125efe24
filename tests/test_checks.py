import pytest
import torch

from robustlib.checks import (
    UnknownNameError,
    check_images,
    check_labels,
    check_name,
    check_nonempty,
    check_option,
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
    with pytest.raises(ValueError, match="1 to 5"):
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
    def function(images: int, amount: float, *, steps: int = 3, legacy: bool = False) -> None: ...

    assert keyword_options(function) == {"steps": 3, "legacy": False}
    assert check_option("steps", keyword_options(function), "attack", "pgd") == "steps"
    with pytest.raises(UnknownNameError, match=r"option of 'pgd' 'step'. Did you mean 'steps'"):
        check_option("step", keyword_options(function), "attack", "pgd")
    with pytest.raises(ValueError, match="the attack 'fgsm' takes no options, got 'steps'"):
        check_option("steps", {}, "attack", "fgsm")

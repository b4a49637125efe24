"""Minimal sample distance, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlib.core.checks import UnknownNameError
from robustlib.data import Split
from robustlib.evaluation import features, minimal_sample_distances


def grey_images(n: int = 300, side: int = 32) -> Split:
    images = torch.full((n, 3, side, side), 102, dtype=torch.uint8)
    return Split(images, torch.zeros(n, dtype=torch.int64), torch.arange(n))


def channel_means() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()


def test_distances_of_known_shifts() -> None:
    """Brightness moves a grey of 0.4 by .05, .1, .15, .2, .3 at 32 px; contrast leaves it alone."""
    found = minimal_sample_distances(channel_means(), grey_images(), ["brightness", "contrast"])
    root = 3**0.5  # three channels
    assert found.loc["brightness", "contrast"] == pytest.approx(0.05 * root, abs=1e-6)
    assert found.loc["contrast", "brightness"] == pytest.approx(0.16 * root, abs=1e-6)
    assert found.loc["brightness", "brightness"] == pytest.approx(0.01 * root, abs=1e-6)
    assert found.loc["contrast", "contrast"] == pytest.approx(0, abs=1e-6)


def test_one_severity_is_at_no_distance_from_itself() -> None:
    found = minimal_sample_distances(
        channel_means(), grey_images(20), ["fog", "rotation"], severities=[4]
    )
    assert found.loc["fog", "fog"] == pytest.approx(0, abs=1e-6)
    assert found.loc["rotation", "rotation"] == pytest.approx(0, abs=1e-6)
    assert found.loc["fog", "rotation"] == pytest.approx(found.loc["rotation", "fog"], abs=1e-6)
    assert found.loc["fog", "rotation"] > 0.1


def test_features_enter_the_last_linear_layer() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
    images = torch.rand(4, 3, 2, 2)
    torch.testing.assert_close(features(model, images), model[:3](images).detach())
    assert not model[3]._forward_pre_hooks


def test_bad_input_is_refused() -> None:
    model, split = channel_means(), grey_images(2)
    with pytest.raises(UnknownNameError, match="fog"):
        minimal_sample_distances(model, split, ["fgo"])
    with pytest.raises(ValueError, match="severities is empty"):
        minimal_sample_distances(model, split, ["fog"], severities=[])
    with pytest.raises(ValueError, match="severity must"):
        minimal_sample_distances(model, split, ["fog"], severities=[0])
    with pytest.raises(ValueError, match="no image"):
        minimal_sample_distances(model, split.first(0), ["fog"])
    with pytest.raises(ValueError, match="no linear layer"):
        minimal_sample_distances(nn.Sequential(nn.Flatten()).eval(), split, ["fog"])
    with pytest.raises(ValueError, match="doesn't use"):
        features(_Idle(), split.float_images())


class _Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

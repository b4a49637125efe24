from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustlib.attacks import GradientWarning
from robustlib.core.store import Store
from robustlib.data import Dataset
from robustlib.evaluation.sanity import (
    MASKED,
    NOT_MASKED,
    loss_along_gradient,
    masking_verdict,
    sanity_table,
)
from robustlib.models import Classifier, wrap

# The tiny images' brightest channel leads by 100 / 255 on average, less than 2 EPS.
EPS = 0.25


class ChannelMeans(nn.Module):
    """Logits that are the mean of each channel over the first columns: linear, without training."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.factor = nn.Parameter(torch.tensor(10.0))

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * images[..., : self.columns].mean((2, 3))


class Quantised(nn.Module):
    """Rounds the pixels, which leaves no gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images * 12).round() / 12)


class Scaled(nn.Module):
    """The same decisions with so much confidence that the loss is flat."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return 1e4 * self.model(images)


@pytest.fixture(scope="module")
def ordinary() -> list[Classifier]:
    return [
        wrap(ChannelMeans(columns).eval(), name=name)
        for name, columns in (("whole", 16), ("half", 8))
    ]


@pytest.fixture(scope="module")
def table(
    tiny: Dataset, ordinary: list[Classifier], tmp_path_factory: pytest.TempPathFactory
) -> pd.DataFrame:
    masked = [
        wrap(wrapper(ordinary[0].model).eval(), name=name)
        for name, wrapper in (("quantised", Quantised), ("scaled", Scaled))
    ]
    store = Store(tmp_path_factory.mktemp("evaluations"))
    models = [*ordinary, *masked]
    with pytest.warns(GradientWarning, match="gradient is zero"):  # of the quantised model
        return sanity_table(models, tiny.test.first(30), eps=EPS, store=store, progress=False)


@pytest.mark.slow
def test_masked_models_are_told_from_ordinary_ones(table) -> None:
    verdicts = masking_verdict(table)["verdict"].to_dict()
    assert verdicts == {
        "whole-0": NOT_MASKED,
        "half-0": NOT_MASKED,
        "quantised-0": MASKED,
        "scaled-0": MASKED,
    }
    failed = masking_verdict(table)["failed"]
    for name in ("quantised-0", "scaled-0"):
        assert "loss rises along the gradient" in failed[name]
        assert "strong attacks leave most of it" in failed[name]
        assert "score-based attack isn't stronger" in failed[name]
        assert "transferred attack isn't stronger" in failed[name]


@pytest.mark.slow
def test_each_row_says_what_was_compared(table) -> None:
    assert list(table.columns) == ["model", "check", "value", "expected", "reference", "passed"]
    assert table.groupby("model")["check"].nunique().eq(9).all()
    assert table[["value", "reference"]].stack().between(0, 1).all()
    for row in table.itertuples():
        excess = row.value - row.reference
        excess = excess if row.expected == "<=" else -excess
        assert row.passed == (excess <= 0.02)
    by_check = table[table["model"] == "whole-0"].set_index("check")
    white = by_check.loc["score-based attack isn't stronger", "reference"]
    assert white <= by_check.loc["iterated beats single-step", "value"]
    assert by_check.loc["strong attacks leave most of it", "reference"] == pytest.approx(
        0.75 * white
    )


def test_verdict_by_hand() -> None:
    table = pd.DataFrame(
        {
            "model": ["b", "b", "a"],
            "check": ["one", "two", "one"],
            "passed": [False, False, True],
        }
    )
    verdict = masking_verdict(table)
    assert verdict.index.tolist() == ["b", "a"]
    assert verdict["verdict"].tolist() == [MASKED, NOT_MASKED]
    assert verdict["failed"].tolist() == ["one, two", ""]


def test_loss_along_the_gradient_of_a_linear_model() -> None:
    """Logits (w x, 0), class 0: the loss log(1 + exp(-w x)) by hand; t moves w x by -t eps |w|."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False)).eval()
    weights = torch.tensor([2.0, -1.0, 3.0])
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([weights, torch.zeros(3)]))
    images, labels = torch.full((2, 3, 1, 1), 0.5), torch.zeros(2, dtype=torch.int64)
    curve = loss_along_gradient(model, images, labels, eps=0.1, points=5)
    gradient = curve[curve["direction"] == "gradient"]
    assert gradient["t"].tolist() == [-1, -0.5, 0, 0.5, 1]
    expected = F.softplus(-(2.0 - torch.tensor([-1, -0.5, 0, 0.5, 1]) * 0.1 * 6.0))
    assert gradient["loss"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    random = curve[curve["direction"] == "random"].set_index("t")["loss"]
    assert random[0] == pytest.approx(expected[2].item(), rel=1e-5)
    assert random[1] < expected[4].item()


def test_bad_arguments(tiny, ordinary, store) -> None:
    for eps in (0.0, -0.1, 0.5, 8.0):
        with pytest.raises(ValueError, match="eps"):
            sanity_table(ordinary, tiny.test, eps=eps, store=store)
    with pytest.raises(ValueError, match="slack"):
        sanity_table(ordinary, tiny.test, eps=0.1, store=store, slack=-1)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        sanity_table([], tiny.test, eps=0.1, store=store)
    images = tiny.test.float_images()
    with pytest.raises(ValueError, match="points must be an integer of at least 2"):
        loss_along_gradient(ordinary[0].model, images, tiny.test.labels, eps=0.1, points=1)
    with pytest.raises(ValueError, match="labels"):
        loss_along_gradient(ordinary[0].model, images, tiny.test.labels + 3, eps=0.1)

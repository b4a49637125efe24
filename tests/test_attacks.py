from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustlib import attacks, models
from robustlib.attacks import TrainModeWarning, attack
from robustlib.checks import UnknownNameError


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return models.build("small_resnet", classes=3, image_size=16, seed=0).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def labels(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The model's own predictions, except for four images that it gets wrong."""
    predicted = model(images).argmax(1)
    predicted[:4] = (predicted[:4] + 1) % 3
    return predicted


@pytest.mark.parametrize("name", attacks.names())
def test_attacks_stay_in_the_ball_and_raise_the_loss(name, model, images, labels) -> None:
    adversarial = attack(model, images, labels, name, eps=0.02)
    assert (adversarial - images).abs().max() <= 0.02 + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    before = F.cross_entropy(model(images), labels, reduction="none")[4:]
    after = F.cross_entropy(model(adversarial), labels, reduction="none")[4:]
    assert (after > before).all()


@pytest.mark.parametrize("name", attacks.names())
def test_misclassified_images_come_back_unchanged(name, model, images, labels) -> None:
    adversarial = attack(model, images, labels, name, eps=0.02)
    assert torch.equal(adversarial[:4], images[:4])
    assert not torch.equal(adversarial[4:], images[4:])


def test_fgsm_equals_the_formula(model, images, labels) -> None:
    x = images.clone().requires_grad_()
    F.cross_entropy(model(x), labels, reduction="sum").backward()
    expected = (images + 0.03 * x.grad.sign()).clamp(0, 1)
    model.zero_grad()
    adversarial = attack(model, images, labels, "fgsm", eps=0.03)
    agree = (adversarial[4:] - expected[4:]).abs() < 1e-6
    assert agree.float().mean() > 0.999, "a gradient near zero may change its sign by rounding"


def test_pgd_on_a_linear_model_reaches_the_corner_of_the_ball() -> None:
    """For a linear model the worst case is x - eps sign(w_y - w_other), by hand."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, -1.0, 2.0], [0.0, 0.0, 0.0]]))
    images = torch.full((5, 3, 1, 1), 0.5)
    adversarial = attack(model, images, torch.zeros(5, dtype=torch.int64), "pgd", eps=0.1)
    expected = torch.tensor([0.4, 0.6, 0.4]).view(1, 3, 1, 1).expand(5, 3, 1, 1)
    torch.testing.assert_close(adversarial, expected)


def test_pgd_depends_on_seed_and_id_not_on_the_batch(model, images, labels) -> None:
    ids = torch.arange(24) + 50
    options = {"eps": 0.02, "steps": 3, "seed": 4}
    whole = attack(model, images, labels, "pgd", ids=ids, **options)
    parts = [
        attack(model, images[part], labels[part], "pgd", ids=ids[part], **options)
        for part in (slice(0, 7), slice(7, 24))
    ]
    close = (whole - torch.cat(parts)).abs() < 1e-6
    assert close.float().mean() > 0.99
    other = attack(model, images, labels, "pgd", ids=ids, eps=0.02, steps=3, seed=5)
    assert ((whole - other).abs() < 1e-6).float().mean() < 0.9


def test_the_model_is_left_as_it_was(model, images, labels) -> None:
    model.zero_grad(set_to_none=True)
    model[1][1].train()
    model[-1].bias.requires_grad_(False)
    with pytest.warns(TrainModeWarning):
        attack(model.train(), images, labels, "pgd", eps=0.02, steps=2)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model[-1].parameters()] == [True, False]
    model.eval().requires_grad_(True)


def test_bad_arguments(model, images, labels) -> None:
    with pytest.raises(UnknownNameError, match="'pgd'"):
        attack(model, images, labels, "pdg", eps=0.1)
    for eps in (0.0, -0.1, 8.0, float("nan")):
        with pytest.raises(ValueError, match="eps"):
            attack(model, images, labels, "fgsm", eps=eps)
    with pytest.raises(ValueError, match="steps"):
        attack(model, images, labels, "pgd", eps=0.1, steps=0)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        attack(model, images * 255, labels, "fgsm", eps=0.1)
    with pytest.raises(ValueError, match=r"0 \.\. 2"):
        attack(model, images, labels + 3, "fgsm", eps=0.1)
    with pytest.raises(ValueError, match=r"\(24, classes\)"):
        attack(nn.Identity().eval(), images, labels, "fgsm", eps=0.1)

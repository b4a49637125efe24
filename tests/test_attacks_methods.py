"""Each attack against a second, independent version or numbers worked out by hand."""

from __future__ import annotations

import math

import foolbox
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustlib import models
from robustlib.attacks import auto, guard, run
from robustlib.attacks.guard import Guard
from robustlib.attacks.registry import Task
from robustlib.core.randomness import Stream


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Of fixed widths: the radii below suit it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.residual_network(5, 16, widths=(16, 48, 96)).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def labels(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(1)


def gradient(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (result,) = torch.autograd.grad(F.cross_entropy(model(x), classes, reduction="sum"), x)
    return result


def assert_mostly_equal(found: Tensor, expected: Tensor, share: float = 0.99) -> None:
    """A gradient near zero may change its sign by rounding."""
    assert ((found - expected).abs() < 1e-5).float().mean() > share


def linear(weights: Tensor, bias: float) -> nn.Module:
    """Logits (w x + b, 0) of images (N, 3, 2, 2)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([weights, torch.zeros(12)]))
        model[1].bias.copy_(torch.tensor([bias, 0.0]))
    return model


WEIGHTS = torch.tensor([1.0, -2, 3, -1, 2, -3, 1, -2, 3, -1, 2, -3])
GREY = torch.full((4, 3, 2, 2), 0.5)
ZERO = torch.zeros(4, dtype=torch.int64)


def test_fgsm_equals_the_formula(model, images, labels) -> None:
    found = run(model, images, labels, "fgsm", eps=0.03).adversarial
    step = 0.03 * gradient(model, images, labels).sign()
    assert_mostly_equal(found, (images + step).clamp(0, 1))
    targets = (labels + 1) % 5
    found = run(model, images, labels, "fgsm", eps=0.03, targets=targets).adversarial
    step = 0.03 * gradient(model, images, targets).sign()
    assert_mostly_equal(found, (images - step).clamp(0, 1))


def test_pgd_equals_a_plain_loop(model, images, labels) -> None:
    eps, steps, ids = 0.004, 4, torch.arange(24) + 7
    x = images + Stream(9, ids, "pgd", 0).uniform((3, 16, 16), -eps, eps)
    x = x.clamp(0, 1)
    for _ in range(steps):
        x = x + 2.5 * eps / steps * gradient(model, x, labels).sign()
        x = torch.min(torch.max(x, images - eps), images + eps).clamp(0, 1)
    options = {"steps": steps, "restarts": 1, "seed": 9, "ids": ids, "stop": False}
    assert_mostly_equal(run(model, images, labels, "pgd", eps=eps, **options).adversarial, x, 0.98)


@pytest.mark.parametrize("name", ["pgd", "fgsm", "mi_fgsm"])
def test_attacks_agree_with_foolbox(name, model, images, labels) -> None:
    """Its steps are the same; it starts PGD elsewhere, and signs the gradients of MI-FGSM first."""
    attacks, eps = foolbox.attacks, 0.002
    theirs = {
        "fgsm": attacks.LinfFastGradientAttack(),
        "pgd": attacks.LinfPGD(rel_stepsize=2.5 / 20, steps=20, random_start=True),
        "mi_fgsm": attacks.LinfMomentumIterativeFastGradientMethod(
            steps=20, rel_stepsize=1 / 20, random_start=False
        ),
    }[name]
    options = {} if name == "fgsm" else {"steps": 20, "stop": False}
    if name == "pgd":
        options["restarts"] = 1
    ours = run(model, images, labels, name, eps=eps, **options)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    torch.manual_seed(0)
    shown = theirs.run(wrapped, images, labels, epsilon=eps)
    robust = model(shown).argmax(1) == labels
    assert 3 <= robust.sum() <= 21, "the test can't tell"
    assert (ours.robust_correct != robust).sum() <= 1
    same = ((ours.adversarial - shown).abs() < 1e-5).float().mean()
    assert same > {"fgsm": 0.99, "pgd": 0.8, "mi_fgsm": 0.8}[name]


def test_pgd_least_likely_descends_toward_that_class(model, images, labels) -> None:
    least = model(images).argmin(1)
    options = {"eps": 0.01, "steps": 4, "restarts": 1}
    found = run(model, images, labels, "pgd_least_likely", **options)
    aimed = run(model, images, labels, "pgd", targets=least, **options)
    standing = found.robust_correct
    assert 1 <= standing.sum() <= 23, "the test can't tell"
    assert torch.equal(found.adversarial[standing], aimed.adversarial[standing])
    before = F.cross_entropy(model(images), least, reduction="none")
    assert (F.cross_entropy(model(found.adversarial), least, reduction="none") < before).all()
    assert (found.steps[~standing] <= aimed.steps[~standing]).all()


def test_mi_fgsm_accumulates_gradients_not_signs(model, images, labels) -> None:
    eps, steps, momentum = 0.02, 5, 0.9

    def loop(normalise) -> Tensor:
        x, total = images, torch.zeros_like(images)
        for _ in range(steps):
            total = momentum * total + normalise(gradient(model, x, labels))
            x = (x + eps / steps * total.sign()).clamp(0, 1)
        return x

    found = run(
        model, images, labels, "mi_fgsm", eps=eps, steps=steps, momentum=momentum, stop=False
    )
    expected = loop(lambda g: g / g.abs().sum((1, 2, 3), keepdim=True))
    assert_mostly_equal(found.adversarial, expected, 0.98)
    signs_first = loop(torch.sign)
    assert ((signs_first - expected).abs() < 1e-5).float().mean() < 0.97, "the test can't tell"


@pytest.mark.parametrize(
    ("name", "options", "factor"),
    [
        ("cw", {}, 1.0),
        ("ddn", {}, 1.0),
        ("deepfool", {}, 1.02),  # its overshoot
        ("rays", {}, 1.0),
    ],
)
def test_smallest_perturbation_of_a_linear_model(name, options, factor) -> None:
    """|w x + b| / |w|, in the L2 norm for L2 and in the L1 norm for Linf."""
    result = run(linear(WEIGHTS, 2.0), GREY, ZERO, name, **options)
    margin = 2.0 + 0.5 * WEIGHTS.sum().item()
    dual = WEIGHTS.abs().sum().item() if name == "rays" else math.sqrt((WEIGHTS**2).sum().item())
    torch.testing.assert_close(
        result.norm, torch.full((4,), factor * margin / dual), rtol=0.02, atol=1e-4
    )
    assert not result.robust_correct.any()


@pytest.mark.parametrize("name", ["fgsm", "pgd", "mi_fgsm", "apgd_ce", "apgd_dlr"])
def test_linear_model_is_beaten_exactly_beyond_its_margin(name) -> None:
    """The worst case in the ball is the corner x - eps sign(w): w x falls by eps |w|_1."""
    model = linear(WEIGHTS, 2.0)
    limit = (2.0 + 0.5 * WEIGHTS.sum().item()) / WEIGHTS.abs().sum().item()
    below = run(model, GREY, ZERO, name, eps=0.99 * limit)
    assert below.robust_correct.all()
    corner = GREY - 0.99 * limit * WEIGHTS.sign().view(1, 3, 2, 2)
    torch.testing.assert_close(below.adversarial, corner)
    assert not run(model, GREY, ZERO, name, eps=1.01 * limit).robust_correct.any()


def test_square_beats_a_linear_model_from_scores_alone() -> None:
    model = linear(WEIGHTS, 2.0)
    limit = (2.0 + 0.5 * WEIGHTS.sum().item()) / WEIGHTS.abs().sum().item()
    assert run(model, GREY, ZERO, "square", eps=0.99 * limit).robust_correct.all()
    result = run(model, GREY, ZERO, "square", eps=1.2 * limit)
    assert not result.robust_correct.any()
    assert result.steps.max() < 1000


def test_ddn_agrees_with_foolbox(model, images, labels) -> None:
    result = run(model, images, labels, "ddn", steps=40)
    method = foolbox.attacks.DDNAttack(steps=40)
    theirs = method.run(foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels)
    norm = (theirs - images).flatten(1).norm(dim=1)
    assert ((result.norm - norm).abs() < 0.02 * norm).float().mean() > 0.8
    assert result.norm.mean().item() == pytest.approx(norm.mean().item(), rel=0.02)


class Quantised(nn.Module):
    """A model without gradients: its input is rounded to nine grey levels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images * 8).round() / 8)


@pytest.mark.filterwarnings("ignore:the gradient is zero:robustlib.attacks.GradientWarning")
def test_ddn_without_gradients_does_not_depend_on_the_batch(model, images) -> None:
    flat = Quantised(model).eval()
    labels = flat(images).argmax(1).detach()
    whole = run(flat, images, labels, "ddn", steps=20, seed=1)
    torch.rand(5)  # the global generator plays no part
    parts = [
        run(flat, images[i : i + 8], labels[i : i + 8], "ddn", steps=20, seed=1, ids=ids)
        for i, ids in zip((0, 8, 16), torch.arange(24).split(8), strict=True)
    ]
    together = torch.cat([part.adversarial for part in parts])
    assert_mostly_equal(whole.adversarial, together, 0.95)


def test_checkpoints_of_apgd_by_hand() -> None:
    assert auto.checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]
    assert auto.checkpoints(10) == [0, 3, 5, 6, 7, 8, 9, 10]
    assert auto.checkpoints(1) == [0, 1]


def test_apgd_returns_the_best_point_it_visited(model, images, labels) -> None:
    """For images that can't be beaten: the loss is the attack's to choose."""
    visited: list[Tensor] = []

    def loss(logits: Tensor, task: Task) -> Tensor:
        value = logits[:, 1] * logits[:, 2].sin()
        visited.append(value.detach())
        return value

    class Unbeatable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = model(x) * 20
            return logits + 1e6 * F.one_hot(torch.zeros(len(x), dtype=torch.int64), 5)

    zeros = torch.zeros_like(labels)
    task = Task(Guard(Unbeatable(), zeros), images, zeros, torch.arange(24), 0, 0.1)
    best, steps = auto.apgd(task, loss, steps=30, name="apgd_ce")
    assert steps.eq(30).all()
    highest = torch.stack(visited).amax(0)
    assert len(visited) == 31
    torch.testing.assert_close(loss(task.model(best), task).detach(), highest)
    assert (highest > visited[0]).all()


def test_apgd_halves_the_step_by_the_two_conditions() -> None:
    """By hand; after 10 steps 7.5 must have raised the loss."""

    def column(*values: float) -> Tensor:
        return torch.tensor(values)

    def pictures(*values: float) -> Tensor:
        return column(*values).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)

    # 0: too few rises. 1: enough. 2: enough, but no better and not halved before.
    # 3: no better, but halved at the last checkpoint already. 4: too few, but at no checkpoint.
    state = auto._State(
        step=torch.full((5,), 10),
        found=pictures(10, 11, 12, 13, 14),
        x=pictures(0, 1, 2, 3, 4),
        previous=pictures(0, 0, 0, 0, 0),
        value=column(1, 1, 1, 1, 1),
        gradient=pictures(0, 1, 2, 3, 4),
        best_value=column(5, 6, 7, 8, 9),
        best_gradient=pictures(20, 21, 22, 23, 24),
        stepsize=column(0.4, 0.4, 0.4, 0.2, 0.4),
        rises=column(7, 8, 8, 8, 7),
        stepsize_then=column(0.4, 0.4, 0.4, 0.4, 0.8),
        best_value_then=column(4, 5, 7, 8, 3),
    )
    auto._halve(state, column(7.5, 7.5, 7.5, 7.5, math.nan))
    torch.testing.assert_close(state.stepsize, column(0.2, 0.4, 0.2, 0.2, 0.4))
    assert state.x[:, 0, 0, 0].tolist() == [10, 1, 12, 3, 4]
    assert state.gradient[:, 0, 0, 0].tolist() == [20, 1, 22, 3, 4]
    assert state.value.tolist() == [5, 1, 7, 1, 1]
    assert state.rises.tolist() == [0, 0, 0, 0, 7]
    torch.testing.assert_close(state.stepsize_then, column(0.4, 0.4, 0.4, 0.2, 0.8))
    assert state.best_value_then.tolist() == [5, 6, 7, 8, 3]


def test_targeted_dlr_by_hand() -> None:
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.0, 2.0]] * 2)
    found = auto.targeted_dlr(logits, torch.tensor([0, 2]), torch.tensor([1, 0]))
    # -(4 - 1) / (4 - (2 + 1) / 2) and -(3 - 4) / the same
    torch.testing.assert_close(found, torch.tensor([-1.2, 0.4]))
    scaled = auto.targeted_dlr(1e4 * logits, torch.tensor([0, 2]), torch.tensor([1, 0]))
    torch.testing.assert_close(scaled, found)
    few = auto.targeted_dlr(logits[:, :3], torch.tensor([0, 2]), torch.tensor([1, 0]))
    torch.testing.assert_close(few, torch.tensor([-3.0, 1.0]))


def test_apgd_dlr_sees_through_scaled_logits(model, images, labels) -> None:
    """Their cross-entropy has no gradient in single precision."""

    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e5 * model(x)

    options = {"eps": 0.004, "steps": 10}
    blind = run(Scaled().eval(), images, labels, "apgd_ce", **options).robust_correct
    seeing = run(Scaled().eval(), images, labels, "apgd_dlr", **options).robust_correct
    assert seeing.sum() < blind.sum()
    plain = run(model, images, labels, "apgd_dlr", **options).robust_correct
    assert (plain != seeing).sum() <= 1


def test_window_of_square_shrinks_as_published() -> None:
    sides = [auto.square_side(step, 10_000, 32, 32, 0.8) for step in (1, 11, 51, 201, 3000, 9000)]
    # sqrt(0.8 / 2^k * 1024) for k = 0, 1, 2, 3, 6, 9
    assert sides == [29, 20, 14, 10, 4, 1]
    assert auto.square_side(1, 1000, 32, 32, 0.8) == 29
    assert auto.square_side(6, 1000, 32, 32, 0.8) == 14


def test_square_moves_windows_between_corners_of_the_ball(model, images, labels) -> None:
    inner = images * 0.8 + 0.1
    labels = model(inner).argmax(1).detach()
    stripes = run(model, inner, labels, "square", eps=0.003, queries=1)
    moved = (stripes.adversarial - inner) / 0.003
    torch.testing.assert_close(moved.abs(), torch.ones_like(moved), rtol=0, atol=1e-3)
    assert (moved - moved[:, :, :1]).abs().max() < 1e-3, "vertical stripes"
    longer = run(model, inner, labels, "square", eps=0.003, queries=200)
    torch.testing.assert_close(
        (longer.adversarial - inner).abs(), torch.full_like(inner, 0.003), rtol=0, atol=1e-6
    )
    first, last = (guard.margin(model(result.adversarial), labels) for result in (stripes, longer))
    assert (last <= first + 1e-6).all()
    assert last.mean() < first.mean()


@pytest.mark.parametrize("name", ["cw", "ddn"])
def test_a_norm_never_shrinks_by_more_than_half_at_a_step(name, model, images, labels) -> None:
    for gamma in (0.6, 1.0, 5.0):
        with pytest.raises(ValueError, match=r"gamma must be a number from 0 to 0\.5"):
            run(model, images, labels, name, gamma=gamma)

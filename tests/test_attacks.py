"""What holds for every attack: contract, bad input, per-image results."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustlib import attacks, models
from robustlib.attacks import TrainModeWarning, attack, info, names, registry, run
from robustlib.core.checks import UnknownNameError

LABELLED_WRONG = 4
FIXED = [name for name in names() if not info(name).minimal]
MINIMAL = [name for name in names() if info(name).minimal]
# small budgets: these tests are about the contract
FAST: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 5, "restarts": 2},
    "pgd_least_likely": {"steps": 5},
    "mi_fgsm": {"steps": 5},
    "cw": {"steps": 20},
    "ddn": {"steps": 20},
    "deepfool": {"steps": 10},
    "rays": {"queries": 60},
    "apgd_ce": {"steps": 10},
    "apgd_dlr": {"steps": 10},
    "square": {"queries": 40},
    "strong": {"steps": 10, "queries": 20},
}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Of fixed widths: the radii below suit it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.residual_network(3, 16, widths=(16, 48, 96)).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def labels(model: nn.Module, images: Tensor) -> Tensor:
    """The model's own predictions, except for four images that it gets wrong."""
    with torch.no_grad():
        predicted = model(images).argmax(1)
    predicted[:LABELLED_WRONG] = (predicted[:LABELLED_WRONG] + 1) % 3
    return predicted


def settings(name: str, eps: float = 0.02) -> dict[str, Any]:
    return {"eps": None if info(name).minimal else eps, **FAST.get(name, {})}


@pytest.mark.parametrize("name", names())
def test_results_agree_with_the_images_that_come_back(name, model, images, labels) -> None:
    result = run(model, images, labels, name, **settings(name))
    adversarial = result.adversarial
    assert adversarial.dtype == torch.float32
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    difference = (adversarial - images).flatten(1).double()
    order = math.inf if info(name).norm == "Linf" else 2
    norm = torch.linalg.vector_norm(difference, ord=order, dim=1)
    torch.testing.assert_close(result.norm.double(), norm, rtol=1e-5, atol=1e-7)
    assert result.clean_correct.tolist() == [False] * LABELLED_WRONG + [True] * 20
    right = model(adversarial).argmax(1) == labels
    assert (result.robust_correct != (right & result.clean_correct)).sum() <= 1, "rounding"
    assert torch.equal(adversarial[:LABELLED_WRONG], images[:LABELLED_WRONG])
    assert result.steps[:LABELLED_WRONG].eq(0).all()
    assert result.steps[LABELLED_WRONG:].ge(0).all()
    assert (~result.robust_correct & result.clean_correct).any(), "the attack beat nothing"
    assert torch.equal(attack(model, images, labels, name, **settings(name)), adversarial)


@pytest.mark.parametrize("name", FIXED)
def test_attacks_stay_in_the_ball_and_raise_the_loss(name, model, images, labels) -> None:
    result = run(model, images, labels, name, **settings(name))
    assert result.norm.max() <= 0.02 + 1e-6
    before = F.cross_entropy(model(images), labels, reduction="none")[LABELLED_WRONG:]
    after = F.cross_entropy(model(result.adversarial), labels, reduction="none")[LABELLED_WRONG:]
    assert after.mean() > before.mean()
    if name in ("fgsm", "pgd", "mi_fgsm", "apgd_ce"):
        assert (after > before).all()


@pytest.mark.parametrize("name", ["pgd", "mi_fgsm"])
def test_an_image_stops_once_it_is_beaten(name, model, images, labels) -> None:
    given = {**settings(name, 0.004), "steps": 12}
    stopped, full = (run(model, images, labels, name, **given, stop=s) for s in (True, False))
    assert not (stopped.robust_correct & ~full.robust_correct).any()
    assert full.steps[full.clean_correct].min() == 12
    early = stopped.steps < full.steps
    assert early.any()
    assert not stopped.robust_correct[early & full.clean_correct].any()
    same = (stopped.adversarial == full.adversarial).flatten(1).all(1)
    assert same[~early].all()
    loss = [
        F.cross_entropy(model(result.adversarial[early]), labels[early], reduction="none")
        for result in (stopped, full)
    ]
    assert (loss[1] > loss[0]).float().mean() > 0.8, "all steps raise it further"


@pytest.mark.parametrize("name", MINIMAL)
def test_a_radius_counts_only_smaller_perturbations(name, model, images, labels) -> None:
    free = run(model, images, labels, name, **settings(name))
    beaten = free.clean_correct & ~free.robust_correct
    eps = free.norm[beaten].median().item() * 1.0001
    bounded = run(model, images, labels, name, **{**settings(name), "eps": eps})
    assert torch.equal(bounded.robust_correct, free.correct_within(eps))
    assert 0 < bounded.robust_correct.sum() < bounded.clean_correct.sum()
    unchanged = (bounded.adversarial == images).flatten(1).all(1)
    assert torch.equal(unchanged, bounded.robust_correct | ~bounded.clean_correct)


@pytest.mark.parametrize("name", names())
def test_an_image_does_not_depend_on_its_batch(name, model, images, labels) -> None:
    ids = torch.arange(24) + 50
    options = {**settings(name), "seed": 4}
    whole = run(model, images, labels, name, ids=ids, **options)
    parts = [
        run(model, images[part], labels[part], name, ids=ids[part], **options)
        for part in (slice(0, 7), slice(7, 24))
    ]
    together = torch.cat([part.adversarial for part in parts])
    close = (whole.adversarial - together).abs() < 1e-4
    assert close.float().mean() > 0.98, "a gradient near zero may change its sign by rounding"
    robust = torch.cat([part.robust_correct for part in parts])
    assert (robust != whole.robust_correct).sum() <= 1


@pytest.mark.parametrize("name", names())
def test_the_batch_size_bounds_what_the_model_is_handed(name, model, images, labels) -> None:
    sizes: list[int] = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return model(x)

    eps = 0.02 if name == "rays" else 0.002
    options = {**settings(name), "eps": eps}
    whole = run(model, images, labels, name, **options)
    small = run(Counting().eval(), images, labels, name, **options, batch_size=5)
    few = 8  # to look the model over
    assert all(size <= few for size in sizes[:3])
    assert max(sizes[3:]) <= 5
    assert (small.robust_correct != whole.robust_correct).sum() <= 1, "rounding"
    assert ((small.steps - whole.steps) != 0).sum() <= 2, "rounding"
    close = (small.adversarial - whole.adversarial).abs() < 1e-4
    assert close.float().mean() > 0.95, "a gradient near zero may change its sign by rounding"


def test_waiting_images_fill_up_the_batch(model, images, labels) -> None:
    """Eight in hand: the model never sees fewer than five while others wait."""
    sizes: list[int] = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                sizes.append(len(x))
            return model(x)

    images, labels = images[LABELLED_WRONG:].repeat(4, 1, 1, 1), labels[LABELLED_WRONG:].repeat(4)
    given = {"eps": 0.002, "steps": 20, "restarts": 1}
    result = run(Counting().eval(), images, labels, "pgd", **given, batch_size=8)
    assert 0 < result.robust_correct.sum() < 80
    taken = sizes[1:]  # the first one looks for a gradient
    last = max(i for i, size in enumerate(taken) if size > 4)
    assert min(taken[:last]) >= 5
    assert sum(taken) == result.steps.sum() + (~result.robust_correct & (result.steps < 20)).sum()


@pytest.mark.parametrize("name", ["pgd", "apgd_ce", "apgd_dlr", "square", "strong"])
def test_another_seed_draws_otherwise(name, model, images, labels) -> None:
    first, second = (
        attack(model, images, labels, name, **settings(name), seed=seed) for seed in (0, 1)
    )
    moved = (first != images).flatten(1).any(1) & (second != images).flatten(1).any(1)
    assert ((first - second)[moved].abs() < 1e-6).float().mean() < 0.9


@pytest.mark.parametrize("name", names())
def test_the_model_is_left_as_it_was(name, model, images, labels) -> None:
    model.zero_grad(set_to_none=True)
    model[-1].bias.requires_grad_(False)
    buffers = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.warns(TrainModeWarning):
        run(model.train(), images[:8], labels[:8], name, **settings(name))
    assert model.training
    model.eval()
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model[-1].parameters()] == [True, False]
    assert all(torch.equal(buffers[key], value) for key, value in model.state_dict().items())
    model.requires_grad_(True)


@pytest.mark.parametrize("name", [name for name in names() if info(name).targets])
def test_targets_are_aimed_at(name, model, images, labels) -> None:
    targets = (labels + 1) % 3
    options = settings(name, eps=0.1)
    result = run(model, images, labels, name, targets=targets, **options)
    aimed = result.clean_correct & ~result.robust_correct
    assert aimed.sum() >= 10
    hit = model(result.adversarial).argmax(1) == targets
    assert hit[aimed].float().mean() > 0.9
    other = run(model, images, labels, name, targets=(labels + 2) % 3, **options)
    assert not torch.equal(result.adversarial, other.adversarial)


def test_steps_are_what_each_image_took(model, images, labels) -> None:
    def steps(name: str, **options: Any) -> Tensor:
        result = run(model, images, labels, name, **options)
        standing = result.robust_correct
        assert standing.any()
        beaten = result.clean_correct & ~standing
        assert beaten.any()
        return torch.stack([result.steps[standing].min(), result.steps[beaten].min()])

    small = {"eps": 0.001}
    assert steps("fgsm", **small).tolist() == [1, 1]
    full, least = steps("pgd", steps=4, restarts=3, **small).tolist()
    assert full == 12
    assert least < 4
    full, least = steps("mi_fgsm", steps=6, **small).tolist()
    assert full == 6
    assert least < 6
    assert steps("mi_fgsm", steps=6, stop=False, **small).tolist() == [6, 6]
    full, least = steps("apgd_ce", steps=9, **small).tolist()
    assert full == 9
    assert least < 9
    full, least = steps("square", eps=0.01, queries=60).tolist()
    assert full == 60
    assert least < 60
    assert run(model, images, labels, "rays", queries=60).steps.max() <= 60


def test_restarts_only_help_the_attacker(model, images, labels) -> None:
    once, often = (
        run(model, images, labels, "pgd", eps=0.001, steps=3, restarts=restarts).robust_correct
        for restarts in (1, 5)
    )
    assert not (often & ~once).any()


def test_strong_is_the_worst_case_of_its_parts(model, images, labels) -> None:
    strong = run(model, images, labels, "strong", eps=0.002, steps=10, queries=30)
    parts = [
        run(model, images, labels, name, eps=0.002, **options).robust_correct
        for name, options in [
            ("apgd_ce", {"steps": 10}),
            ("apgd_dlr", {"steps": 10}),
            ("square", {"queries": 30}),
        ]
    ]
    worst = torch.stack(parts).all(0)
    assert 0 < worst.sum() < 20
    assert (strong.robust_correct != worst).sum() <= 1, "rounding"


def test_nothing_to_attack(model, images, labels) -> None:
    empty = run(model, images[:0], labels[:0], "pgd", eps=0.1)
    assert empty.adversarial.shape == (0, 3, 16, 16)
    wrong = run(model, images[:LABELLED_WRONG], labels[:LABELLED_WRONG], "strong", eps=0.1)
    assert torch.equal(wrong.adversarial, images[:LABELLED_WRONG])
    assert not wrong.clean_correct.any()


def test_an_attack_that_leaves_the_ball_is_reported(model, images, labels, monkeypatch) -> None:
    def astray(task: registry.Task) -> tuple[Tensor, Tensor]:
        return (task.images + 0.2).clamp(0, 1), registry.counted(task, 1)

    broken = dataclasses.replace(info("fgsm"), function=astray)
    monkeypatch.setitem(registry.REGISTRY, "fgsm", broken)
    with pytest.raises(AssertionError, match="'fgsm' returned"):
        run(model, images, labels, "fgsm", eps=0.1)


def test_names_and_overview() -> None:
    assert set(names()) == set(registry.REGISTRY)
    assert len(names()) == 12
    assert names("five") == attacks.FIVE
    assert set(names("strong")) < set(names())
    table = attacks.overview()
    assert tuple(table.index) == names()
    assert table.loc["cw", "norm"] == "L2"
    assert table.loc["pgd", "options"] == "steps=20, restarts=3, stop=True"
    assert not table.loc["deepfool", "targets"]
    with pytest.raises(UnknownNameError, match="'five'"):
        names("fiv")


def test_bad_arguments(model, images, labels) -> None:
    def refuse(match: str, *, name: str = "pgd", error: type = ValueError, **given: Any) -> None:
        arguments = {"model": model, "images": images, "labels": labels, "eps": 0.1, **given}
        with pytest.raises(error, match=match):
            run(name=name, **arguments)

    refuse("'pgd'", name="pdg", error=UnknownNameError)
    for eps in (0.0, -0.1, 8.0, float("nan"), True):
        refuse("above 0, at most 0.5 ", eps=eps)
        refuse("above 0, at most 13.8", name="ddn", eps=eps if eps != 8.0 else 14.0)
        # 0.5 sqrt(768) is 13.86
    refuse("eps of 'pgd' must be a number", eps=None)
    refuse("steps must be", steps=0)
    refuse("steps must be", steps=2.5)
    refuse("momentum", name="mi_fgsm", momentum=float("nan"))
    refuse("'restarts'", restart=2, error=UnknownNameError)
    refuse("no options", name="fgsm", steps=3)
    refuse(r"\[0, 1\]", images=images * 255)
    refuse("the model has 3 outputs, but the labels go up to 5", labels=labels + 3)
    refuse("ids must be int64", ids=torch.arange(3))
    refuse(r"\(8, classes\)", model=nn.Identity().eval())
    refuse(r"\(8, classes\)", model=nn.Flatten(0).eval())
    refuse(r"targets must lie in 0 \.\. 2", targets=labels + 3)
    refuse("targets must not be negative", targets=labels - 3)
    refuse("targets must differ", targets=labels)
    refuse("seed must be an integer", seed=0.5)
    refuse("labels must be int64", labels=labels.float())
    refuse("targets must be int64", targets=torch.zeros(3, dtype=torch.int64))
    for name in ("deepfool", "square", "rays", "strong", "pgd_least_likely", "apgd_ce"):
        given = {"eps": None} if info(name).minimal else {}
        refuse("can't aim at targets", name=name, targets=(labels + 1) % 3, **given)

"""The batch losses against the formulas, by hand and by their limiting cases."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustlib import corruptions, models
from robustlib.checks import UnknownNameError
from robustlib.recipes import (
    FGSM,
    MTLAT,
    TLAT,
    Augmented,
    Batch,
    Mixup,
    Recipe,
    Standard,
    mix,
    targeted_labeling_example,
    uniform_radii,
)

ALL = [
    Standard(),
    Augmented(("gaussian_noise",)),
    Augmented(("gaussian_noise", "contrast", "rotation")),
    Mixup(),
    FGSM(),
    TLAT(),
    MTLAT(),
]


def make_batch(count: int = 8, seed: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.rand(count, 3, 16, 16, generator=generator),
        labels=torch.arange(count) % 3,
        ids=torch.arange(count) + 100,
        classes=3,
        seed=seed,
    )


def make_model() -> nn.Module:
    return models.build("small_resnet", classes=3, image_size=16, seed=0).train()


def loss_and_gradients(recipe: Recipe, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    model = make_model()
    loss = recipe.loss(model, batch)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_losses_are_deterministic_and_reach_every_parameter(recipe: Recipe) -> None:
    first, gradients = loss_and_gradients(recipe, make_batch())
    second, again = loss_and_gradients(recipe, make_batch())
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))
    assert all(g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_a_batch_is_not_modified(recipe: Recipe) -> None:
    batch = make_batch()
    before = batch.images.clone()
    recipe.loss(make_model(), batch)
    assert torch.equal(batch.images, before)
    assert not batch.images.requires_grad


def test_standard_is_the_mean_negative_log_likelihood() -> None:
    batch = make_batch()
    model = make_model()
    expected = F.nll_loss(F.log_softmax(model(batch.images), dim=1), batch.labels)
    torch.testing.assert_close(Standard().loss(make_model(), batch), expected)


@pytest.mark.parametrize(
    ("adversarial", "plain"),
    [
        (TLAT(eps=0, label_weight=0), Standard()),
        (MTLAT(alpha=0.4, eps=0, label_weight=0), Mixup(alpha=0.4)),
        (FGSM(eps=0), Standard()),
    ],
    ids=["tlat", "mtlat", "fgsm"],
)
def test_radius_zero_and_weight_zero_leave_the_plain_recipe(
    adversarial: Recipe, plain: Recipe
) -> None:
    loss, gradients = loss_and_gradients(adversarial, make_batch())
    expected, expected_gradients = loss_and_gradients(plain, make_batch())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("eps", [0.0, 0.03, 0.5])
def test_adversarial_examples_stay_in_the_ball_and_leave_no_gradient(eps: float) -> None:
    batch, model = make_batch(), make_model()
    adversarial, labels, logits = targeted_labeling_example(
        model, batch.images, batch.one_hot(), eps=eps, label_weight=0.3, seed=7
    )
    assert all(p.grad is None for p in model.parameters())
    assert (adversarial - batch.images).abs().max() <= eps + 1e-7
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert not adversarial.requires_grad
    assert logits.requires_grad
    torch.testing.assert_close(labels.sum(1), torch.ones(len(labels)))


def test_targeted_labeling_by_hand_on_a_linear_model() -> None:
    """Two classes, three pixels: a step toward class t follows the sign of w_t - w_other."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[2.0, -1.0, 0.0], [-1.0, 3.0, 0.0]]))
    images = torch.full((6, 3, 1, 1), 0.5)
    targets = F.one_hot(torch.tensor([0, 1, 0, 1, 0, 1]), 2).float()
    adversarial, labels, _ = targeted_labeling_example(
        model, images, targets, eps=0.1, label_weight=0.25, seed=11
    )
    radius = uniform_radii(6, 0.1, 11, images.device).flatten()
    drawn = ((labels - 0.75 * targets) / 0.25).round().argmax(1)
    assert set(drawn.tolist()) == {0, 1}
    for i, target in enumerate(drawn.tolist()):
        toward = torch.tensor([1.0, -1.0, 0.0]) * (1 if target == 0 else -1)
        expected = 0.5 + radius[i] * toward
        torch.testing.assert_close(adversarial[i].flatten(), expected)
        expected_label = 0.75 * targets[i]
        expected_label[target] += 0.25
        torch.testing.assert_close(labels[i], expected_label)


def test_tlat_loss_from_its_parts() -> None:
    batch = make_batch()
    model = make_model().eval()
    recipe = TLAT(eps=0.05, label_weight=0.4)
    adversarial, labels, logits = targeted_labeling_example(
        model, batch.images, batch.one_hot(), eps=0.05, label_weight=0.4, seed=batch.seed
    )
    clean = -(batch.one_hot() * logits.log_softmax(1)).sum(1).mean()
    attacked = -(labels * model(adversarial).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(recipe.loss(model, batch), (clean + attacked) / 2)


def test_targeted_step_raises_the_targets_probability() -> None:
    batch = make_batch(32)
    model = make_model().eval()
    adversarial, labels, logits = targeted_labeling_example(
        model, batch.images, torch.zeros(32, 3), eps=0.05, label_weight=1.0, seed=1
    )
    target = labels.argmax(1, keepdim=True)
    before = logits.log_softmax(1).gather(1, target)
    after = model(adversarial).log_softmax(1).gather(1, target)
    assert (after > before).float().mean() > 0.9


def test_mixup_mixes_images_and_labels_with_the_same_weight() -> None:
    """With the label written into the pixels, the mixed pixels must equal the mixed label."""
    labels = torch.arange(64) % 3
    images = F.one_hot(labels, 3).float()[:, :, None, None].expand(64, 3, 2, 2).contiguous()
    mixed, targets = mix(Batch(images, labels, labels, 3, seed=5), alpha=1.0)
    torch.testing.assert_close(mixed.mean((2, 3)), targets)
    torch.testing.assert_close(targets.sum(1), torch.ones(64))
    assert (targets.max(1).values < 1).any()
    assert len(targets.max(1).values.unique()) <= 3, "one weight for the whole batch"


def test_half_of_an_augmented_batch_is_perturbed() -> None:
    batch = make_batch()
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return images.mean((2, 3)) * torch.ones(3, requires_grad=True)

    Augmented(("contrast",)).loss(Spy(), batch)
    expected = corruptions.augment(
        batch.images[:4], ("contrast",), seed=batch.seed, ids=batch.ids[:4]
    )
    assert torch.equal(seen[0], torch.cat([expected, batch.images[4:]]))


def test_fgsm_attacks_half_of_the_batch_uphill() -> None:
    batch = make_batch()
    model = make_model().eval()
    plain = F.cross_entropy(model(batch.images), batch.labels)
    before = copy.deepcopy(model.state_dict())
    assert FGSM(eps=0.05).loss(model, batch) > plain
    torch.testing.assert_close(model.state_dict(), before)


def test_radii_are_uniform_on_the_interval() -> None:
    radii = uniform_radii(20_000, 0.04, 0, torch.device("cpu")).flatten()
    assert radii.min() >= 0
    assert radii.max() <= 0.04
    torch.testing.assert_close(radii.mean(), torch.tensor(0.02), atol=3e-4, rtol=0)
    torch.testing.assert_close(radii.std(), torch.tensor(0.04 / 12**0.5), atol=3e-4, rtol=0)


def test_names() -> None:
    assert Augmented(("fog",)).name == "fog"
    assert Augmented(("fog", "snow")).name == "augmented"
    assert Augmented(("fog", "snow"), name="weather").name == "weather"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Mixup(alpha=0), "positive"),
        (lambda: FGSM(eps=-0.1), r"\[0, 0.5\]"),
        (lambda: TLAT(eps=8), r"8/255"),
        (lambda: MTLAT(label_weight=1.5), r"label_weight must lie in \[0, 1\]"),
        (lambda: Augmented(()), "empty"),
        (lambda: Augmented(("fog", "fog")), "repeats"),
    ],
)
def test_bad_hyperparameters(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


def test_unknown_corruption() -> None:
    with pytest.raises(UnknownNameError, match="contrast"):
        Augmented(("contarst",))

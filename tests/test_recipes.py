"""The batch losses against the formulas, by hand and by their limiting cases."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

from robustlib import corruptions, models
from robustlib.core.checks import UnknownNameError
from robustlib.recipes import (
    FGSM,
    MTLAT,
    PGD,
    RECIPES,
    TLAT,
    Augmented,
    AugMix,
    Batch,
    LabelSmoothing,
    Mixup,
    Recipe,
    Standard,
    build,
    mix,
    radii,
    targeted_labeling_example,
)
from robustlib.recipes.augmix import OPERATIONS, jensen_shannon

ALL = [
    Standard(),
    Augmented(("gaussian_noise",)),
    Augmented(("gaussian_noise", "contrast", "rotation")),
    Mixup(),
    LabelSmoothing(),
    FGSM(),
    FGSM(eps=0.1, radius="fixed", share=1, batch_norm="eval", name="fgsm, fixed"),
    PGD(steps=2),
    PGD(steps=2, radius="batch", share=0.5, batch_norm="train", name="pgd, half"),
    TLAT(),
    TLAT(
        radius="batch",
        target="least_likely",
        label_weight="radius",
        loss_weights=(0.3, 0.7),
        batch_norm="eval",
        name="tlat, least likely",
    ),
    MTLAT(),
    MTLAT(corruptions="noc", name="mtlat, augmented"),
    AugMix(),
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
    loss, logits = recipe.loss(model, batch)
    assert logits.shape == (len(batch.images), batch.classes)
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
    torch.testing.assert_close(Standard().loss(make_model(), batch)[0], expected)


@pytest.mark.parametrize(
    ("adversarial", "plain"),
    [
        (TLAT(eps=0, label_weight=0), Standard()),
        (MTLAT(alpha=0.4, eps=0, label_weight=0), Mixup(alpha=0.4)),
        (FGSM(eps=0), Standard()),
        (FGSM(share=0), Standard()),
        (PGD(eps=0, steps=2), Standard()),
        (TLAT(eps=0, label_weight="radius", target="least_likely"), Standard()),
        (TLAT(eps=0, label_weight=0, batch_norm="eval"), Standard()),
        (TLAT(loss_weights=(1, 0)), Standard()),
        (LabelSmoothing(smoothing=0), Standard()),
    ],
    ids=lambda recipe: repr(recipe),
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
    radius = radii(6, 0.1, "image", 11, images.device).flatten()
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
    torch.testing.assert_close(recipe.loss(model, batch)[0], (clean + attacked) / 2)


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

    class Recorder(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return images.mean((2, 3)) * torch.ones(3, requires_grad=True)

    Augmented(("contrast",)).loss(Recorder(), batch)
    expected = corruptions.augment(
        batch.images[:4], ("contrast",), seed=batch.seed, ids=batch.ids[:4]
    )
    assert torch.equal(seen[0], torch.cat([expected, batch.images[4:]]))


def test_fgsm_attacks_half_of_the_batch_uphill() -> None:
    batch = make_batch()
    model = make_model().eval()
    plain = F.cross_entropy(model(batch.images), batch.labels)
    before = copy.deepcopy(model.state_dict())
    assert FGSM(eps=0.05).loss(model, batch)[0] > plain
    torch.testing.assert_close(model.state_dict(), before)


def test_radii() -> None:
    cpu = torch.device("cpu")
    each = radii(20_000, 0.04, "image", 0, cpu).flatten()
    assert each.min() >= 0
    assert each.max() <= 0.04
    torch.testing.assert_close(each.mean(), torch.tensor(0.02), atol=3e-4, rtol=0)
    torch.testing.assert_close(each.std(), torch.tensor(0.04 / 12**0.5), atol=3e-4, rtol=0)
    fixed = radii(3, 0.04, "fixed", 0, cpu)
    assert torch.equal(fixed, torch.full((3, 1, 1, 1), 0.04))
    batches = torch.stack([radii(3, 0.04, "batch", seed, cpu).flatten() for seed in range(2000)])
    assert torch.equal(batches[:, :1].expand(-1, 3), batches)
    torch.testing.assert_close(batches[:, 0].mean(), torch.tensor(0.02), atol=1e-3, rtol=0)


class Spy(nn.Module):
    """Hands on to a model and keeps the images and the mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[tuple[Tensor, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append((images.detach().clone(), self.model.training))
        return self.model(images)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("recipe", [FGSM(share=1), PGD(steps=2), TLAT(), MTLAT()], ids=repr)
def test_the_attack_leaves_no_gradient_and_the_mode_as_it_was(recipe: Recipe, mode: str) -> None:
    """And in eval mode it moves no running statistics, so they see the trained images only."""
    recipe = replace(recipe, batch_norm=mode)
    spy = Spy(make_model())
    recipe.loss(spy, make_batch())
    assert all(p.grad is None for p in spy.parameters())
    assert all(module.training for module in spy.modules())
    trained = [images for images, training in spy.seen if training]
    assert len(trained) < len(spy.seen) if mode == "eval" else len(trained) == len(spy.seen)
    if mode == "eval":
        plain = make_model()
        for images in trained:
            plain(images)
        torch.testing.assert_close(dict(spy.model.named_buffers()), dict(plain.named_buffers()))


@pytest.mark.parametrize("recipe", [PGD(eps=0.05, steps=3), PGD(eps=0.4, radius="image")], ids=repr)
def test_pgd_stays_in_the_ball_of_each_image_and_climbs(recipe: PGD) -> None:
    batch, model = make_batch(), make_model().eval()
    attacked = recipe.attack(model, batch, 8)
    r = radii(8, recipe.eps, recipe.radius, batch.seed, attacked.device)
    assert ((attacked - batch.images).abs() <= r + 1e-6).all()
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    before = F.cross_entropy(model(batch.images), batch.labels)
    assert F.cross_entropy(model(attacked), batch.labels) > before


def test_pgd_by_hand_on_a_linear_model() -> None:
    """Steps of 2.5 r / 2 > r end in the corner of the ball that the gradient points to."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[2.0, -1.0, 1.0], [-1.0, 3.0, 0.0]]))
    labels = torch.tensor([0, 1])
    batch = Batch(torch.full((2, 3, 1, 1), 0.5), labels, labels, 2, seed=1)
    attacked = PGD(eps=0.1, steps=2).attack(model, batch, 2)
    expected = torch.tensor([[0.4, 0.6, 0.4], [0.6, 0.4, 0.6]])
    torch.testing.assert_close(attacked.flatten(1), expected)


def test_least_likely_target_and_label_weight_tied_to_the_radius() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(3))
    images = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.3, 0.8]]).view(2, 3, 1, 1)
    targets = torch.eye(3)[[0, 2]]
    _, labels, _ = targeted_labeling_example(
        model,
        images,
        targets,
        eps=0.1,
        radius="fixed",
        target="least_likely",
        label_weight="radius",
        seed=0,
    )
    torch.testing.assert_close(labels, torch.tensor([[0.9, 0, 0.1], [0.1, 0, 0.9]]))
    torch.testing.assert_close(labels.sum(1), torch.ones(2))


def test_label_smoothing_by_hand() -> None:
    """Logits (0, 0, log 2) give probabilities 1/4, 1/4, 1/2."""
    logits = torch.tensor([[0.0, 0.0, math.log(2)]]).expand(2, 3)
    labels = torch.tensor([2, 0])
    batch = Batch(torch.zeros(2, 3, 1, 1), labels, labels, 3, seed=0)
    loss, _ = LabelSmoothing(smoothing=0.3).loss(lambda images: logits, batch)  # type: ignore[arg-type]
    first = 0.8 * math.log(2) + 0.2 * math.log(4)
    second = 0.9 * math.log(4) + 0.1 * math.log(2)
    assert loss.item() == pytest.approx((first + second) / 2)


def test_jensen_shannon_by_hand() -> None:
    """Two opposite certainties and their middle: (ln 2 + ln 2 + 0) / 3; equal ones: 0."""
    sure = torch.tensor([[50.0, -50.0]])
    opposite = jensen_shannon((sure, -sure, torch.zeros(1, 2)))
    assert opposite.item() == pytest.approx(2 * math.log(2) / 3, rel=1e-5)
    assert jensen_shannon((sure, sure, sure)).item() == pytest.approx(0, abs=1e-6)


def test_augmix_of_equal_images_has_the_standard_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AugMix, "mixture", lambda self, images, rng: images)
    batch, model = make_batch(), make_model().eval()
    loss, logits = AugMix().loss(model, batch)
    expected, expected_logits = Standard().loss(model, batch)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits, expected_logits)


def test_augmix_mixtures_stay_in_range_and_differ_by_image_and_seed() -> None:
    images = make_batch(2).images[:1].repeat(16, 1, 1, 1)
    first, second = (AugMix().mixture(images, np.random.default_rng(seed)) for seed in range(2))
    for mixture in (first, second):
        assert mixture.min() >= 0
        assert mixture.max() <= 1
        assert len(mixture.unique(dim=0)) > 12
    assert not torch.equal(first, second)


PIL_OPERATIONS = {
    "autocontrast": lambda image: ImageOps.autocontrast(image),
    "equalize": lambda image: ImageOps.equalize(image),
    "posterize": lambda image: ImageOps.posterize(image, 3),
    "solarize": lambda image: ImageOps.solarize(image, 179),
    "rotate": lambda image: image.rotate(9, Image.Resampling.BILINEAR),
}


@pytest.mark.parametrize("name", PIL_OPERATIONS)
def test_augmix_operations_are_those_of_pil(name: str) -> None:
    """Level 0.3 of posterize keeps 3 bits, of solarize inverts above 0.7, of rotate is 9 degrees.

    PIL turns the other way, and cuts its weights off differently at the border, left out here.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    image = F.interpolate(coarse, size=(32, 32), mode="bilinear")[0].mul(200).round().byte()
    pil = Image.fromarray(image.permute(1, 2, 0).numpy())
    expected = torch.from_numpy(np.asarray(PIL_OPERATIONS[name](pil)).copy()).permute(2, 0, 1)
    pixels = image[None].float() / 255
    result = OPERATIONS[name](pixels, torch.tensor([0.3]), torch.tensor([-1.0]))[0] * 255
    difference = (result - expected)[:, 8:-8, 8:-8].abs()
    assert difference.max() <= (4.0 if name == "rotate" else 1.01)
    assert (expected - image.float())[:, 8:-8, 8:-8].abs().max() > 8


@pytest.mark.parametrize(
    ("name", "axis", "moved"),
    [("translate_x", 2, 1.6), ("translate_y", 1, 1.6), ("shear_x", 2, 0), ("shear_y", 1, 0)],
)
def test_augmix_moves_along_one_axis(name: str, axis: int, moved: float) -> None:
    """A ramp along the axis changes by the shift times its slope, a ramp across it not at all."""
    ramp = torch.arange(16.0) / 16
    along = ramp.view(1, 1, -1, 1) if axis == 1 else ramp.view(1, 1, 1, -1)
    level, sign = torch.tensor([0.3]), torch.tensor([1.0])
    images = along.expand(1, 3, 16, 16).contiguous()
    middle = (slice(None), slice(None), slice(5, -5), slice(5, -5))
    change = (OPERATIONS[name](images, level, sign) - images)[middle]
    torch.testing.assert_close(change.mean(), torch.tensor(moved / 16), atol=1e-5, rtol=0)
    assert change.abs().max() > 0.001
    across = images.mT.contiguous()
    torch.testing.assert_close(OPERATIONS[name](across, level, sign)[middle], across[middle])


def test_mtlat_with_corruptions_mixes_a_half_perturbed_batch() -> None:
    batch = make_batch()
    spy = Spy(make_model())
    MTLAT(corruptions=("contrast",)).loss(spy, batch)
    perturbed = corruptions.augment(
        batch.images[:4], ("contrast",), seed=batch.seed, ids=batch.ids[:4]
    )
    images = torch.cat([perturbed, batch.images[4:]])
    expected, _ = mix(replace(batch, images=images), alpha=0.2)
    assert torch.equal(spy.seen[0][0], expected)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_by_name(name: str) -> None:
    options = {"corruptions": "noc"} if name == "augmented" else {}
    assert type(build(name, **options)).__name__.lower() == name.replace("_", "")
    assert build(name, **options, name="other").name == "other"


def test_unknown_recipes_and_hyperparameters() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown recipe 'm-tlat'.*'mtlat'"):
        build("m-tlat")
    with pytest.raises(UnknownNameError, match=r"hyperparameter of 'mtlat' 'alpa'.*'alpha'"):
        build("mtlat", alpa=0.2)
    with pytest.raises(ValueError, match="empty"):
        build("augmented")
    assert build("mtlat", alpha=0.4) == MTLAT(alpha=0.4)


def test_names() -> None:
    assert Augmented(("fog",)).name == "fog"
    assert Augmented(("fog", "snow")).name == "augmented"
    assert Augmented(("fog", "snow"), name="weather").name == "weather"
    assert Augmented("noc").name == "noc"
    assert Augmented("noc").corruptions == corruptions.names("noc")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Mixup(alpha=0), "alpha must be a number above 0"),
        (lambda: FGSM(eps=-0.1), "eps must be a number from 0 to 0.5"),
        (lambda: TLAT(eps=8), r"8/255"),
        (lambda: MTLAT(label_weight=1.5), "label_weight.*must be a number from 0 to 1"),
        (lambda: FGSM(eps=float("nan")), "eps must be a number from 0 to 0.5"),
        (lambda: FGSM(share=1.5), "share must be a number from 0 to 1"),
        (lambda: FGSM(radius="random"), "unknown radius"),
        (lambda: FGSM(eps="8/x"), "eps must be a number"),
        (lambda: PGD(steps=0), "steps must be an integer of at least 1"),
        (lambda: PGD(batch_norm="off"), "unknown batch_norm"),
        (lambda: TLAT(target="random"), "unknown target"),
        (lambda: TLAT(label_weight="eps"), 'label_weight, if not "radius"'),
        (lambda: TLAT(loss_weights=(0, 0)), "not both 0"),
        (lambda: TLAT(loss_weights=(1, -1)), "not both 0|loss weight"),
        (lambda: MTLAT(alpha=float("inf")), "alpha must be a number"),
        (lambda: MTLAT(corruptions=("fgo",)), "fog"),
        (lambda: LabelSmoothing(smoothing=-0.1), "smoothing must be a number from 0 to 1"),
        (lambda: AugMix(severity=11), "severity must be a number from 0.1 to 10"),
        (lambda: AugMix(width=0), "width must be an integer"),
        (lambda: Augmented("weather"), "unknown suite"),
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


def test_hyperparameters_of_other_types_become_plain_numbers() -> None:
    recipe = MTLAT(eps="8/255", alpha=np.float32(0.5), label_weight="1/5")
    assert (recipe.eps, recipe.alpha, recipe.label_weight) == (8 / 255, 0.5, 0.2)
    assert recipe == MTLAT(eps=8 / 255, alpha=0.5, label_weight=0.2)
    assert type(PGD(steps=np.int64(3)).steps) is type(PGD(steps=3.0).steps) is int


def test_pixels_of_augmix_are_float32_under_autocast() -> None:
    images = torch.rand(6, 3, 16, 16)
    plain = AugMix().mixture(images, np.random.default_rng(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = AugMix().mixture(images, np.random.default_rng(0))
    assert torch.equal(mixed, plain)

"""Recipes with an attack in each training step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustlib.core.checks import check_name, check_number, check_whole, settle
from robustlib.core.devices import sent
from robustlib.core.randomness import Stream
from robustlib.recipes.base import (
    Batch,
    checked_corruptions,
    perturb_half,
    soft_cross_entropy,
)
from robustlib.recipes.plain import mix

RADII = ("image", "batch", "fixed")
TARGETS = ("uniform", "least_likely")
MODES = ("train", "eval")


@dataclass(frozen=True, kw_only=True)
class FGSM:
    """Single-step adversarial training (Goodfellow et al. 2015): part of each batch is attacked.

    Half of the batch by default, as in `Augmented`, and radii drawn as in `TLAT`, so that the two
    differ in the target only (this project's choices).

    Attributes:
        eps: largest Linf radius in [0, 1] pixel units, 0 to 0.5 (this project's choice).
        radius: how each image's radius r comes from eps: "image", uniform on [0, eps] for each
            image; "batch", one such draw for the batch; "fixed", r = eps.
        share: part of the batch that is attacked, 0 to 1.
        batch_norm: mode of the network during the attack, "train" or "eval".
    """

    eps: float = 0.03
    radius: str = "image"
    share: float = 0.5
    batch_norm: str = "train"
    name: str = "fgsm"

    def __post_init__(self) -> None:
        settle(
            self,
            eps=_checked_eps(self.eps, self.radius, self.batch_norm),
            share=check_number(self.share, "share", low=0, high=1),
        )

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """L(x', y), where the first part of x' is adversarial."""
        count = int(self.share * len(batch.images))
        images = batch.images
        if count:
            images = torch.cat([self.attack(model, batch, count), images[count:]])
        logits = model(images)
        return soft_cross_entropy(logits, batch.one_hot()), logits

    def attack(self, model: nn.Module, batch: Batch, count: int) -> Tensor:
        """clip(x + r sign(grad_x L(x, y))) for the first `count` images."""
        clean = batch.images[:count].clone().requires_grad_()
        with batch_norm_mode(model, self.batch_norm):
            direction = _gradient_sign(model(clean), batch.one_hot()[:count], clean)
        r = radii(count, self.eps, self.radius, batch.seed, clean.device)
        return torch.addcmul(clean.detach(), r, direction).clamp_(0, 1)


@dataclass(frozen=True, kw_only=True)
class PGD(FGSM):
    """Adversarial training by projected gradient descent (Madry et al. 2018).

    The whole batch is attacked, from a random start in the ball, with steps of 2.5 r / steps.

    Attributes:
        eps: as in `FGSM`; 8/255 is that paper's radius for CIFAR-10.
        steps: gradient steps, 1 or more; that paper takes 7 of size 2/255.
        radius: as in `FGSM`; fixed in that paper.
        share: as in `FGSM`.
        batch_norm: as in `FGSM`; "eval" is this project's choice, which keeps the images of the
            intermediate steps out of the running statistics.
    """

    eps: float = 8 / 255
    steps: int = 7
    radius: str = "fixed"
    share: float = 1.0
    batch_norm: str = "eval"
    name: str = "pgd"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, steps=check_whole(self.steps, "steps", low=1))

    def attack(self, model: nn.Module, batch: Batch, count: int) -> Tensor:
        """x <- project(x + 2.5 r / steps sign(grad_x L(x, y))), for the first `count` images."""
        clean, targets = batch.images[:count], batch.one_hot()[:count]
        r = radii(count, self.eps, self.radius, batch.seed, clean.device)
        noise = Stream(batch.seed, batch.ids[:count], "pgd").uniform(clean.shape[1:], -1.0, 1.0)
        attacked = (clean + r * noise).clamp(0, 1)
        with batch_norm_mode(model, self.batch_norm):
            for _ in range(self.steps):
                attacked.requires_grad_()
                direction = _gradient_sign(model(attacked), targets, attacked)
                attacked = attacked.detach() + (2.5 / self.steps) * r * direction
                attacked = torch.clamp(attacked, clean - r, clean + r).clamp(0, 1)
        return attacked


@dataclass(frozen=True, kw_only=True)
class TLAT:
    """Targeted Labeling Adversarial Training, the half of M-TLAT without Mixup.

    Laugros et al. 2020. A target class t for each image, one targeted step

        x' = clip(x - r sign(grad_x L(x, t))),    y' = (1 - w) y + w t,

    and the weighted sum of the losses L(x, y) and L(x', y').

    Attributes:
        eps: largest Linf radius in [0, 1] pixel units, 0 to 0.5.
        radius: how each image's radius r comes from eps: "image", uniform on [0, eps] for each
            image; "batch", one such draw for the batch; "fixed", r = eps. (Recalled as drawn, for
            each image or batch: "image" is this project's choice.)
        target: "uniform" over all classes, or "least_likely" for the model.
        label_weight: w, weight of the target class in the adversarial label: "radius" for w = r,
            image by image, or one number for all, 0 to 1. Which of the two the paper means isn't
            confirmed; a survey prints one symbol for both, so "radius" is the likelier reading.
        loss_weights: of L(x, y) and of L(x', y'), not negative (equal: this project's choice).
        batch_norm: mode of the network during the attack. "train" shares one forward pass between
            the attack and L(x, y); "eval" needs another.
    """

    eps: float = 0.03
    radius: str = "image"
    target: str = "uniform"
    label_weight: float | str = "radius"
    loss_weights: tuple[float, float] = (0.5, 0.5)
    batch_norm: str = "train"
    name: str = "tlat"

    def __post_init__(self) -> None:
        check_name(self.target, TARGETS, "target")
        weights = tuple(check_number(x, "a loss weight", low=0) for x in self.loss_weights)
        if len(weights) != 2 or not sum(weights) > 0:
            raise ValueError(
                f"loss_weights must be two numbers, not both 0, got {self.loss_weights!r}."
            )
        settle(
            self,
            eps=_checked_eps(self.eps, self.radius, self.batch_norm),
            label_weight=_checked_label_weight(self.label_weight),
            loss_weights=weights,
        )

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """a L(x, y) + b L(x', y')."""
        return self.targeted_labeling_loss(model, batch.images, batch.one_hot(), batch.seed)

    def targeted_labeling_loss(
        self, model: nn.Module, images: Tensor, targets: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        """The loss on images (N, 3, H, W) with label vectors (N, classes), and their logits."""
        adversarial, labels, logits = targeted_labeling_example(
            model,
            images,
            targets,
            eps=self.eps,
            radius=self.radius,
            target=self.target,
            label_weight=self.label_weight,
            batch_norm=self.batch_norm,
            seed=seed,
        )
        clean_weight, adversarial_weight = self.loss_weights
        clean_loss = soft_cross_entropy(logits, targets)
        adversarial_loss = soft_cross_entropy(model(adversarial), labels)
        return clean_weight * clean_loss + adversarial_weight * adversarial_loss, logits


@dataclass(frozen=True, kw_only=True)
class MTLAT(TLAT):
    """M-TLAT: `TLAT` applied to the pairs (x~, y~) of `Mixup` (Laugros et al. 2020).

    Attributes:
        alpha: as in `Mixup` (recalled as 0.2 to 0.4: this project's choice).
        corruptions: perturb half of the batch before it is mixed, as in `Augmented`: names, a
            suite such as "noc", or () for none. The paper combines M-TLAT with augmentation; how
            is this project's choice.

    The others as in `TLAT`.
    """

    alpha: float = 0.2
    corruptions: tuple[str, ...] | str = ()
    name: str = "mtlat"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, alpha=check_number(self.alpha, "alpha", low=0, above=True))
        if self.corruptions:
            settle(self, corruptions=checked_corruptions(self.corruptions))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """a L(x~, y~) + b L(x', y')."""
        if self.corruptions:
            batch = replace(batch, images=perturb_half(batch.images, batch, self.corruptions))
        images, targets = mix(batch, alpha=self.alpha)
        return self.targeted_labeling_loss(model, images, targets, batch.seed)


def targeted_labeling_example(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    eps: float,
    label_weight: float | str,
    seed: int,
    radius: str = "image",
    target: str = "uniform",
    batch_norm: str = "train",
) -> tuple[Tensor, Tensor, Tensor]:
    """The adversarial images and labels of TLAT.

    Args:
        model: maps images to logits (N, classes).
        images: float32 (N, 3, H, W) in [0, 1].
        targets: their label vectors, float32 (N, classes).
        eps, radius, target, label_weight, batch_norm: as in `TLAT`.
        seed: source of the target classes and radii.

    Returns:
        adversarial images (N, 3, H, W) in [0, 1] without gradient, their label vectors
        (N, classes), and the model's logits on `images` with gradient, for reuse. The parameters'
        gradients are untouched.
    """
    count, classes = targets.shape
    images = images.detach().requires_grad_()
    logits = attacked = model(images)
    if batch_norm == "eval":
        with batch_norm_mode(model, batch_norm):
            attacked = model(images)
    if target == "uniform":
        drawn = np.random.default_rng([seed, 1]).integers(classes, size=count)
        goals = sent(torch.from_numpy(drawn), images.device)
    else:
        goals = attacked.detach().argmin(1)
    goal_labels = F.one_hot(goals, classes).to(targets.dtype)
    direction = _gradient_sign(attacked, goal_labels, images, retain_graph=attacked is logits)
    r = radii(count, eps, radius, seed, images.device)
    adversarial = torch.addcmul(images.detach(), r, direction, value=-1).clamp_(0, 1)
    weight = r.view(-1, 1) if isinstance(label_weight, str) else label_weight
    return adversarial, (1 - weight) * targets + weight * goal_labels, logits


def radii(count: int, eps: float, radius: str, seed: int, device: torch.device) -> Tensor:
    """`count` radii, float32 (count, 1, 1, 1).

    radius: "image", each uniform on [0, eps]; "batch", one such number for all; "fixed", eps.
    """
    check_name(radius, RADII, "radius")
    rng = np.random.default_rng([seed, 2])
    drawn = {
        "image": lambda: rng.random(count, dtype=np.float32),
        "batch": lambda: np.full(count, rng.random(dtype=np.float32), dtype=np.float32),
        "fixed": lambda: np.ones(count, dtype=np.float32),
    }[radius]()
    return sent(torch.from_numpy(drawn * np.float32(eps)), device).view(-1, 1, 1, 1)


@contextmanager
def batch_norm_mode(model: nn.Module, mode: str) -> Iterator[None]:
    """ "eval": batch norm and dropout as in evaluation, each module's mode restored afterwards.

    "train": as the model stands.
    """
    before = {module: module.training for module in model.modules()}
    if mode == "eval":
        model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def _gradient_sign(
    logits: Tensor, targets: Tensor, images: Tensor, retain_graph: bool = False
) -> Tensor:
    loss = F.cross_entropy(logits.float(), targets, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images, retain_graph=retain_graph)
    return gradient.sign()


def _checked_eps(eps: float, radius: str, batch_norm: str) -> float:
    check_name(radius, RADII, "radius")
    check_name(batch_norm, MODES, "batch_norm")
    return check_number(eps, "eps", low=0, high=0.5, unit="pixels in [0, 1]; 8/255 = 0.031")


def _checked_label_weight(weight: float | str) -> float | str:
    if weight == "radius":
        return weight
    return check_number(weight, 'label_weight, if not "radius",', low=0, high=1)

"""Training recipes: each is a frozen dataclass whose `loss` is the batch loss it minimises.

A recipe sees one batch at a time and draws all its randomness from `batch.seed`, so that training
is reproducible whatever ran before. All recipes take the same number of optimiser steps on
batches of the same size. Hyperparameters marked "this project's choice" are recalled from the
papers or chosen here, not confirmed by published code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustlib import corruptions
from robustlib.checks import check_name, check_nonempty


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        images: float32 (N, 3, H, W) in [0, 1].
        labels: int64 (N,), class indices.
        ids: int64 (N,), identities of the images in the data set.
        classes: number of classes.
        seed: source of all random draws for this batch.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    classes: int
    seed: int

    def one_hot(self) -> Tensor:
        """Labels as float32 (N, classes), rows summing to one."""
        return F.one_hot(self.labels, self.classes).to(self.images.dtype)


class Recipe(Protocol):
    """What the training loop needs from a recipe."""

    @property
    def name(self) -> str:
        """A short name, unique within a study, that tables and plots show."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The scalar loss of one batch, with gradients to the model's parameters."""
        ...


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of `logits` (N, classes) with label vectors `targets` (N, classes)."""
    return F.cross_entropy(logits.float(), targets)


@dataclass(frozen=True)
class Standard:
    """Empirical risk minimisation on clean images."""

    name: str = "standard"

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """L(x, y)."""
        return soft_cross_entropy(model(batch.images), batch.one_hot())


@dataclass(frozen=True)
class Augmented:
    """Augmentation by common perturbations: half of each batch is perturbed.

    Laugros et al. 2021 train on the clean set and its corrupted copy, and the standard model on
    the clean set twice. Halving the batch keeps both properties: half clean, half perturbed, as
    many steps as `Standard`. Corruption and severity are drawn at random (see
    `robustlib.corruptions.augment`).

    Attributes:
        corruptions: names from `robustlib.corruptions.names()`.
        name: defaults to the single corruption's name, or "augmented" for a set.
    """

    corruptions: tuple[str, ...]
    name: str = ""

    def __post_init__(self) -> None:
        check_nonempty(self.corruptions, "corruptions")
        for corruption in self.corruptions:
            check_name(corruption, corruptions.names(), "corruption")
        if not self.name:
            single = len(self.corruptions) == 1
            object.__setattr__(self, "name", self.corruptions[0] if single else "augmented")

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """L(x', y), where the first half of x' is perturbed."""
        half = len(batch.images) // 2
        perturbed = corruptions.augment(
            batch.images[:half], self.corruptions, seed=batch.seed, ids=batch.ids[:half]
        )
        images = torch.cat([perturbed, batch.images[half:]])
        return soft_cross_entropy(model(images), batch.one_hot())


@dataclass(frozen=True, kw_only=True)
class Mixup:
    """Mixup (Zhang et al. 2018): convex combinations of pairs of images and of their labels.

    Attributes:
        alpha: parameter of Beta(alpha, alpha), from which one weight a batch is drawn; positive.
            0.2 is this project's choice within the range of that paper.
    """

    alpha: float = 0.2
    name: str = "mixup"

    def __post_init__(self) -> None:
        _check_positive(self.alpha, "alpha")

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """L(x~, y~) with x~ = l x_i + (1 - l) x_j and y~ likewise."""
        images, targets = mix(batch, alpha=self.alpha)
        return soft_cross_entropy(model(images), targets)


@dataclass(frozen=True, kw_only=True)
class FGSM:
    """Single-step adversarial training: half of each batch is attacked, as in `Augmented`.

    x' = clip(x + r sign(grad_x L(x, y))), Goodfellow et al. 2015. The radius r is drawn uniformly
    from [0, eps] for each image, as in `TLAT`, so that the two differ in the target only.

    Attributes:
        eps: largest Linf radius in [0, 1] pixel units, 0 to 0.5 (this project's choice).
    """

    eps: float = 0.03
    name: str = "fgsm"

    def __post_init__(self) -> None:
        _check_radius(self.eps)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """L(x', y), where the first half of x' is adversarial."""
        half = len(batch.images) // 2
        targets = batch.one_hot()
        clean = batch.images[:half].requires_grad_()
        direction = _gradient_sign(model(clean), targets[:half], clean)
        radius = uniform_radii(half, self.eps, batch.seed, clean.device)
        attacked = (clean + radius * direction).clamp(0, 1).detach()
        images = torch.cat([attacked, batch.images[half:]])
        return soft_cross_entropy(model(images), targets)


@dataclass(frozen=True, kw_only=True)
class TLAT:
    """Targeted Labeling Adversarial Training, the half of M-TLAT without Mixup.

    Laugros et al. 2020. A random target class t for each image, one targeted step

        x' = clip(x - r sign(grad_x L(x, t))),    y' = (1 - w) y + w t,

    and the mean of the losses L(x, y) and L(x', y'). Targets are uniform over the classes.

    Attributes:
        eps: largest Linf radius in [0, 1] pixel units, 0 to 0.5; the radius r of each image is
            uniform on [0, eps] (recalled, unconfirmed: this project's choice).
        label_weight: w, weight of the target class in the adversarial label, 0 to 1 (this
            project's choice: the paper's value is not known here).
    """

    eps: float = 0.03
    label_weight: float = 0.2
    name: str = "tlat"

    def __post_init__(self) -> None:
        _check_radius(self.eps)
        _check_weight(self.label_weight)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """(L(x, y) + L(x', y')) / 2."""
        return targeted_labeling_loss(
            model,
            batch.images,
            batch.one_hot(),
            eps=self.eps,
            label_weight=self.label_weight,
            seed=batch.seed,
        )


@dataclass(frozen=True, kw_only=True)
class MTLAT:
    """M-TLAT: `TLAT` applied to the pairs (x~, y~) of `Mixup` (Laugros et al. 2020).

    Attributes:
        alpha: as in `Mixup`.
        eps: as in `TLAT`.
        label_weight: as in `TLAT`.
    """

    alpha: float = 0.2
    eps: float = 0.03
    label_weight: float = 0.2
    name: str = "mtlat"

    def __post_init__(self) -> None:
        _check_positive(self.alpha, "alpha")
        _check_radius(self.eps)
        _check_weight(self.label_weight)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """(L(x~, y~) + L(x', y')) / 2."""
        images, targets = mix(batch, alpha=self.alpha)
        return targeted_labeling_loss(
            model,
            images,
            targets,
            eps=self.eps,
            label_weight=self.label_weight,
            seed=batch.seed,
        )


def mix(batch: Batch, *, alpha: float) -> tuple[Tensor, Tensor]:
    """Mixup pairs (x~, y~): images (N, 3, H, W) in [0, 1] and label vectors (N, classes).

    One weight l ~ Beta(alpha, alpha) and one random pairing for the whole batch (Zhang et al.
    2018, equation 2 and their code).
    """
    rng = np.random.default_rng([batch.seed, 0])
    weight = float(rng.beta(alpha, alpha))
    partner = torch.from_numpy(rng.permutation(len(batch.images))).to(batch.images.device)
    targets = batch.one_hot()
    images = weight * batch.images + (1 - weight) * batch.images[partner]
    return images, weight * targets + (1 - weight) * targets[partner]


def targeted_labeling_example(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    eps: float,
    label_weight: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The adversarial images and labels of TLAT.

    Args:
        model: maps images to logits (N, classes).
        images: float32 (N, 3, H, W) in [0, 1].
        targets: their label vectors, float32 (N, classes).
        eps: largest radius; each image's is uniform on [0, eps].
        label_weight: w, the weight of the random class in the label.
        seed: source of the target classes and radii.

    Returns:
        adversarial images (N, 3, H, W) in [0, 1] without gradient, their label vectors
        (N, classes), and the model's logits on `images` with gradient, for reuse. The parameters'
        gradients are untouched.
    """
    count, classes = targets.shape
    images = images.detach().requires_grad_()
    rng = np.random.default_rng([seed, 1])
    classes_drawn = torch.from_numpy(rng.integers(classes, size=count)).to(images.device)
    random_targets = F.one_hot(classes_drawn, classes).to(targets.dtype)
    logits = model(images)
    direction = _gradient_sign(logits, random_targets, images, retain_graph=True)
    radius = uniform_radii(count, eps, seed, images.device)
    adversarial = (images - radius * direction).clamp(0, 1).detach()
    return adversarial, (1 - label_weight) * targets + label_weight * random_targets, logits


def targeted_labeling_loss(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    eps: float,
    label_weight: float,
    seed: int,
) -> Tensor:
    """(L(x, y) + L(x', y')) / 2 with (x', y') from `targeted_labeling_example`.

    The forward pass on x serves both the attack and the first loss.
    """
    adversarial, labels, logits = targeted_labeling_example(
        model, images, targets, eps=eps, label_weight=label_weight, seed=seed
    )
    clean_loss = soft_cross_entropy(logits, targets)
    return 0.5 * (clean_loss + soft_cross_entropy(model(adversarial), labels))


def uniform_radii(count: int, eps: float, seed: int, device: torch.device) -> Tensor:
    """`count` radii drawn uniformly from [0, eps], float32 (count, 1, 1, 1)."""
    radii = np.random.default_rng([seed, 2]).random(count, dtype=np.float32) * np.float32(eps)
    return torch.from_numpy(radii).to(device).view(-1, 1, 1, 1)


def _gradient_sign(
    logits: Tensor, targets: Tensor, images: Tensor, retain_graph: bool = False
) -> Tensor:
    loss = F.cross_entropy(logits.float(), targets, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images, retain_graph=retain_graph)
    return gradient.sign()


def _check_positive(value: float, what: str) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{what} must be positive, got {value}.")


def _check_radius(eps: float) -> None:
    if not 0 <= eps <= 0.5:
        raise ValueError(f"eps must lie in [0, 0.5] (pixels in [0, 1]), got {eps}; 8/255 = 0.031.")


def _check_weight(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise ValueError(f"label_weight must lie in [0, 1], got {weight}.")

"""Recipes without an attack."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.core.checks import check_number, settle
from robustlib.core.devices import sent
from robustlib.recipes.base import (
    Batch,
    checked_corruptions,
    perturb_half,
    soft_cross_entropy,
)


@dataclass(frozen=True)
class Standard:
    """Empirical risk minimisation on clean images."""

    name: str = "standard"

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """L(x, y)."""
        logits = model(batch.images)
        return soft_cross_entropy(logits, batch.one_hot()), logits


@dataclass(frozen=True)
class Augmented:
    """Augmentation by common perturbations: half of each batch is perturbed.

    Laugros et al. 2021 train on the clean set and its corrupted copy, and the standard model on
    the clean set twice. Halving the batch keeps both properties: half clean, half perturbed, as
    many steps as `Standard`. Corruption and severity are drawn at random (see
    `robustlib.corruptions.augment`).

    Attributes:
        corruptions: names from `robustlib.corruptions.names()`, or a suite such as "noc", which
            is replaced by its names.
        name: defaults to the suite's or the single corruption's name, or "augmented" for a set.
    """

    corruptions: tuple[str, ...] | str
    name: str = ""

    def __post_init__(self) -> None:
        names = checked_corruptions(self.corruptions)
        if not self.name:
            suite = self.corruptions if isinstance(self.corruptions, str) else "augmented"
            settle(self, name=names[0] if len(names) == 1 else suite)
        settle(self, corruptions=names)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """L(x', y), where the first half of x' is perturbed."""
        logits = model(perturb_half(batch.images, batch, self.corruptions))
        return soft_cross_entropy(logits, batch.one_hot()), logits


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing:
    """Label smoothing (Szegedy et al. 2016): a control for the soft labels of `TLAT`.

    Attributes:
        smoothing: s, the weight of the uniform distribution in the label, 0 to 1 (that paper,
            section 7: 0.1).
    """

    smoothing: float = 0.1
    name: str = "label_smoothing"

    def __post_init__(self) -> None:
        settle(self, smoothing=check_number(self.smoothing, "smoothing", low=0, high=1))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """L(x, (1 - s) y + s / classes)."""
        targets = (1 - self.smoothing) * batch.one_hot() + self.smoothing / batch.classes
        logits = model(batch.images)
        return soft_cross_entropy(logits, targets), logits


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
        settle(self, alpha=check_number(self.alpha, "alpha", low=0, above=True))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """L(x~, y~) with x~ = l x_i + (1 - l) x_j and y~ likewise."""
        images, targets = mix(batch, alpha=self.alpha)
        logits = model(images)
        return soft_cross_entropy(logits, targets), logits


def mix(batch: Batch, *, alpha: float) -> tuple[Tensor, Tensor]:
    """Mixup pairs (x~, y~): images (N, 3, H, W) in [0, 1] and label vectors (N, classes).

    One weight l ~ Beta(alpha, alpha) and one random pairing for the whole batch (Zhang et al.
    2018, equation 2 and their code).
    """
    rng = np.random.default_rng([batch.seed, 0])
    weight = float(rng.beta(alpha, alpha))
    partner = sent(torch.from_numpy(rng.permutation(len(batch.images))), batch.images.device)
    targets = batch.one_hot()
    images = torch.lerp(batch.images[partner], batch.images, weight)
    return images, torch.lerp(targets[partner], targets, weight)

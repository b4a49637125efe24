"""What all recipes share: the batch, the protocol, the loss, checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustlib import corruptions
from robustlib.core.checks import check_names


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

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The batch loss, with gradients to the model's parameters, and logits.

        The logits (N, classes) are those that the loss was computed from, row i for image i (the
        clean image where the loss has several): the loop reads the training accuracy from them.
        """
        ...


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of `logits` (N, classes) with label vectors `targets` (N, classes)."""
    return F.cross_entropy(logits.float(), targets)


def perturb_half(images: Tensor, batch: Batch, names: Sequence[str]) -> Tensor:
    """`images` (N, 3, H, W) of a batch, the first half of them perturbed by draws from `names`."""
    half = len(images) // 2
    perturbed = corruptions.augment_unchecked(images[:half], names, batch.seed, batch.ids[:half])
    return torch.cat([perturbed, images[half:]])


def checked_corruptions(names: str | Sequence[str]) -> tuple[str, ...]:
    """The corruptions of a suite, or those named, as a tuple; raises for unknown or repeated."""
    if isinstance(names, str):
        return corruptions.names(names)
    return check_names(names, corruptions.names(), "corruption")

"""Adversarial attacks, with the calling convention of the corruptions.

    result = run(model, images, labels, "pgd", eps=2 / 255)
    result.robust_correct  # right clean and attacked, for each image

DeepFool goes through foolbox; the others are written from their papers. Images that are beaten
leave, and others take their place, so that batches stay full. An attack leaves model and images
untouched, and what an image becomes depends on (model, image, label, seed, image id, settings)
only: not on the batch, to rounding, nor on the gradient mode, autocast or the default dtype.
Logits that aren't finite count as wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from robustlib.attacks import auto, gradient, minimal
from robustlib.attacks.guard import GradientWarning, Guard, check_gradient, warn_of_repairs
from robustlib.attacks.registry import BATCH_SIZE, REGISTRY, AttackInfo, Norm, Task
from robustlib.core.checks import (
    check_ids,
    check_images,
    check_labels,
    check_name,
    check_seed,
    check_whole,
)
from robustlib.core.inference import (
    ProbabilityWarning,
    TrainModeWarning,
    evaluating,
    look_over,
)

__all__ = [
    "BATCH_SIZE",
    "FIVE",
    "AttackInfo",
    "AttackResult",
    "GradientWarning",
    "ProbabilityWarning",
    "TrainModeWarning",
    "attack",
    "info",
    "names",
    "norms",
    "overview",
    "run",
    "suites",
]

FIVE = ("fgsm", "pgd", "pgd_least_likely", "mi_fgsm", "cw")
"""The five attacks of the M-TLAT study (this project's choice)."""

# Importing these modules enters their attacks into the registry.
_MODULES = (gradient, minimal, auto)
_STRONG = ("apgd_ce", "apgd_dlr", "square")
_SUITES = {
    "all": (*FIVE, "ddn", "deepfool", "rays", *_STRONG, "strong"),
    "five": FIVE,
    "strong": _STRONG,
}


@dataclass(frozen=True)
class AttackResult:
    """What an attack did to each of N images.

    Attributes:
        adversarial: float32 (N, 3, H, W) in [0, 1]. An image that the model gets wrong clean is
            unchanged, and so is one that a minimal attack didn't beat within the radius. One that
            was beaten is done: no further step makes it worse, or, if a minimal attack has a
            radius, smaller. For one that another attack didn't beat, it is the last attempt.
        clean_correct: bool (N,), right before the attack.
        robust_correct: bool (N,), right before and after it.
        norm: float32 (N,), of the perturbation, measured from the pixels in the attack's norm.
        steps: int64 (N,), the gradient steps the image took, or queries for a black-box attack;
            0 if it was wrong clean.
    """

    adversarial: Tensor = field(repr=False)
    clean_correct: Tensor
    robust_correct: Tensor
    norm: Tensor
    steps: Tensor

    def correct_within(self, eps: float) -> Tensor:
        """bool (N,): right clean, and not beaten by a perturbation of at most `eps`.

        For a minimal attack run without a radius, this is its result at any radius.
        """
        return self.clean_correct & (self.robust_correct | (self.norm > eps))


def suites() -> tuple[str, ...]:
    """The names that `names` takes."""
    return tuple(_SUITES)


def names(suite: str = "all") -> tuple[str, ...]:
    """Names of the attacks of a suite: "all"; "five" (`FIVE`); "strong", what `strong` joins.

    Raises `UnknownNameError` for another suite.
    """
    return _SUITES[check_name(suite, _SUITES, "suite")]


def info(name: str) -> AttackInfo:
    """Norm, kind, options and source of an attack.

    Raises `UnknownNameError` for a name that isn't registered.
    """
    return REGISTRY[check_name(name, REGISTRY, "attack")]


def overview() -> pd.DataFrame:
    """One row an attack: norm, searches, uses, targets, options with defaults, source."""
    return pd.DataFrame(
        [
            {
                "attack": item.name,
                "norm": item.norm,
                "searches": "smallest norm" if item.minimal else "within a radius",
                "uses": "outputs" if item.black_box else "gradients",
                "targets": item.targets,
                "options": ", ".join(f"{key}={value}" for key, value in item.options.items()),
                "source": item.source,
            }
            for item in map(info, names())
        ]
    ).set_index("attack")


def norms(difference: Tensor, norm: Norm) -> Tensor:
    """float32 (N,): the Linf or L2 norm of each of the differences (N, 3, H, W)."""
    flat = difference.flatten(1)
    return flat.abs().amax(1) if norm == "Linf" else flat.norm(dim=1)


def attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | Sequence[int],
    name: str,
    **settings: Any,
) -> Tensor:
    """`run(...).adversarial`: adversarial versions of `images`; arguments and errors as there."""
    return run(model, images, labels, name, **settings).adversarial


def run(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | Sequence[int],
    name: str,
    *,
    eps: float | str | None = None,
    seed: int = 0,
    ids: Tensor | Sequence[int] | None = None,
    targets: Tensor | Sequence[int] | None = None,
    batch_size: int = BATCH_SIZE,
    **options: Any,
) -> AttackResult:
    """Attack a model and measure what came of it.

    Args:
        model: maps float32 (N, 3, H, W) in [0, 1] to logits (N, classes). It may change its input
            in place.
        images: float32 (N, 3, H, W) in [0, 1], on the model's device.
        labels: int64 (N,), the true classes.
        name: one of `names()`.
        eps: radius in the attack's norm, pixels in [0, 1]: Linf in (0, 0.5], L2 in
            (0, 0.5 sqrt(3 H W)], where every image can be made grey. With a minimal attack, only
            perturbations within it count, and the first one ends the search; None counts all, and
            looks for the smallest.
        seed: source of random starts and draws.
        ids: int64 (N,), identities of the images; default: their positions.
        targets: int64 (N,), the classes to aim at, other than the labels, for attacks that have
            targets; an image counts as beaten if it gets any wrong class.
        batch_size: images that the model is handed at a time, at most. It bounds the memory that
            grows with the model, and changes results by no more than rounding does.
        options: those of the attack, `info(name).options`, such as steps or restarts.

    Raises:
        ValueError: bad images, labels, ids, targets, radius or options, targets for an attack
            that has none, a model on another device, one whose output isn't logits (N, classes),
            or one without gradients for an attack that needs them.
        UnknownNameError: unknown attack or option.

    Warns:
        TrainModeWarning: the model was in train mode; it is attacked in eval mode.
        ProbabilityWarning: its outputs look like probabilities.
        GradientWarning: gradients weren't finite and were replaced, or are zero.
    """
    known = info(name)
    options = known.check_options(options)
    images = check_images(images)
    n = len(images)
    largest = 0.5 if known.norm == "Linf" else 0.5 * math.prod(images.shape[1:]) ** 0.5
    radius = known.check_radius(eps, largest)
    batch_size = check_whole(batch_size, "batch_size", low=1)
    seed, ids, labels = check_seed(seed), check_ids(ids, n), check_labels(labels, n)
    if targets is not None:
        targets = _check_targets(known, targets, labels)
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        images = images.detach().clone(memory_format=torch.contiguous_format)
        labels, ids = labels.to(images.device).clone(), ids.to(images.device).clone()
        targets = None if targets is None else targets.to(images.device).clone()
        adversarial = images.clone()
        steps = torch.zeros_like(labels)
        clean = torch.zeros_like(labels, dtype=torch.bool)
        if n:
            few = look_over(model, images[:8], labels, finite=False)
            if targets is not None:
                check_labels(targets, n, few.shape[1], "targets")
            if not known.black_box:
                check_gradient(model, images, labels)
            everything = Guard(model, labels)
            whole = Task(everything, images, labels, ids, seed, radius, targets, batch_size)
            clean = ~whole.beaten(images)
        robust = clean.clone()
        index = clean.nonzero().squeeze(1)
        if len(index):
            task = whole.at(index)
            found, steps[index] = known.function(task, **options)
            found = found.detach()
            beaten = task.beaten(found)
            if known.minimal:
                beaten &= norms(found - task.images, known.norm) <= radius
                found = torch.where(beaten.view(-1, 1, 1, 1), found, task.images)
            adversarial[index] = found
            robust[index] = ~beaten
            warn_of_repairs(everything)
        size = norms(adversarial - images, known.norm) if n else images.new_zeros(0)
    _assert_valid(name, adversarial, size, radius)
    return AttackResult(adversarial, clean, robust, size, steps)


def _check_targets(known: AttackInfo, targets: Any, labels: Tensor) -> Tensor:
    if not known.targets:
        able = ", ".join(other for other in names() if info(other).targets)
        raise ValueError(f"the attack {known.name!r} can't aim at targets; these can: {able}.")
    targets = check_labels(targets, len(labels), what="targets").to(labels.device)
    if (targets == labels).any():
        raise ValueError("targets must differ from the labels of their images.")
    return targets


def _assert_valid(name: str, adversarial: Tensor, size: Tensor, radius: float) -> None:
    """Raise `AssertionError` if an attack left the ball or the range: a bug, never bad input."""
    if not len(size):
        return
    low, high = (value.item() for value in torch.aminmax(adversarial))
    if not (low >= 0 and high <= 1 and size.max().item() <= radius + 1e-6):
        raise AssertionError(
            f"the attack {name!r} returned pixels from {low:g} to {high:g} at a distance of up to "
            f"{size.max().item():g}, radius {radius:g}; please report this."
        )

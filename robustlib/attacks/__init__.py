"""Adversarial attacks, with the calling convention of the corruptions.

    result = run(model, images, labels, "pgd", eps=2 / 255)
    result.robust_correct  # right clean and attacked, for each image

FGSM, PGD, MI-FGSM, Carlini-Wagner and DeepFool go through foolbox; the others are written from
their papers. An attack leaves the model's gradients and mode untouched, and what an image becomes
depends on (model, image, label, seed, image id, settings) only: not on the batch, to rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from robustlib.attacks import auto, gradient, minimal
from robustlib.attacks.registry import REGISTRY, AttackInfo, Norm, Task
from robustlib.core.checks import check_ids, check_images, check_labels, check_name

__all__ = [
    "FIVE",
    "AttackInfo",
    "AttackResult",
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


class TrainModeWarning(UserWarning):
    """A model in train mode was attacked; it is attacked in eval mode."""


@dataclass(frozen=True)
class AttackResult:
    """What an attack did to each of N images.

    Attributes:
        adversarial: float32 (N, 3, H, W) in [0, 1]. An image that the model gets wrong clean is
            unchanged, and so is one that a minimal attack didn't beat within the radius. For one
            that another attack didn't beat, it is the last attempt.
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


def attack(model: nn.Module, images: Tensor, labels: Tensor, name: str, **settings: Any) -> Tensor:
    """`run(...).adversarial`: adversarial versions of `images`; arguments and errors as there."""
    return run(model, images, labels, name, **settings).adversarial


def run(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    name: str,
    *,
    eps: float | str | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    targets: Tensor | None = None,
    **options: Any,
) -> AttackResult:
    """Attack a model and measure what came of it.

    Args:
        model: maps float32 (N, 3, H, W) in [0, 1] to logits (N, classes).
        images: float32 (N, 3, H, W) in [0, 1], on the model's device.
        labels: int64 (N,), the true classes.
        name: one of `names()`.
        eps: radius in the attack's norm, pixels in [0, 1]: Linf in (0, 0.5], L2 in
            (0, 0.5 sqrt(3 H W)], where every image can be made grey. With a minimal attack, only
            perturbations within it count; None counts all.
        seed: source of random starts and draws.
        ids: int64 (N,), identities of the images; default: their positions.
        targets: int64 (N,), the classes to aim at, other than the labels, for attacks that have
            targets; an image counts as beaten if it gets any wrong class.
        options: those of the attack, `info(name).options`, such as steps or restarts.

    Raises:
        ValueError: bad images, labels, ids, targets, radius or options, targets for an attack
            that has none, or a model whose output isn't (N, classes).
        UnknownNameError: unknown attack or option.

    Warns:
        TrainModeWarning: the model was in train mode; it is attacked in eval mode.
    """
    known = info(name)
    options = known.check_options(options)
    images = check_images(images)
    n = len(images)
    largest = 0.5 if known.norm == "Linf" else 0.5 * images[0:1].numel() ** 0.5
    radius = known.check_radius(eps, largest if n else 0.5)
    if targets is not None and not known.targets:
        able = ", ".join(other for other in names() if info(other).targets)
        raise ValueError(f"the attack {name!r} can't aim at targets; these can: {able}.")
    ids, labels = check_ids(ids, n), check_labels(labels, n).to(images.device)
    if model.training:
        warnings.warn(
            "the model is in train mode; it is attacked in eval mode.",
            TrainModeWarning,
            stacklevel=2,
        )
    adversarial = images.clone()
    steps = torch.zeros(n, dtype=torch.int64, device=images.device)
    with _frozen(model):
        clean = _predicted(model, images, labels, targets)
        index = clean.nonzero().squeeze(1)
        if len(index):
            task = Task(
                model,
                images[index],
                labels[index],
                ids.to(images.device)[index],
                seed,
                float("inf") if known.minimal else radius,
                None if targets is None else targets[index],
            )
            found, steps[index] = known.function(task, **options)
            found = found.detach()
            beaten = task.beaten(found)
            if known.minimal:
                beaten &= norms(found - task.images, known.norm) <= radius
                found = torch.where(beaten.view(-1, 1, 1, 1), found, task.images)
            adversarial[index] = found
            robust = clean.clone()
            robust[index] = ~beaten
        else:
            robust = clean
    size = norms(adversarial - images, known.norm) if n else torch.zeros(0)
    _assert_valid(name, adversarial, size, radius)
    return AttackResult(adversarial, clean, robust, size, steps)


def _predicted(model: nn.Module, images: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """bool (N,): which images are right clean; checks what needs the number of classes."""
    if not len(images):
        return torch.zeros(0, dtype=torch.bool, device=images.device)
    with torch.no_grad():
        logits = model(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits)
        raise ValueError(
            f"the model must map {len(images)} images to logits ({len(images)}, classes), "
            f"but its output has {found}."
        )
    check_labels(labels, len(images), logits.shape[1])
    if targets is not None:
        try:
            check_labels(targets, len(images), logits.shape[1])
        except ValueError as error:
            raise ValueError(str(error).replace("labels", "targets")) from None
        if (targets == labels).any():
            raise ValueError("targets must differ from the labels of their images.")
    return logits.argmax(1) == labels


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


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode, and no gradients to the parameters; both restored afterwards."""
    training = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)

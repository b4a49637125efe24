"""Adversarial attacks, through foolbox, with the calling convention of the corruptions.

Radii are Linf, in [0, 1] pixel units. Unlike foolbox alone, an attack here leaves the model's
gradients and mode untouched, and its random start depends on (seed, image id) only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import eagerpy as ep
import foolbox
import torch
from torch import Tensor, nn

from robustlib.checks import check_images, check_labels, check_name
from robustlib.randomness import Stream


class TrainModeWarning(UserWarning):
    """A model in train mode was attacked; it is attacked in eval mode."""


class SeededPGD(foolbox.attacks.LinfProjectedGradientDescentAttack):
    """PGD (Madry et al. 2018) whose random start is a function of (seed, image id)."""

    def __init__(self, *, steps: int, seed: int, ids: Tensor) -> None:
        super().__init__(rel_stepsize=min(1.0, 2.5 / steps), steps=steps, random_start=True)
        self.seed = seed
        self.ids = ids

    def get_random_start(self, x0: ep.Tensor, epsilon: float) -> ep.Tensor:
        """x0 plus uniform noise on [-epsilon, epsilon]."""
        noise = Stream(self.seed, self.ids, "pgd").uniform(x0.shape[1:])
        return x0 + ep.astensor(epsilon * (2 * noise - 1))


def _fgsm(steps: int, seed: int, ids: Tensor) -> Any:
    return foolbox.attacks.LinfFastGradientAttack(random_start=False)


def _pgd(steps: int, seed: int, ids: Tensor) -> Any:
    return SeededPGD(steps=steps, seed=seed, ids=ids)


ATTACKS: dict[str, Callable[[int, int, Tensor], Any]] = {"fgsm": _fgsm, "pgd": _pgd}


def names() -> tuple[str, ...]:
    """Names of the attacks."""
    return tuple(ATTACKS)


def attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    name: str,
    *,
    eps: float,
    steps: int = 10,
    seed: int = 0,
    ids: Tensor | None = None,
) -> Tensor:
    """Adversarial versions of `images` for `model`, untargeted.

    An image that the model gets wrong without any change is returned as it is, so that accuracy
    on the result counts images that are right both clean and attacked.

    Args:
        model: maps float32 (N, 3, H, W) in [0, 1] to logits (N, classes).
        images: float32 (N, 3, H, W) in [0, 1], on the model's device.
        labels: int64 (N,), the true classes.
        name: "fgsm" (Goodfellow et al. 2015) or "pgd" (Madry et al. 2018; step size 2.5 eps /
            steps, one random start).
        eps: Linf radius in [0, 1] pixel units, positive, at most 0.5.
        steps: gradient steps of PGD, 1 or more. FGSM takes one.
        seed: source of PGD's random start.
        ids: int64 (N,), identities of the images; default: their positions.

    Returns float32 (N, 3, H, W) in [0, 1], within eps of `images`.

    Raises:
        ValueError: bad images, labels, radius or steps, or a model whose output isn't
            (N, classes).
        UnknownNameError: unknown attack.

    Warns:
        TrainModeWarning: the model was in train mode.
    """
    check_name(name, ATTACKS, "attack")
    check_images(images)
    if not 0 < eps <= 0.5:
        raise ValueError(f"eps must lie in (0, 0.5] (pixels in [0, 1]), got {eps}.")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    if not len(images):
        return images
    ids = torch.arange(len(images)) if ids is None else ids
    if model.training:
        warnings.warn(
            "the model is in train mode; it is attacked in eval mode.",
            TrainModeWarning,
            stacklevel=2,
        )
    with _frozen(model):
        with torch.no_grad():
            logits = model(images)
        if logits.ndim != 2 or len(logits) != len(images):
            raise ValueError(
                f"the model must map {len(images)} images to logits ({len(images)}, classes), "
                f"but its output has shape {tuple(logits.shape)}."
            )
        check_labels(labels, len(images), logits.shape[1])
        right = logits.argmax(1) == labels
        result = images.clone()
        if right.any():
            wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
            method = ATTACKS[name](steps, seed, ids.to(images.device)[right])
            result[right] = method.run(wrapped, images[right], labels[right], epsilon=eps)
    return result


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

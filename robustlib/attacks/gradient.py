"""Attacks that follow the sign of the gradient within an Linf ball, through foolbox."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import eagerpy as ep
import foolbox
import torch
from torch import Tensor

from robustlib.attacks.registry import Task, counted, register
from robustlib.core.randomness import Stream

_PGD = foolbox.attacks.LinfProjectedGradientDescentAttack


@register("Linf", targets=True, source="Goodfellow et al. 2015, arXiv 1412.6572")
def fgsm(task: Task) -> tuple[Tensor, Tensor]:
    """x + eps sign(grad L(x, y)), or x - eps sign(grad L(x, t)) for a target t."""
    # foolbox's class of that name refuses targets; this is the same step.
    method = _PGD(rel_stepsize=1.0, steps=1, random_start=False)
    return task.through_foolbox(method), counted(task, 1)


class SeededPGD(_PGD):
    """PGD whose random start is a function of (seed, image id)."""

    def __init__(self, *, steps: int, start: Stream) -> None:
        super().__init__(rel_stepsize=min(1.0, 2.5 / steps), steps=steps, random_start=True)
        self.start = start

    def get_random_start(self, x0: ep.Tensor, epsilon: float) -> ep.Tensor:
        """x0 plus uniform noise on [-epsilon, epsilon]."""
        return x0 + ep.astensor(self.start.uniform(x0.shape[1:], -epsilon, epsilon))


@register("Linf", targets=True, source="Madry et al. 2018, arXiv 1706.06083")
def pgd(task: Task, *, steps: int = 20, restarts: int = 3) -> tuple[Tensor, Tensor]:
    """Projected gradient steps of 2.5 eps / steps from random starts.

    A restart is for the images that still stand. Three restarts are this project's choice.
    """
    images = task.images.clone()
    spent = counted(task, 0)
    standing = torch.arange(len(images), device=images.device)
    for restart in range(restarts):
        part = task.at(standing)
        method = SeededPGD(steps=steps, start=Stream(task.seed, part.ids, "pgd", restart))
        images[standing] = part.through_foolbox(method)
        spent[standing] += steps
        standing = standing[~part.beaten(images[standing])]
        if not len(standing):
            break
    return images, spent


@register("Linf", targets=False, source="Kurakin et al. 2017, arXiv 1607.02533; PGD as above")
def pgd_least_likely(task: Task, *, steps: int = 20, restarts: int = 1) -> tuple[Tensor, Tensor]:
    """PGD toward the class that the model finds least likely on the clean image.

    Any wrong class counts as success.
    """
    with torch.no_grad():
        least = task.model(task.images).argmin(1)
    return pgd(replace(task, targets=least), steps=steps, restarts=restarts)


class _Momentum:
    """alpha sign(g), g = momentum g + gradient, as an optimizer of foolbox."""

    def __init__(self, stepsize: float, momentum: float) -> None:
        self.stepsize = stepsize
        self.momentum = momentum
        self.accumulated: Any = 0.0

    def __call__(self, gradient: ep.Tensor) -> ep.Tensor:
        self.accumulated = self.momentum * self.accumulated + gradient
        return self.stepsize * self.accumulated.sign()


class MomentumPGD(_PGD):
    """MI-FGSM as published: foolbox's own takes the gradient's sign before accumulating it."""

    def __init__(self, *, steps: int, momentum: float) -> None:
        super().__init__(rel_stepsize=1.0 / steps, steps=steps, random_start=False)
        self.momentum = momentum

    def get_optimizer(self, x: ep.Tensor, stepsize: float) -> Any:
        """Momentum over the whole run."""
        return _Momentum(stepsize, self.momentum)

    def normalize(self, gradients: ep.Tensor, *, x: ep.Tensor, bounds: Any) -> ep.Tensor:
        """Each image's gradient divided by its L1 norm."""
        size = gradients.abs().sum(axis=(1, 2, 3), keepdims=True)
        return gradients / ep.maximum(size, 1e-30)


@register("Linf", targets=True, source="Dong et al. 2018, arXiv 1710.06081")
def mi_fgsm(task: Task, *, steps: int = 10, momentum: float = 1.0) -> tuple[Tensor, Tensor]:
    """x += alpha sign(g), g = momentum g + grad / |grad|_1, alpha = eps / steps."""
    method = MomentumPGD(steps=steps, momentum=momentum)
    return task.through_foolbox(method), counted(task, steps)

"""Attacks that search the smallest perturbation, with gradients or from decisions alone."""

from __future__ import annotations

import math

import foolbox
import torch
from torch import Tensor
from torch.nn import functional as F

from robustlib.attacks.registry import Task, counted, per_image, register
from robustlib.core.randomness import Stream


@register("L2", minimal=True, targets=True, source="Carlini and Wagner 2017, arXiv 1608.04644")
def cw(
    task: Task,
    *,
    steps: int = 100,
    searches: int = 5,
    stepsize: float = 0.02,
    initial_const: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Adam on |delta|^2 + c max(margin, 0) in tanh space, c by binary search.

    The budget is this project's choice; the authors take 10,000 steps.
    """
    method = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=searches,
        steps=steps,
        stepsize=stepsize,
        initial_const=initial_const,
        abort_early=False,  # it would stop when the whole batch stalls
    )
    images = task.through_foolbox(method)
    found = per_image(images.flatten(1).any(1))  # foolbox returns a black image for a failure
    return torch.where(found, images, task.images), counted(task, steps * searches)


@register(
    "L2", minimal=True, targets=False, source="Moosavi-Dezfooli et al. 2016, arXiv 1511.04599"
)
def deepfool(task: Task, *, steps: int = 50, candidates: int = 10) -> tuple[Tensor, Tensor]:
    """Steps to the nearest boundary of the model made linear, 2 % beyond it."""
    method = foolbox.attacks.L2DeepFoolAttack(steps=steps, candidates=candidates, overshoot=0.02)
    images = task.through_foolbox(method)
    beaten = per_image(task.beaten(images))
    return torch.where(beaten, images, task.images), counted(task, steps)


@register("L2", minimal=True, targets=True, source="Rony et al. 2019, arXiv 1811.09600")
def ddn(
    task: Task, *, steps: int = 100, initial_norm: float = 1.0, gamma: float = 0.05
) -> tuple[Tensor, Tensor]:
    """Gradient steps whose norm shrinks by `gamma` where the image is beaten, else grows.

    foolbox's own draws from the global generator where a gradient is zero, so that its result
    depends on the batch; here that direction depends on (seed, image id).
    """
    x, classes = task.images, task.labels if task.targets is None else task.targets
    uphill = 1.0 if task.targets is None else -1.0
    delta = torch.zeros_like(x)
    norm = torch.full((len(x),), initial_norm, device=x.device)
    best = torch.zeros_like(x)
    best_norm = torch.full((len(x),), math.inf, device=x.device)
    largest = torch.maximum(x, 1 - x).flatten(1).norm(dim=1)
    for step in range(steps):
        moved = (x + delta).requires_grad_()
        with torch.enable_grad():
            logits = task.model(moved)
            loss = uphill * F.cross_entropy(logits, classes, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
        wrong = logits.argmax(1) != classes
        beaten = wrong if task.targets is None else ~wrong
        size = delta.flatten(1).norm(dim=1)
        closer = beaten & (size < best_norm)
        best = torch.where(per_image(closer), delta, best)
        best_norm = torch.where(closer, size, best_norm)

        length = gradient.flatten(1).norm(dim=1)
        flat = length == 0
        if flat.any():
            drawn = Stream(task.seed, task.ids, "ddn", step).normal(x.shape[1:])
            gradient = torch.where(per_image(flat), drawn, gradient)
            length = gradient.flatten(1).norm(dim=1)
        rate = 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2
        delta = delta + rate * gradient / per_image(length)
        norm = torch.minimum(norm * torch.where(beaten, 1 - gamma, 1 + gamma), largest)
        delta = delta * per_image(norm / delta.flatten(1).norm(dim=1).clamp_min(1e-12))
        delta = (x + delta).clamp(0, 1) - x
    return (x + best).clamp(0, 1), counted(task, steps)


@register(
    "Linf",
    minimal=True,
    black_box=True,
    targets=False,
    source="Chen and Gu 2020, arXiv 2006.12792",
)
def rays(task: Task, *, queries: int = 400) -> tuple[Tensor, Tensor]:
    """RayS: search the sign vector along which the model's decision changes soonest.

    Needs the predicted class only. Starts from all ones and flips the signs of ever smaller
    blocks; a flip that still beats the model at the best radius so far is kept, and the radius
    shrinks by ten halvings of an interval. Draws nothing at random.
    """
    x = task.images.flatten(1)
    dim = x.shape[1]
    sign = torch.ones_like(x)
    radius = torch.ones(len(x), device=x.device)
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    used = counted(task, 0)

    def beats(index: Tensor, signs: Tensor, radii: Tensor) -> Tensor:
        used[index] += 1
        moved = (x[index] + radii[:, None] * signs).clamp(0, 1)
        return task.at(index).beaten(moved.view(-1, *task.images.shape[1:]))

    def attempt(index: Tensor, start: int, end: int) -> None:
        signs = sign[index]
        signs[:, start:end] *= -1
        won = beats(index, signs, radius[index])
        index, signs = index[won], signs[won]
        if not len(index):
            return
        high = radius[index]
        low = torch.zeros_like(high)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            inside = beats(index, signs, middle)
            high, low = torch.where(inside, middle, high), torch.where(inside, low, middle)
        sign[index], radius[index], found[index] = signs, high, True

    def left() -> Tensor:
        return (used + 1 + _HALVINGS <= queries).nonzero().squeeze(1)

    level, block = 0, 0
    index = left()
    if len(index):
        attempt(index, 0, 0)
    while len(index := left()):
        size = math.ceil(dim / 2**level)
        attempt(index, block * size, (block + 1) * size)
        block += 1
        if block * size >= dim:
            level, block = (level + 1 if size > 1 else 0), 0
    moved = (x + radius[:, None] * sign).clamp(0, 1)
    return torch.where(found[:, None], moved, x).view_as(task.images), used


_HALVINGS = 10

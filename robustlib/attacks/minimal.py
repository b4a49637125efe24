"""Attacks that search the smallest perturbation, with gradients or from decisions alone."""

from __future__ import annotations

import math

import foolbox
import torch
from torch import Tensor
from torch.nn import functional as F

from robustlib.attacks.guard import margin
from robustlib.attacks.registry import Task, counted, per_image, register
from robustlib.core.checks import check_number
from robustlib.core.randomness import Stream


@register("L2", minimal=True, targets=True, source="Carlini and Wagner 2017, arXiv 1608.04644")
def cw(
    task: Task, *, steps: int = 100, stepsize: float = 0.3, gamma: float = 0.05
) -> tuple[Tensor, Tensor]:
    """Adam on |delta|^2 + c max(margin, 0), pixels clipped to [0, 1].

    The authors search c from 1e-2 to 1e10 with up to 10,000 steps for each value. Here c starts
    at what the boundary of the model made linear asks for and grows by a fifth at each step until
    the image is first beaten; from then on it shrinks by `gamma` at each step that beats it, else
    grows. The step length starts at `stepsize` times the distance to that boundary, by pixel, and
    falls to 0 along a cosine; Adam sees gradients of norm 1. These are this project's choices;
    on shapes10, 50 steps left a standard model within half a point of what 300 did.
    """
    gamma = check_number(gamma, "gamma", low=0, high=0.5)
    x, classes = task.images, task.labels if task.targets is None else task.targets
    toward = 1.0 if task.targets is None else -1.0
    root = math.sqrt(x[0].numel())
    here, best = x, x
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    best_norm = torch.full_like(x[:, 0, 0, 0], math.inf)
    for step in range(1, steps + 1):
        moved = here.clone().requires_grad_()
        with torch.enable_grad():
            value = toward * margin(task.model(moved), classes)
            (gradient,) = torch.autograd.grad(value.sum(), moved)
        value = value.detach()
        if step == 1:
            slope = _length(gradient).clamp_min(1e-12)
            distance = (value / slope).clamp(max=root / 2)  # every image can be made grey
            c = 2 * distance / slope
            rate = stepsize * (distance / root).clamp(min=0.01)
        beaten = value < 0
        size = _length(here - x)
        closer = beaten & (size < best_norm)
        best = torch.where(per_image(closer), here, best)
        best_norm = torch.where(closer, size, best_norm)

        c = torch.where(best_norm.isinf(), 1.2 * c, c * _shrink(beaten, gamma))
        downhill = 2 * (here - x) + per_image(c * ~beaten) * gradient
        downhill = downhill / per_image(_length(downhill).clamp_min(1e-12))
        first = 0.9 * first + 0.1 * downhill
        second = 0.999 * second + 0.001 * downhill.square()
        move = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        now = rate * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        here = (here - per_image(now) * move).clamp(0, 1)
    return best, counted(task, steps)


def _length(difference: Tensor) -> Tensor:
    return difference.flatten(1).norm(dim=1)


def _shrink(beaten: Tensor, gamma: float) -> Tensor:
    """float32 (N,): 1 - gamma where the image is beaten, else 1 + gamma."""
    return 1 + gamma * (1 - 2 * beaten.to(torch.float32))


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
    gamma = check_number(gamma, "gamma", low=0, high=0.5)
    x, classes = task.images, task.labels if task.targets is None else task.targets
    uphill = 1.0 if task.targets is None else -1.0
    delta = torch.zeros_like(x)
    norm = torch.full_like(x[:, 0, 0, 0], initial_norm)
    best = torch.zeros_like(x)
    best_norm = torch.full_like(norm, math.inf)
    largest = _length(torch.maximum(x, 1 - x))
    for step in range(steps):
        moved = (x + delta).requires_grad_()
        with torch.enable_grad():
            logits = task.model(moved)
            loss = uphill * F.cross_entropy(logits, classes, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
        wrong = logits.argmax(1) != classes
        beaten = wrong if task.targets is None else ~wrong
        size = _length(delta)
        closer = beaten & (size < best_norm)
        best = torch.where(per_image(closer), delta, best)
        best_norm = torch.where(closer, size, best_norm)

        length = _length(gradient)
        flat = length == 0
        if flat.any():
            drawn = Stream(task.seed, task.ids, "ddn", step).normal(x.shape[1:])
            gradient = torch.where(per_image(flat), drawn, gradient)
            length = _length(gradient)
        rate = 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2
        delta = delta + rate * gradient / per_image(length)
        norm = torch.minimum(norm * _shrink(beaten, gamma), largest)
        delta = delta * per_image(norm / _length(delta).clamp_min(1e-12))
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
    radius = torch.ones_like(x[:, 0])
    found = torch.zeros_like(radius, dtype=torch.bool)
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

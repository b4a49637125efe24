"""Attacks that search the smallest perturbation, with gradients or from decisions alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import foolbox
import torch
from torch import Tensor
from torch.nn import functional as F

from robustlib.attacks.guard import margin
from robustlib.attacks.pool import State, pooled
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
    on shapes10 (version 2), 50 steps left a standard model within half a point of what 300 did.
    """
    gamma = check_number(gamma, "gamma", low=0, high=0.5)
    root = math.sqrt(task.images[0].numel())

    def begin(part: Task) -> _CW:
        x = part.images
        zero = torch.zeros_like(x[:, 0, 0, 0])
        moments = torch.zeros_like(x), torch.zeros_like(x)
        return _CW(counted(part, 0), x, torch.full_like(zero, math.inf), x, zero, zero, *moments)

    def advance(part: Task, s: _CW) -> Tensor:
        classes = part.labels if part.targets is None else part.targets
        moved = s.here.detach().requires_grad_()
        with torch.enable_grad():
            value = margin(part.model(moved), classes)
            value = value if part.targets is None else -value
            (gradient,) = torch.autograd.grad(value.sum(), moved)
        value = value.detach()
        if (s.step == 0).any():
            slope = _length(gradient).clamp_min(1e-12)
            distance = (value / slope).clamp(max=root / 2)  # every image can be made grey
            s.c = torch.where(s.step == 0, 2 * distance / slope, s.c)
            rate = stepsize * (distance / root).clamp(min=0.01)
            s.rate = torch.where(s.step == 0, rate, s.rate)
        beaten = value < 0
        offset = s.here - part.images
        _keep_closest(s, s.here, beaten, _length(offset))

        s.c = torch.where(s.norm.isinf(), 1.2 * s.c, s.c * _shrink(beaten, gamma))
        downhill = (gradient * per_image(s.c * ~beaten)).add_(offset, alpha=2)
        downhill.div_(per_image(_length(downhill).clamp_min_(1e-12)))
        s.first.mul_(0.9).add_(downhill, alpha=0.1)
        s.second.mul_(0.999).addcmul_(downhill, downhill, value=0.001)
        before = s.step.to(s.rate.dtype)
        s.step = s.step + 1
        now = s.rate * _cosine(before / steps) / (1 - 0.9 ** (before + 1))
        deviation = (s.second / per_image(1 - 0.999 ** (before + 1))).sqrt_().add_(1e-8)
        s.here = (s.here - (s.first / deviation).mul_(per_image(now))).clamp_(0, 1)
        return part.near(s.norm) | (s.step == steps)

    return pooled(task, begin, advance)


@dataclass
class _Closest(State):
    norm: Tensor  # of what was found, infinite if nothing


@dataclass
class _CW(_Closest):
    here: Tensor
    c: Tensor
    rate: Tensor
    first: Tensor  # Adam's moments
    second: Tensor


def _keep_closest(s: _Closest, here: Tensor, beaten: Tensor, norm: Tensor) -> None:
    closer = beaten & (norm < s.norm)
    s.found = torch.where(per_image(closer), here, s.found)
    s.norm = torch.where(closer, norm, s.norm)


def _length(difference: Tensor) -> Tensor:
    return difference.flatten(1).norm(dim=1)


def _cosine(share: Tensor) -> Tensor:
    """From 1 to 0 as the share of the steps taken, float32 (N,), goes from 0 to 1."""
    return (1 + torch.cos(math.pi * share)) / 2


def _shrink(beaten: Tensor, gamma: float) -> Tensor:
    """float32 (N,): 1 - gamma where the image is beaten, else 1 + gamma."""
    return 1 + gamma * (1 - 2 * beaten.to(torch.float32))


@register(
    "L2", minimal=True, targets=False, source="Moosavi-Dezfooli et al. 2016, arXiv 1511.04599"
)
def deepfool(task: Task, *, steps: int = 50, candidates: int = 10) -> tuple[Tensor, Tensor]:
    """Steps to the nearest boundary of the model made linear, 2 % beyond it."""
    method = foolbox.attacks.L2DeepFoolAttack(steps=steps, candidates=candidates, overshoot=0.02)
    parts = []
    for part in task.batches():
        model = foolbox.PyTorchModel(part.model, bounds=(0, 1), device=part.images.device)
        parts.append(
            method.run(model, part.images, foolbox.criteria.Misclassification(part.labels))
        )
    images = torch.cat(parts)
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

    def begin(part: Task) -> _DDN:
        x = part.images
        budget = torch.full_like(x[:, 0, 0, 0], initial_norm)
        largest = _length(torch.maximum(x, 1 - x))
        return _DDN(counted(part, 0), x, torch.full_like(budget, math.inf), x, budget, largest)

    def advance(part: Task, s: _DDN) -> Tensor:
        classes = part.labels if part.targets is None else part.targets
        moved = s.here.detach().requires_grad_()
        with torch.enable_grad():
            logits = part.model(moved)
            loss = F.cross_entropy(logits, classes, reduction="sum")
            (gradient,) = torch.autograd.grad(loss if part.targets is None else -loss, moved)
        wrong = logits.argmax(1) != classes
        beaten = wrong if part.targets is None else ~wrong
        delta = s.here - part.images
        _keep_closest(s, s.here, beaten, _length(delta))

        flat = _length(gradient) == 0
        for step in s.step[flat].unique().tolist():
            drawn = Stream(part.seed, part.ids, "ddn", step).normal(delta.shape[1:])
            gradient = torch.where(per_image(flat & (s.step == step)), drawn, gradient)
        length = _length(gradient)
        rate = 0.01 + 0.99 * _cosine(s.step.to(length.dtype) / steps)
        delta.add_(gradient * per_image(rate / length))
        s.budget = torch.minimum(s.budget * _shrink(beaten, gamma), s.largest)
        delta.mul_(per_image(s.budget / _length(delta).clamp_min_(1e-12)))
        s.here = delta.add_(part.images).clamp_(0, 1)
        s.step = s.step + 1
        return part.near(s.norm) | (s.step == steps)

    return pooled(task, begin, advance)


@dataclass
class _DDN(_Closest):
    here: Tensor
    budget: Tensor  # the norm of the next perturbation
    largest: Tensor  # what it may grow to


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
    dim = task.images[0].numel()
    sizes = [dim]
    while sizes[-1] > 1:
        sizes.append(math.ceil(dim / 2 ** len(sizes)))
    blocks = torch.tensor(sizes, device=task.ids.device)  # their sizes, level by level
    pixel = torch.arange(dim, device=task.ids.device)

    def begin(part: Task) -> _Ray:
        x, none = part.images, counted(part, 0)
        radius = torch.ones_like(x[:, 0, 0, 0])
        return _Ray(none, x, radius, torch.ones_like(x), radius, none, none - 1, none)

    def advance(part: Task, s: _Ray) -> Tensor:
        halving = s.halvings > 0
        size = torch.where(s.level < 0, 0, blocks[s.level])  # at first, nothing is flipped
        first = s.block * size
        flip = (pixel >= first[:, None]) & (pixel < (first + size)[:, None])
        flip = (flip & ~halving[:, None]).view_as(s.sign)
        sign = torch.where(flip, -s.sign, s.sign)
        radius = torch.where(halving, (s.low + s.radius) / 2, s.radius)
        shown = (part.images + per_image(radius) * sign).clamp_(0, 1)
        wrong = ~part.model.right(shown)
        s.found = torch.where(per_image(wrong), shown, s.found)
        s.radius = torch.where(wrong, radius, s.radius)
        s.low = torch.where(wrong, s.low, radius)

        won = wrong & ~halving
        s.sign = torch.where(per_image(won), sign, s.sign)
        s.low = torch.where(won, 0, s.low)
        s.halvings = torch.where(won, _HALVINGS, (s.halvings - 1).clamp_min(0))
        s.block = s.block + ~halving
        through = ~halving & (s.block * size >= dim) | (s.level < 0)
        s.level = torch.where(through, (s.level + 1) % len(sizes), s.level)
        s.block = torch.where(through, 0, s.block)
        s.step = s.step + 1
        over = (s.step + 1 + _HALVINGS > queries) | part.near(s.radius)
        return over & (s.halvings == 0)

    if queries < 1 + _HALVINGS:
        return task.images, counted(task, 0)
    return pooled(task, begin, advance)


@dataclass
class _Ray(State):
    radius: Tensor  # the smallest that beats the model along `sign`, or 1
    sign: Tensor
    low: Tensor  # the interval that is halved is from here to `radius`
    halvings: Tensor  # still to do
    level: Tensor  # block number `block` of this level is flipped next
    block: Tensor


_HALVINGS = 10

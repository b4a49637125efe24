"""Attacks that follow the sign of the gradient within an Linf ball."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from robustlib.attacks.pool import State, in_turn, pooled
from robustlib.attacks.registry import Task, counted, per_image, register
from robustlib.core.randomness import Stream

Until = Literal["wrong", "target", "end"]
"""When an image is done: in any wrong class, in its target, or after all steps."""


@register("Linf", targets=True, source="Goodfellow et al. 2015, arXiv 1412.6572")
def fgsm(task: Task) -> tuple[Tensor, Tensor]:
    """x + eps sign(grad L(x, y)), or x - eps sign(grad L(x, t)) for a target t."""
    return _follow_sign(task, steps=1, stepsize=task.eps, until="end")


@register("Linf", targets=True, source="Madry et al. 2018, arXiv 1706.06083")
def pgd(
    task: Task, *, steps: int = 20, restarts: int = 3, stop: bool = True
) -> tuple[Tensor, Tensor]:
    """Projected gradient steps of 2.5 eps / steps from random starts.

    An image is done once it is beaten; if targets were given, once it is in its target. Without
    `stop` it takes all steps, as examples that are to fool other models, too, should. A restart is
    for the images that still stand. Three restarts are this project's choice.
    """
    return _pgd(task, steps, restarts, _until(task, stop))


@register("Linf", targets=False, source="Kurakin et al. 2017, arXiv 1607.02533; PGD as above")
def pgd_least_likely(task: Task, *, steps: int = 20, restarts: int = 1) -> tuple[Tensor, Tensor]:
    """PGD toward the class that the model finds least likely on the clean image.

    Any wrong class counts as success, and ends it.
    """
    return _pgd(replace(task, targets=task.logits().argmin(1)), steps, restarts, "wrong")


@register("Linf", targets=True, source="Dong et al. 2018, arXiv 1710.06081")
def mi_fgsm(
    task: Task, *, steps: int = 10, momentum: float = 1.0, stop: bool = True
) -> tuple[Tensor, Tensor]:
    """x += alpha sign(g), g = momentum g + grad / |grad|_1, alpha = eps / steps.

    `stop` as in `pgd`.
    """
    return _follow_sign(
        task, steps=steps, stepsize=task.eps / steps, until=_until(task, stop), momentum=momentum
    )


def _until(task: Task, stop: bool) -> Until:
    if not stop:
        return "end"
    return "wrong" if task.targets is None else "target"


def _pgd(task: Task, steps: int, restarts: int, until: Until) -> tuple[Tensor, Tensor]:
    stepsize = task.eps * min(1.0, 2.5 / steps)

    def attempt(restart: int, part: Task, _: Tensor) -> tuple[Tensor, Tensor]:
        return _follow_sign(part, steps=steps, stepsize=stepsize, until=until, restart=restart)

    return in_turn(task, [partial(attempt, restart) for restart in range(restarts)])


@dataclass
class _State(State):
    total: Tensor  # the gradients so far, of L1 norm 1


def _follow_sign(
    task: Task,
    *,
    steps: int,
    stepsize: float,
    until: Until,
    momentum: float = 0.0,
    restart: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Steps of the sign, clipped to the ball and [0, 1]; from the image, or a random start."""

    def begin(part: Task) -> _State:
        x = part.images
        if restart is not None:
            stream = Stream(part.seed, part.ids, "pgd", restart)
            x = (x + stream.uniform(x.shape[1:], -part.eps, part.eps)).clamp_(0, 1)
        return _State(counted(part, 0), x, torch.zeros_like(x))

    def advance(part: Task, s: _State) -> Tensor:
        x = s.found.detach().requires_grad_()
        classes = part.labels if part.targets is None else part.targets
        with torch.enable_grad():
            logits = part.model(x)
            loss = F.cross_entropy(logits, classes, reduction="sum")
            (gradient,) = torch.autograd.grad(loss if part.targets is None else -loss, x)
        predicted = logits.argmax(1)
        done = torch.zeros_like(part.labels, dtype=torch.bool)
        if until != "end":
            done = predicted != part.labels if until == "wrong" else predicted == classes
        if momentum:
            size = gradient.abs().sum((1, 2, 3), keepdim=True).clamp_min_(1e-30)
            s.total = s.total.mul(momentum).add_(gradient / size)
            gradient = s.total
        low, high = part.images - part.eps, part.images + part.eps
        moved = s.found.add(gradient.sign(), alpha=stepsize).clamp_(low, high).clamp_(0, 1)
        s.found = torch.where(per_image(done), s.found, moved)
        s.step = s.step + ~done
        return done | (s.step == steps)

    return pooled(task, begin, advance)

"""Attacks without step sizes to tune, and their worst case (Croce and Hein 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from robustlib.attacks.guard import margin
from robustlib.attacks.registry import Task, counted, per_image, register
from robustlib.core.randomness import Stream

AUTO = "Croce and Hein 2020, arXiv 2003.01690"
Loss = Callable[[Tensor, Task], Tensor]
"""(logits (N, classes), task of the same N images) to what the attack raises, (N,)."""


def checkpoints(steps: int) -> list[int]:
    """The steps w_j after which APGD may halve its step size, 0 first.

    w_j = ceil(p_j steps), p_0 = 0, p_1 = 0.22, p_j+1 = p_j + max(p_j - p_j-1 - 0.03, 0.06).
    """
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    whole = (math.ceil(round(share * steps, 9)) for share in shares)
    return sorted({step for step in whole if step <= steps})


@dataclass
class _State:
    """Where APGD stands with each image that is not beaten yet. Each is (N, ...)."""

    x: Tensor
    previous: Tensor
    value: Tensor
    gradient: Tensor
    best: Tensor
    best_value: Tensor
    best_gradient: Tensor
    stepsize: Tensor
    rises: Tensor  # steps since the last checkpoint that raised the loss
    stepsize_then: Tensor  # at the last checkpoint
    best_value_then: Tensor

    def at(self, index: Tensor) -> _State:
        return _State(**{name: value[index] for name, value in vars(self).items()})


def apgd(task: Task, loss: Loss, *, steps: int, name: str, rho: float = 0.75) -> tuple:
    """Auto-PGD (algorithm 1 of the paper) on `loss`, within the Linf ball.

    Steps start at 2 eps, with a momentum of 0.25 for the last move. At a checkpoint an image's
    step is halved, and it goes on from its best point, if fewer than `rho` of the steps since
    the last checkpoint raised its loss, or if neither its step nor its best loss changed since.
    An image is done when it is beaten.

    Returns images (N, 3, H, W), those that beat the model or else those of the highest loss, and
    the steps of each, int64 (N,).
    """
    result, spent = task.images.clone(), counted(task, steps)
    index = torch.arange(len(result), device=result.device)
    low, high = (task.images - task.eps).clamp(min=0), (task.images + task.eps).clamp(max=1)
    drawn = Stream(task.seed, task.ids, name).uniform(result.shape[1:], -task.eps, task.eps)
    x = torch.clamp(task.images + drawn, low, high)
    value, gradient, beaten = _climb(task, loss, x)
    stepsize = torch.full_like(value, 2 * task.eps)
    state = _State(
        *(x, x, value, gradient),
        *(x, value, gradient),
        *(stepsize, torch.zeros_like(value), stepsize, value),
    )
    marks = checkpoints(steps)
    for step in range(steps + 1):
        if step:
            s = state
            aim = torch.clamp(s.x + per_image(s.stepsize) * s.gradient.sign(), low, high)
            if step > 1:
                aim = torch.clamp(s.x + 0.75 * (aim - s.x) + 0.25 * (s.x - s.previous), low, high)
            s.previous, s.x = s.x, aim
            value, s.gradient, beaten = _climb(task, loss, aim)
            s.rises = s.rises + (value > s.value)
            s.value = value
            _keep_best(s)
            if step in marks:
                _halve(s, rho * (step - marks[marks.index(step) - 1]))
        if beaten.any():
            result[index[beaten]] = state.x[beaten]
            spent[index[beaten]] = step
            stand = (~beaten).nonzero().squeeze(1)
            index, task, state = index[stand], task.at(stand), state.at(stand)
            low, high = low[stand], high[stand]
            if not len(index):
                break
    result[index] = state.best
    return result, spent


def _climb(task: Task, loss: Loss, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, its gradient, and whether the model is wrong, at x."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = task.model(x)
        value = loss(logits, task)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient, logits.argmax(1) != task.labels


def _keep_best(s: _State) -> None:
    better = s.value > s.best_value
    s.best = torch.where(per_image(better), s.x, s.best)
    s.best_gradient = torch.where(per_image(better), s.gradient, s.best_gradient)
    s.best_value = torch.where(better, s.value, s.best_value)


def _halve(s: _State, enough: float) -> None:
    """At a checkpoint: conditions 1 and 2 of the paper, and what follows from them."""
    stalled = (s.stepsize == s.stepsize_then) & (s.best_value == s.best_value_then)
    halve = (s.rises < enough) | stalled
    s.stepsize_then, s.best_value_then = s.stepsize, s.best_value
    s.stepsize = torch.where(halve, s.stepsize / 2, s.stepsize)
    s.x = torch.where(per_image(halve), s.best, s.x)
    s.gradient = torch.where(per_image(halve), s.best_gradient, s.gradient)
    s.value = torch.where(halve, s.best_value, s.value)
    s.rises = torch.zeros_like(s.rises)


def _cross_entropy(logits: Tensor, task: Task) -> Tensor:
    return F.cross_entropy(logits, task.labels, reduction="none")


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_1 - (z_3 + z_4) / 2), z_k the k-th largest logit (section 4.2).

    With fewer than four classes z_4 doesn't exist, and it is z_t - z_y (this project's choice).

    Args:
        logits: float32 (N, classes).
        labels: int64 (N,), y.
        targets: int64 (N,), t.

    Returns float32 (N,).
    """
    rows = torch.arange(len(logits), device=logits.device)
    difference = logits[rows, targets] - logits[rows, labels]
    if logits.shape[1] < 4:
        return difference
    top = logits.topk(4, dim=1).values
    return difference / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def _dlr(logits: Tensor, task: Task) -> Tensor:
    assert task.targets is not None
    return targeted_dlr(logits, task.labels, task.targets)


@register("Linf", targets=False, source=AUTO)
def apgd_ce(task: Task, *, steps: int = 100) -> tuple[Tensor, Tensor]:
    """Auto-PGD on the cross-entropy, one random start."""
    return apgd(task, _cross_entropy, steps=steps, name="apgd_ce")


@register("Linf", targets=True, source=AUTO)
def apgd_dlr(task: Task, *, steps: int = 100, classes: int = 9) -> tuple[Tensor, Tensor]:
    """Auto-PGD on the targeted DLR loss, toward the most likely wrong classes in turn.

    `classes` of them, or all if there are fewer; each run is for the images that still stand.
    Given targets are the only ones. Any wrong class counts as success.
    """
    if task.targets is not None:
        return apgd(task, _dlr, steps=steps, name="apgd_dlr")
    with torch.no_grad():
        logits = task.model(task.images)
    rows = torch.arange(len(logits), device=logits.device)
    logits[rows, task.labels] = -math.inf
    wrong = logits.argsort(dim=1, descending=True)[:, : min(classes, logits.shape[1] - 1)]

    def toward(rank: int) -> Callable[[Task, Tensor], tuple[Tensor, Tensor]]:
        def attack(part: Task, index: Tensor) -> tuple[Tensor, Tensor]:
            aimed = replace(part, targets=wrong[index, rank])
            return apgd(aimed, _dlr, steps=steps, name=f"apgd_dlr {rank}")

        return attack

    return _in_turn(task, [toward(rank) for rank in range(wrong.shape[1])])


def _in_turn(
    task: Task, attacks: list[Callable[[Task, Tensor], tuple[Tensor, Tensor]]]
) -> tuple[Tensor, Tensor]:
    """Each attack on the images that those before it left standing."""
    images, spent = task.images.clone(), counted(task, 0)
    standing = torch.arange(len(images), device=images.device)
    for attack in attacks:
        part = task.at(standing)
        images[standing], steps = attack(part, standing)
        spent[standing] += steps
        standing = standing[~part.beaten(images[standing])]
        if not len(standing):
            break
    return images, spent


def square_side(step: int, queries: int, height: int, width: int, p: float) -> int:
    """Side of Square's window: p of the area at first, halved as in the paper (section 5)."""
    scaled = step / queries * 10_000
    halvings = sum(scaled > bound for bound in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
    side = round(math.sqrt(p / 2**halvings * height * width))
    return min(max(side, 1), height, width)


@register(
    "Linf",
    black_box=True,
    targets=False,
    source="Andriushchenko et al. 2020, arXiv 1912.00049",
)
@torch.no_grad()
def square(task: Task, *, queries: int = 1000, p: float = 0.8) -> tuple[Tensor, Tensor]:
    """Random search with windows of +-2 eps that lower the margin; needs logits, no gradient.

    Starts from vertical stripes of +-eps. AutoAttack allows 5000 queries.
    """
    result, spent = task.images.clone(), counted(task, queries)
    index = torch.arange(len(result), device=result.device)
    low, high = (task.images - task.eps).clamp(min=0), (task.images + task.eps).clamp(max=1)
    height, width = result.shape[2:]
    rows, columns = (torch.arange(n, device=result.device) for n in (height, width))
    best, lowest = task.images, torch.full_like(result[:, 0, 0, 0], math.inf)
    for query in range(queries):
        stream = Stream(task.seed, task.ids, "square", query)
        if query == 0:
            move = task.eps * stream.sign((3, 1, width))
        else:
            side = square_side(query, queries, height, width, p)
            top = stream.integers(0, height - side + 1, (1,))
            left = stream.integers(0, width - side + 1, (1,))
            inside_rows = (rows >= top) & (rows < top + side)
            inside_columns = (columns >= left) & (columns < left + side)
            window = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
            move = window * (2 * task.eps * stream.sign((3, 1, 1)))
        tried = torch.clamp(best + move, low, high)
        value = margin(task.model(tried), task.labels)
        better = value < lowest
        best = torch.where(per_image(better), tried, best)
        lowest = torch.where(better, value, lowest)
        beaten = value < 0
        if beaten.any():
            result[index[beaten]] = best[beaten]
            spent[index[beaten]] = query + 1
            stand = (~beaten).nonzero().squeeze(1)
            index, task, best, lowest = index[stand], task.at(stand), best[stand], lowest[stand]
            low, high = low[stand], high[stand]
            if not len(index):
                break
    result[index] = best
    return result, spent


@register("Linf", targets=False, source=AUTO)
def strong(
    task: Task, *, steps: int = 100, classes: int = 9, queries: int = 1000
) -> tuple[Tensor, Tensor]:
    """The worst case for each image of apgd_ce, apgd_dlr and square.

    Each is run on the images that the ones before left standing. AutoAttack's FAB is left out,
    and its Square has 5000 queries. The steps are the sum of gradient steps and queries.
    """
    return _in_turn(
        task,
        [
            lambda part, _: apgd_ce(part, steps=steps),
            lambda part, _: apgd_dlr(part, steps=steps, classes=classes),
            lambda part, _: square(part, queries=queries),
        ],
    )

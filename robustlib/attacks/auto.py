"""Attacks without step sizes to tune, and their worst case (Croce and Hein 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from robustlib.attacks.guard import margin
from robustlib.attacks.pool import State, in_turn, pooled
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
class _State(State):
    x: Tensor
    previous: Tensor
    value: Tensor
    gradient: Tensor
    best_value: Tensor  # of `found`
    best_gradient: Tensor
    stepsize: Tensor
    rises: Tensor  # steps since the last checkpoint that raised the loss
    stepsize_then: Tensor  # at the last checkpoint
    best_value_then: Tensor


def apgd(task: Task, loss: Loss, *, steps: int, name: str, rho: float = 0.75) -> tuple:
    """Auto-PGD (algorithm 1 of the paper) on `loss`, within the Linf ball.

    Steps start at 2 eps, with a momentum of 0.25 for the last move. At a checkpoint an image's
    step is halved, and it goes on from its best point, if fewer than `rho` of the steps since
    the last checkpoint raised its loss, or if neither its step nor its best loss changed since.
    An image is done when it is beaten.

    Returns images (N, 3, H, W), those that beat the model or else those of the highest loss, and
    the steps of each, int64 (N,).
    """
    marks = checkpoints(steps)
    enough = task.images.new_full((steps + 1,), math.nan)  # NaN: no checkpoint
    for before, mark in zip([0, *marks], marks, strict=False):
        enough[mark] = rho * (mark - before)

    def begin(part: Task) -> _State:
        low, high = _ball(part)
        drawn = Stream(part.seed, part.ids, name).uniform(low.shape[1:], -part.eps, part.eps)
        x = torch.clamp(part.images + drawn, low, high)
        size = torch.full_like(x[:, 0, 0, 0], 2 * part.eps)
        none, lowest = torch.zeros_like(size), torch.full_like(size, -math.inf)
        return _State(
            *(counted(part, 0), x, x, x, lowest, x),
            *(lowest, x, size, none, size, lowest),
        )

    def advance(part: Task, s: _State) -> Tensor:
        value, s.gradient, beaten = _climb(part, loss, s.x)
        s.rises = s.rises + (value > s.value)
        s.value = value
        _keep_best(s)
        s.found = torch.where(per_image(beaten), s.x, s.found)
        _halve(s, enough[s.step])
        low, high = _ball(part)
        aim = torch.clamp(s.x + per_image(s.stepsize) * s.gradient.sign(), low, high)
        share = per_image(1 - 0.25 * (s.step > 0).to(value.dtype))
        aim = torch.clamp(s.x + share * (aim - s.x) + 0.25 * (s.x - s.previous), low, high)
        s.previous, s.x = s.x, aim
        done = beaten | (s.step == steps)
        s.step = s.step + ~done
        return done

    return pooled(task, begin, advance)


def _ball(task: Task) -> tuple[Tensor, Tensor]:
    """The lowest and the highest pixels allowed."""
    return (task.images - task.eps).clamp_(min=0), (task.images + task.eps).clamp_(max=1)


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
    s.found = torch.where(per_image(better), s.x, s.found)
    s.best_gradient = torch.where(per_image(better), s.gradient, s.best_gradient)
    s.best_value = torch.where(better, s.value, s.best_value)


def _halve(s: _State, enough: Tensor) -> None:
    """For images at a checkpoint: conditions 1 and 2 of the paper, and what follows from them.

    enough: float32 (N,), the rises that save the step; NaN for images at no checkpoint.
    """
    there = ~enough.isnan()
    if not there.any():
        return
    stalled = (s.stepsize == s.stepsize_then) & (s.best_value == s.best_value_then)
    halve = there & ((s.rises < enough) | stalled)
    s.stepsize_then = torch.where(there, s.stepsize, s.stepsize_then)
    s.best_value_then = torch.where(there, s.best_value, s.best_value_then)
    s.stepsize = torch.where(halve, s.stepsize / 2, s.stepsize)
    s.x = torch.where(per_image(halve), s.found, s.x)
    s.gradient = torch.where(per_image(halve), s.best_gradient, s.gradient)
    s.value = torch.where(halve, s.best_value, s.value)
    s.rises = torch.where(there, 0, s.rises)


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
    logits = task.logits()
    rows = torch.arange(len(logits), device=logits.device)
    logits[rows, task.labels] = -math.inf
    wrong = logits.argsort(dim=1, descending=True)[:, : min(classes, logits.shape[1] - 1)]

    def toward(rank: int) -> Callable[[Task, Tensor], tuple[Tensor, Tensor]]:
        def attack(part: Task, index: Tensor) -> tuple[Tensor, Tensor]:
            aimed = replace(part, targets=wrong[index, rank])
            return apgd(aimed, _dlr, steps=steps, name=f"apgd_dlr {rank}")

        return attack

    return in_turn(task, [toward(rank) for rank in range(wrong.shape[1])])


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
    height, width = task.images.shape[2:]
    rows, columns = (torch.arange(n, device=task.ids.device) for n in (height, width))
    sides = torch.tensor(
        [square_side(query, queries, height, width, p) for query in range(queries)],
        device=task.ids.device,
    )

    def begin(part: Task) -> _Search:
        stream = Stream(part.seed, part.ids, "square")
        x, lowest = part.images, torch.full_like(part.images[:, 0, 0, 0], math.inf)
        stripes = part.eps * stream.sign((3, 1, width))
        places = stream.uniform((queries, 2))
        return _Search(counted(part, 0), x, lowest, stripes, places, stream.sign((queries, 3)))

    def advance(part: Task, s: _Search) -> Tensor:
        image = torch.arange(len(s.step), device=s.step.device)
        side = sides[s.step][:, None]
        room = torch.tensor([height, width], device=side.device) - side
        place = torch.minimum((s.places[image, s.step] * (room + 1)).long(), room)
        top, left = place[:, :1], place[:, 1:]
        inside_rows = (rows >= top) & (rows < top + side)
        inside_columns = (columns >= left) & (columns < left + side)
        window = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
        move = window * (2 * part.eps * s.signs[image, s.step])[:, :, None, None]
        move = torch.where(per_image(s.step == 0), s.stripes, move)
        tried = torch.clamp(s.found + move, *_ball(part))
        value = margin(part.model(tried), part.labels)
        better = value < s.lowest
        s.found = torch.where(per_image(better), tried, s.found)
        s.lowest = torch.where(better, value, s.lowest)
        s.step = s.step + 1
        return (value < 0) | (s.step == queries)

    return pooled(task, begin, advance)


@dataclass
class _Search(State):
    lowest: Tensor  # margin so far
    stripes: Tensor  # the first move, (N, 3, 1, W)
    places: Tensor  # of the windows, (N, queries, 2) in (0, 1)
    signs: Tensor  # of the later moves by channel, (N, queries, 3)


@register("Linf", targets=False, source=AUTO)
def strong(
    task: Task, *, steps: int = 100, classes: int = 9, queries: int = 1000
) -> tuple[Tensor, Tensor]:
    """The worst case for each image of apgd_ce, apgd_dlr and square.

    Each is run on the images that the ones before left standing. AutoAttack's FAB is left out,
    and its Square has 5000 queries. The steps are the sum of gradient steps and queries.
    """
    return in_turn(
        task,
        [
            lambda part, _: apgd_ce(part, steps=steps),
            lambda part, _: apgd_dlr(part, steps=steps, classes=classes),
            lambda part, _: square(part, queries=queries),
        ],
    )

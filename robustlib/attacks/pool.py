"""How attacks go through many images: in batches that stay full, and one attack after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Self, TypeVar

import torch
from torch import Tensor

from robustlib.attacks.registry import Task, counted


@dataclass
class State:
    """Where an attack stands with each of the N images in hand. Every field is (N, ...).

    Attributes:
        step: int64 (N,), steps taken so far.
        found: float32 (N, 3, H, W), what the image becomes if it is done now.
    """

    step: Tensor
    found: Tensor

    def at(self, index: Tensor) -> Self:
        """The state of some of the images."""
        return type(self)(*(getattr(self, item.name)[index] for item in fields(self)))

    def joined(self, other: Self) -> Self:
        """The state of these images and then those of `other`."""
        names = [item.name for item in fields(self)]
        return type(self)(*(torch.cat([getattr(self, n), getattr(other, n)]) for n in names))


S = TypeVar("S", bound=State)


def pooled(
    task: Task, begin: Callable[[Task], S], advance: Callable[[Task, S], Tensor]
) -> tuple[Tensor, Tensor]:
    """Take every image from `begin` through `advance` until it is done.

    At most `task.batch_size` images are in hand. An image that is done leaves, and when half of
    the batch is free, images that wait fill it up.

    Args:
        task: the images.
        begin: the state of images not yet touched.
        advance: takes one step, changing the state, and returns bool (N,), which are done now.

    Returns what the images became, (N, 3, H, W), and the steps of each, int64 (N,).
    """
    result, spent = torch.empty_like(task.images), counted(task, 0)
    waiting = torch.arange(len(result), device=result.device)
    index, waiting = waiting[: task.batch_size], waiting[task.batch_size :]
    part = task.at(index)
    state = begin(part)
    while len(index):
        done = advance(part, state)
        if not done.any():
            continue
        result[index[done]] = state.found[done]
        spent[index[done]] = state.step[done]
        stand = (~done).nonzero().squeeze(1)
        index, part, state = index[stand], part.at(stand), state.at(stand)
        room = task.batch_size - len(index)
        if len(waiting) and 2 * room >= task.batch_size:
            new, waiting = waiting[:room], waiting[room:]
            index = torch.cat([index, new])
            part, state = task.at(index), state.joined(begin(task.at(new)))
    return result, spent


def in_turn(
    task: Task, attacks: Sequence[Callable[[Task, Tensor], tuple[Tensor, Tensor]]]
) -> tuple[Tensor, Tensor]:
    """Each attack on the images that those before it left standing.

    An attack is handed their task and their positions in the whole one, int64. Returns images and
    the sum of the steps.
    """
    images, spent = task.images.clone(), counted(task, 0)
    standing, part = torch.arange(len(images), device=images.device), task
    for number, attack in enumerate(attacks):
        if number:
            standing = standing[~part.beaten(images[standing])]
            part = task.at(standing)
        if not len(standing):
            break
        images[standing], steps = attack(part, standing)
        spent[standing] += steps
    return images, spent

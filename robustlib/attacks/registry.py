"""The registry: what each attack is called, what it may use, and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from robustlib.attacks.guard import Guard
from robustlib.core.checks import check_number, check_options, keyword_options
from robustlib.core.identity import Registry

Norm = Literal["Linf", "L2"]
AttackFn = Callable[..., tuple[Tensor, Tensor]]
BATCH_SIZE = 128
"""Images handed to a model at a time: more were no faster on CPUs (this project's choice)."""


@dataclass(frozen=True)
class Task:
    """What an attack is handed: images that the model gets right, and the model, guarded.

    Attributes:
        model: maps images of this task to finite logits, with finite gradients.
        images: float32 (N, 3, H, W) in [0, 1].
        labels: int64 (N,), their classes, which the model predicts.
        ids: int64 (N,), their identities, for `robustlib.core.randomness.Stream`.
        seed: source of random numbers.
        eps: radius; infinite for a search of the smallest perturbation.
        targets: int64 (N,), the classes aimed at, or None.
        batch_size: images to hand to the model at a time, at most.
    """

    model: Guard
    images: Tensor
    labels: Tensor
    ids: Tensor
    seed: int
    eps: float
    targets: Tensor | None = None
    batch_size: int = BATCH_SIZE

    def at(self, index: Tensor) -> Task:
        """The task for some of the images."""
        targets = None if self.targets is None else self.targets[index]
        return replace(
            self,
            model=self.model.at(index),
            images=self.images[index],
            labels=self.labels[index],
            ids=self.ids[index],
            targets=targets,
        )

    def batches(self) -> Iterator[Task]:
        """The tasks for the images, batch by batch."""
        index = torch.arange(len(self.ids), device=self.ids.device)
        return map(self.at, index.split(self.batch_size))

    def logits(self) -> Tensor:
        """float32 (N, classes), what the model makes of the images."""
        with torch.no_grad():
            return torch.cat([part.model(part.images) for part in self.batches()])

    def beaten(self, images: Tensor) -> Tensor:
        """bool (N,): whether the model gets these versions of the images wrong."""
        parts = zip(self.batches(), images.split(self.batch_size), strict=True)
        return torch.cat([~part.model.right(shown) for part, shown in parts])

    def near(self, norms: Tensor) -> Tensor:
        """bool (N,): whether perturbations of these norms lie within the radius, a finite one.

        Those on its edge, within rounding, don't.
        """
        return norms <= self.eps * (1 - 1e-6) if self.eps < math.inf else norms < 0


@dataclass(frozen=True)
class AttackInfo:
    """What is known about one attack.

    Attributes:
        name: the registered name.
        norm: "Linf" or "L2", what it measures perturbations in.
        minimal: whether it searches the smallest perturbation that the model gets wrong; the
            others raise the loss within a given radius.
        black_box: whether it does without gradients.
        targets: whether it can aim at given classes.
        source: the paper it comes from.
    """

    name: str
    norm: Norm
    minimal: bool
    black_box: bool
    targets: bool
    source: str
    function: AttackFn = field(repr=False)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments that `run` passes on, with their defaults."""
        return keyword_options(self.function)

    def check_radius(self, eps: float | str | None, largest: float = 0.5) -> float:
        """Return the radius, infinity for None.

        Raises `ValueError` unless it lies in (0, `largest`]; None is for minimal attacks only.
        """
        if eps is None and self.minimal:
            return math.inf
        alone = ", or None for the smallest perturbation" if self.minimal else ""
        what = f"eps{alone} of {self.name!r}"
        unit = f"an {self.norm} radius, pixels in [0, 1]"
        return check_number(eps, what, low=0, high=largest, above=True, unit=unit)

    def check_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options; raise `ValueError` for one that it doesn't have or a bad value."""
        return check_options(given, self.options, "attack", self.name)


REGISTRY: Registry[AttackInfo] = Registry()


def register(
    norm: Norm, *, source: str, minimal: bool = False, black_box: bool = False, targets: bool
) -> Callable[[AttackFn], AttackFn]:
    """Enter a function under its own name.

    The function takes a `Task` of at least one image and, keyword-only, its hyperparameters. It
    returns images (N, 3, H, W) in [0, 1], and int64 (N,), the gradient steps (queries, for a
    black-box attack) that each took. A minimal attack returns an image that it couldn't beat
    unchanged. Whether the images do beat the model, and how far they are, the caller measures.
    """

    def enter(function: AttackFn) -> AttackFn:
        name = function.__name__
        REGISTRY[name] = AttackInfo(name, norm, minimal, black_box, targets, source, function)
        return function

    return enter


def counted(task: Task, steps: int) -> Tensor:
    """int64 (N,), `steps` for each image of the task."""
    return torch.full_like(task.ids, steps)


def per_image(values: Tensor) -> Tensor:
    """(N,) as (N, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)

"""One interface for everything that changes an image: corruptions and attacks alike.

An attack is a perturbation that needs the model. So adversarial and common perturbations enter
the same tables and the same overlapping score.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from robustlib import attacks, corruptions
from robustlib.checks import check_name, check_severity


class Perturbation(Protocol):
    """A change of images that keeps their classes.

    Attributes:
        name: what tables and plots show.
        family: "clean", a family of corruptions, "stored" (images from files whose corruption
            is not known), or "adversarial".
        severity: 1 to 5, or 0 where severities don't apply.
        needs_model: whether the result depends on the model.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def family(self) -> str: ...  # noqa: D102
    @property
    def severity(self) -> int: ...  # noqa: D102
    @property
    def needs_model(self) -> bool: ...  # noqa: D102

    def apply(
        self, images: Tensor, labels: Tensor, ids: Tensor, model: nn.Module | None, seed: int
    ) -> Tensor:
        """Perturbed copies of `images`, float32 (N, 3, H, W) in [0, 1]."""
        ...


@dataclass(frozen=True)
class Clean:
    """The identity."""

    name: str = "clean"
    family: str = "clean"
    severity: int = 0
    needs_model: bool = False

    def apply(
        self, images: Tensor, labels: Tensor, ids: Tensor, model: nn.Module | None, seed: int
    ) -> Tensor:
        """`images` themselves."""
        return images


@dataclass(frozen=True)
class Corruption:
    """A common perturbation from `robustlib.corruptions`."""

    name: str
    severity: int

    def __post_init__(self) -> None:
        check_name(self.name, corruptions.names(), "corruption")
        check_severity(self.severity)

    @property
    def family(self) -> str:
        """The corruption's family, such as "noise"."""
        return corruptions.info(self.name).family

    @property
    def needs_model(self) -> bool:
        """False."""
        return False

    def apply(
        self, images: Tensor, labels: Tensor, ids: Tensor, model: nn.Module | None, seed: int
    ) -> Tensor:
        """`robustlib.corruptions.corrupt` of the images."""
        return corruptions.corrupt(images, self.name, self.severity, seed, ids)


@dataclass(frozen=True)
class Attack:
    """An adversarial perturbation from `robustlib.attacks`.

    Attributes:
        name: one of `robustlib.attacks.names()`.
        eps: radius in the attack's norm, in [0, 1] pixel units; None for a minimal attack whose
            perturbations count whatever their size.
        steps: gradient steps, for iterative attacks; None: the attack's default, as for the next.
        restarts: random starts, for attacks that have them.
        queries: evaluations of the model, for black-box attacks.
        classes: how many wrong classes "apgd_dlr" and "strong" aim at.
    """

    name: str
    eps: float | None = None
    steps: int | None = None
    restarts: int | None = None
    queries: int | None = None
    classes: int | None = None
    family: str = "adversarial"
    severity: int = 0
    needs_model: bool = True

    def __post_init__(self) -> None:
        known = attacks.info(self.name)
        # The largest L2 radius depends on the images, and is checked with them.
        known.check_radius(self.eps, 0.5 if known.norm == "Linf" else math.inf)
        known.check_options(self.options)

    @property
    def norm(self) -> str:
        """What the radius is measured in, "Linf" or "L2"."""
        return attacks.info(self.name).norm

    @property
    def options(self) -> dict[str, Any]:
        """The options that were given."""
        options = ("steps", "restarts", "queries", "classes")
        given = {name: getattr(self, name) for name in options}
        return {name: value for name, value in given.items() if value is not None}

    def run(
        self, images: Tensor, labels: Tensor, ids: Tensor, model: nn.Module | None, seed: int
    ) -> attacks.AttackResult:
        """`robustlib.attacks.run` on the images.

        Raises:
            ValueError: no model was given.
        """
        if model is None:
            raise ValueError(f"the attack {self.name!r} needs the model that it attacks.")
        return attacks.run(
            model, images, labels, self.name, eps=self.eps, seed=seed, ids=ids, **self.options
        )

    def apply(
        self, images: Tensor, labels: Tensor, ids: Tensor, model: nn.Module | None, seed: int
    ) -> Tensor:
        """The adversarial images of `run`."""
        return self.run(images, labels, ids, model, seed).adversarial


def corruption_grid(names: Iterable[str], severities: Iterable[int]) -> list[Corruption]:
    """Every named corruption at every severity."""
    severities = list(severities)
    return [Corruption(name, severity) for name in names for severity in severities]

"""One interface for everything that changes an image: corruptions and attacks alike.

An attack is a perturbation that needs the model. So adversarial and common perturbations enter
the same tables and the same overlapping score.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

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
        eps: Linf radius in [0, 1] pixel units.
        steps: gradient steps, for iterative attacks.
    """

    name: str
    eps: float
    steps: int = 10
    family: str = "adversarial"
    severity: int = 0
    needs_model: bool = True

    def __post_init__(self) -> None:
        check_name(self.name, attacks.names(), "attack")

    def apply(
        self, images: Tensor, labels: Tensor, ids: Tensor, model: nn.Module | None, seed: int
    ) -> Tensor:
        """`robustlib.attacks.attack` of the images.

        Raises:
            ValueError: no model was given.
        """
        if model is None:
            raise ValueError(f"the attack {self.name!r} needs the model that it attacks.")
        return attacks.attack(
            model, images, labels, self.name, eps=self.eps, steps=self.steps, seed=seed, ids=ids
        )


def corruption_grid(names: Iterable[str], severities: Iterable[int]) -> list[Corruption]:
    """Every named corruption at every severity."""
    severities = list(severities)
    return [Corruption(name, severity) for name in names for severity in severities]

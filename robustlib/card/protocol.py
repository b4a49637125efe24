"""What a card measures: corruptions, attacks, radii, and how many images fit a time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from robustlib import attacks, corruptions
from robustlib.card.answers import blocks
from robustlib.core.checks import (
    check_names,
    check_number,
    check_seed,
    check_severity,
    check_whole,
    settle,
)
from robustlib.evaluation.sanity import sanity_attacks
from robustlib.exchange import Stored, stored_places
from robustlib.perturbations import Attack, Perturbation, corruption_grid

SMALL = 64
"""Side in pixels up to which images count as small: all five severities, a larger radius."""
FEWEST = 10
"""Images below which attacks and checks say nothing."""


@dataclass(frozen=True)
class Protocol:
    """What is measured of a model, on images of one size; all choices are this project's.

    Attributes:
        image_size: side of the images in pixels.
        corruptions: names; the nineteen of ImageNet-C if not given. With `stored`, what that
            folder holds.
        severities: each 1 to 5. If not given: all five for images of up to `SMALL` px, else
            1, 3 and 5.
        stored: a folder with corrupted versions of the images, such as CIFAR-10-C, or None to
            make them; see `robustlib.exchange.Stored`.
        attacks: names; the five of the M-TLAT study if not given.
        attacked: images that are attacked, the first ones; 0 for no attack.
        checked: images on which it is checked that gradients aren't masked, 0 for no check. If not
            given: 20 for images of up to `SMALL` px, else 10, since it takes long.
        eps: Linf radius of the attacks. If not given: 2/255 for images of up to `SMALL` px, else
            1/255. Those in L2 get `radius_l2`.
        seed: source of all randomness.
        cells: every corruption at every severity.
        radius: the Linf radius as a number, pixels in [0, 1].

    Raises `ValueError` for a bad value, `UnknownNameError` for an unknown name.
    """

    image_size: int
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = ()
    stored: Path | None = None
    attacks: tuple[str, ...] = attacks.FIVE
    attacked: int = 50
    checked: int | None = None
    eps: float | str | None = None
    seed: int = 0
    cells: tuple[Perturbation, ...] = field(init=False, repr=False)
    radius: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        small = check_whole(self.image_size, "image_size", low=1) <= SMALL
        severities = self.severities or ((1, 2, 3, 4, 5) if small else (1, 3, 5))
        severities = tuple(sorted({check_severity(severity) for severity in severities}))
        places = {} if self.stored is None else stored_places(self.stored)
        known = list(places) or corruptions.names()
        usual = list(places) or corruptions.names("imagenet_c")
        names = check_names(self.corruptions or usual, known, "corruption")
        settle(self, corruptions=tuple(names), severities=severities)
        settle(self, attacks=tuple(check_names(self.attacks, attacks.names(), "attack")))
        eps = self.eps if self.eps is not None else "2/255" if small else "1/255"
        unit = "pixels in [0, 1]"
        settle(self, radius=check_number(eps, "eps", low=0, high=0.49, above=True, unit=unit))
        if self.checked is None:
            settle(self, checked=20 if small else 10)
        for name in ("attacked", "checked"):
            settle(self, **{name: check_whole(getattr(self, name), name, low=0)})
        settle(self, seed=check_seed(self.seed))
        grid: list[Perturbation] = []
        if places:
            grid += [Stored(name, s, places[name]) for name in names for s in severities]
        else:
            grid += corruption_grid(names, severities)
        settle(self, cells=tuple(grid))

    @property
    def radius_l2(self) -> float:
        """L2 radius: 0.25 at 32 px, and as much a pixel at any other size."""
        return 0.25 * self.image_size / 32

    def attack_cells(self) -> list[Attack]:
        """The attacks, each at the radius of its norm."""
        return [
            Attack(name, self.radius if attacks.info(name).norm == "Linf" else self.radius_l2)
            for name in self.attacks
        ]

    def fitted(
        self, minutes: float, images: int, *, answer: float, forward: float
    ) -> tuple[Protocol, int]:
        """The part of this protocol, and the number of images, that fit a time.

        Up to a quarter of it goes to attacks, a twelfth to checks of masked gradients. Of the
        rest: these severities on as many images as fit, if these are all or 200 or more; else the
        middle severity on as many as fit, 50 at least.

        Args:
            minutes: the time.
            images: how many there are.
            answer: seconds that an answer to one corrupted image takes.
            forward: seconds of them that go to the model.
        """
        seconds = 60 * check_number(minutes, "budget", low=0, above=True, unit="minutes")
        shares = {"attacked": seconds / 4, "checked": seconds / 12}
        costs = {
            "attacked": forward * sum(map(passes, self.attack_cells())),
            "checked": forward * sum(map(passes, sanity_attacks(self.radius))),
        }
        fitting: dict[str, int] = {}
        for name, cost in costs.items():
            most = min(getattr(self, name), images)
            count = most if most * cost <= shares[name] else int(shares[name] / cost) // 10 * 10
            fitting[name] = count if count >= FEWEST else 0
            seconds -= fitting[name] * cost
        middle = self.severities[len(self.severities) // 2]
        for severities, least in ((self.severities, 200), ((middle,), 50)):
            each = answer * len(self.corruptions) * len(severities)
            ends = [end for _, end in blocks(images) if end * each <= seconds]
            if ends and (ends[-1] >= least or ends[-1] == images):
                break
        n = ends[-1] if ends else min(images, 50)
        attacked, checked = fitting["attacked"], fitting["checked"]
        return replace(self, severities=severities, attacked=attacked, checked=checked), n


def passes(attack: Attack) -> int:
    """Forward passes for an image that an attack takes, about; a gradient counts as two more."""
    known = attacks.info(attack.name)
    options = known.options | dict(attack.options)
    queries = int(options.get("queries", 0))
    if known.black_box:
        return queries
    losses = 2 if attack.name == "strong" else 1  # APGD on two
    return 3 * losses * int(options.get("steps", 1)) * int(options.get("restarts", 1)) + queries

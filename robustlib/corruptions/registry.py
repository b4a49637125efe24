"""The registry: what each corruption is called, where it comes from, and how strong it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robustlib.core.checks import check_name, check_whole, keyword_options
from robustlib.core.identity import Registry

FAMILIES = ("noise", "blur", "weather", "digital", "geometric", "light", "occlusion", "pattern")

# Its severities are published for 32 (CIFAR-10-C), 64 (Tiny ImageNet-C) and 224 pixels.
IMAGENET_C = "Hendrycks and Dietterich 2019, arXiv 1903.12261 (ImageNet-C)"
# Its severities are published for 224 pixels, those of five corruptions for 32 too.
IMAGENET_C_BAR = "Mintun, Kirillov and Xie 2021, arXiv 2102.11273 (ImageNet-C-bar)"
OVERLAP = "Laugros, Caplier and Ospici 2021, arXiv 2105.12357 (overlapping score)"

Parameters = tuple[dict[str, Any], ...]
CorruptFn = Callable[..., Tensor]


@dataclass(frozen=True)
class Tables:
    """Five published rows of parameters for each of some image sides."""

    by_side: Mapping[int, Parameters]

    def nearest_side(self, image_side: int) -> int:
        """The published side that is nearest to `image_side` in ratio."""
        return min(self.by_side, key=lambda side: abs(math.log(side / image_side)))

    def parameters(self, image_side: int) -> Parameters:
        """The rows of the nearest published side; their numbers are not rescaled."""
        return self.by_side[self.nearest_side(image_side)]


@dataclass(frozen=True)
class AmountRange:
    """One amount, from `first` (weakest) to `last` (strongest), published for 224 pixels.

    A name that ends in `_px` is a length: it scales with the image side and is never below one
    pixel. A name that ends in `_px` or `_count` is rounded to a whole number.
    """

    name: str
    first: float
    last: float

    def amount(self, fraction: Tensor, image_side: int) -> Tensor:
        """The amounts at `fraction` (N,), 0 to 1, of the way from `first` to `last`."""
        amount = self.first + (self.last - self.first) * fraction
        if self.name.endswith("_px"):
            return amount.mul_(image_side / 224).round_().clamp_min_(1)
        return amount.round_() if self.name.endswith("_count") else amount

    def parameters(self, image_side: int) -> Parameters:
        """Five even steps."""
        steps = torch.linspace(0, 1, 5, dtype=torch.float32, device="cpu")
        amounts = self.amount(steps, image_side).tolist()
        whole = self.name.endswith(("_px", "_count"))
        return tuple({self.name: int(x) if whole else round(x, 6)} for x in amounts)


@dataclass(frozen=True)
class CorruptionInfo:
    """What is known about one corruption.

    name: the registered name. family: one of `FAMILIES`. source: the paper that published
    the severities. random: whether two images with the same pixels may come out different.
    strengths: the published tables, or the published range of the amount.
    """

    name: str
    family: str
    source: str
    random: bool
    function: CorruptFn = field(repr=False)
    strengths: Tables | AmountRange = field(repr=False)

    def parameters(self, image_side: int) -> Parameters:
        """The parameters at severity 1 .. 5 for images of `image_side` pixels.

        For an image that isn't square, the side is the shorter one. Severities of ImageNet-C
        and ImageNet-C-bar come from the table of `table_side(image_side)`, those of Laugros et
        al. are five even steps through the published range.
        """
        return self.strengths.parameters(check_whole(image_side, "image_side", low=1))

    def table_side(self, image_side: int) -> int | None:
        """The image side whose published table is used, 32, 64 or 224; None if there is none.

        It is the nearest in ratio of those that there are: for a corruption of ImageNet-C, 45 px
        take the table of 32, 46 px that of 64.
        """
        image_side = check_whole(image_side, "image_side", low=1)
        if isinstance(self.strengths, AmountRange):
            return None
        return self.strengths.nearest_side(image_side)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments that `corrupt` passes on, with their defaults."""
        return keyword_options(self.function)


REGISTRY: Registry[CorruptionInfo] = Registry()


def register(
    *, family: str, source: str, random: bool, table: Tables | AmountRange
) -> Callable[[CorruptFn], CorruptFn]:
    """Enter a function under its own name.

    The function takes `(images, stream, **parameters)` if `random` and `(images, **parameters)`
    otherwise, images (N, 3, H, W) float32 in [0, 1] with N >= 1. Parameters are the numbers of
    a table's row, or for an `AmountRange` the amount of each image, float32 (N,). Keyword-only
    arguments are options. It leaves `images` alone, and may return values outside [0, 1]: the
    caller clips.
    """

    def enter(function: CorruptFn) -> CorruptFn:
        name = function.__name__
        REGISTRY[name] = CorruptionInfo(
            name, check_name(family, FAMILIES, "family"), source, random, function, table
        )
        return function

    return enter


def published(fields: str, tables: Mapping[int, Sequence[Any]]) -> Tables:
    """Tables of severities for several image sides.

    fields: parameter names, separated by spaces. tables: {side: five rows}; a row is a
    number, or a tuple when there are several fields.
    """
    names = fields.split()

    def as_parameters(rows: Sequence[Any]) -> Parameters:
        tuples = [row if len(names) > 1 else (row,) for row in rows]
        return tuple(dict(zip(names, row, strict=True)) for row in tuples)

    return Tables({side: as_parameters(rows) for side, rows in tables.items()})

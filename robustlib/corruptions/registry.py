"""The registry: what each corruption is called, where it comes from, and how strong it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from robustlib.checks import check_name

FAMILIES = ("noise", "blur", "weather", "digital", "geometric", "light", "occlusion")

# Its severities are published for 32 (CIFAR-10-C), 64 (Tiny ImageNet-C) and 224 pixels.
IMAGENET_C = "Hendrycks and Dietterich 2019, arXiv 1903.12261 (ImageNet-C)"
OVERLAP = "Laugros, Caplier and Ospici 2021, arXiv 2105.12357 (overlapping score)"

Parameters = tuple[dict[str, Any], ...]
Table = Callable[[int], Parameters]
CorruptFn = Callable[..., Tensor]


@dataclass(frozen=True)
class CorruptionInfo:
    """What is known about one corruption.

    name: the registered name. family: one of `FAMILIES`. source: the paper that published
    the severities. random: whether two images with the same pixels may come out different.
    """

    name: str
    family: str
    source: str
    random: bool
    function: CorruptFn = field(repr=False)
    table: Table = field(repr=False)

    def parameters(self, image_side: int) -> Parameters:
        """Return the keyword arguments at severity 1 .. 5 for images of `image_side` pixels.

        For an image that isn't square, the side is the shorter one.
        """
        if image_side < 1:
            raise ValueError(f"image_side must be at least 1, got {image_side}.")
        return self.table(image_side)


REGISTRY: dict[str, CorruptionInfo] = {}


def register(
    *, family: str, source: str, random: bool, table: Table
) -> Callable[[CorruptFn], CorruptFn]:
    """Enter a function under its own name.

    The function takes `(images, stream, **parameters)` if `random` and
    `(images, **parameters)` otherwise, images (N, 3, H, W) float32 in [0, 1] with N >= 1.
    It leaves `images` alone, and may return values outside [0, 1]: the caller clips.
    """

    def enter(function: CorruptFn) -> CorruptFn:
        name = function.__name__
        REGISTRY[name] = CorruptionInfo(
            name, check_name(family, FAMILIES, "family"), source, random, function, table
        )
        return function

    return enter


def published(fields: str, tables: Mapping[int, Sequence[Any]]) -> Table:
    """Severities of a published table for each image side.

    fields: parameter names, separated by spaces. tables: {side: five rows}; a row is a
    number, or a tuple when there are several fields. The table nearest to the image side in
    ratio is used, and its numbers are not rescaled: between two published sides the same
    name means the severity of the nearer one.
    """
    names = fields.split()

    def as_parameters(rows: Sequence[Any]) -> Parameters:
        tuples = [row if len(names) > 1 else (row,) for row in rows]
        return tuple(dict(zip(names, row, strict=True)) for row in tuples)

    by_side = {side: as_parameters(rows) for side, rows in tables.items()}

    def table(image_side: int) -> Parameters:
        return by_side[min(by_side, key=lambda side: abs(math.log(side / image_side)))]

    return table


def even_steps(**ranges: tuple[float, float]) -> Table:
    """Severities as five even steps through a published range, first to last.

    The ranges hold for 224 pixels. A name that ends in `_px` is a length: it scales with
    the image side and is never below one pixel. A name that ends in `_px` or `_count` is
    rounded to a whole number.
    """

    def value(name: str, severity: int, image_side: int) -> float | int:
        first, last = ranges[name]
        x = first + (last - first) * (severity - 1) / 4
        if name.endswith("_px"):
            return max(1, round(x * image_side / 224))
        return round(x) if name.endswith("_count") else round(x, 6)

    def table(image_side: int) -> Parameters:
        return tuple({n: value(n, s, image_side) for n in ranges} for s in range(1, 6))

    return table

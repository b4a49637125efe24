"""Blur: every pixel becomes a mean of its neighbours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from robustlib.core.randomness import Stream
from robustlib.corruptions.filters import (
    border_index,
    clipped_zoom,
    filter_axis,
    filter_even,
    gaussian_filter,
    gaussian_weights,
    motion_filter,
)
from robustlib.corruptions.registry import IMAGENET_C, OVERLAP, AmountRange, published, register


@register(
    family="blur",
    source=IMAGENET_C,
    random=False,
    table=published(
        "sigma_px",
        {32: (0.4, 0.6, 0.7, 0.8, 1.0), 64: (0.5, 0.75, 1, 1.25, 1.5), 224: (1, 2, 3, 4, 6)},
    ),
)
def gaussian_blur(images: Tensor, sigma_px: float) -> Tensor:
    """Gaussian kernel of width sigma_px, cut at 4 sigma, edges replicated."""
    return gaussian_filter(images, sigma_px)


@register(
    family="blur",
    source=IMAGENET_C,
    random=False,
    table=published(
        "radius_px alias_blur_sigma_px",
        {
            32: ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
            64: ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
            224: ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        },
    ),
)
def defocus_blur(images: Tensor, radius_px: float, alias_blur_sigma_px: float) -> Tensor:
    """A lens out of focus: a disc of radius_px, its rim softened, edges mirrored."""
    if not 2 <= radius_px < _DISC_HALF_SIDE:
        return filter_even(images, disc_kernel(radius_px, alias_blur_sigma_px), "mirror")
    # Clear of the rim of its array, the disc can be softened in the image, which is faster.
    images = filter_even(images, disc(int(radius_px), radius_px), "mirror")
    soft = gaussian_weights(alias_blur_sigma_px, 1)
    return filter_axis(filter_axis(images, soft, -2, "mirror"), soft, -1, "mirror")


_DISC_HALF_SIDE = 8


def disc(half: int, radius: float) -> list[list[float]]:
    """A disc x^2 + y^2 <= radius^2 of sum 1, on an array of half side `half`."""
    side = range(-half, half + 1)
    inside = [[float(x * x + y * y <= radius * radius) for x in side] for y in side]
    total = sum(map(sum, inside))
    return [[value / total for value in row] for row in inside]


@lru_cache(maxsize=64)
def disc_kernel(radius: float, soft_sigma: float) -> tuple[tuple[float, ...], ...]:
    """A disc of sum 1, then a Gaussian of 3 (5 above radius 8) taps.

    The disc lives on an array of half side 8 (or radius, if larger). Where it touches the rim
    of the array, the Gaussian reads it mirrored, so that the published kernels of radius 8
    and 10 sum to 1.013 and 1.011, and so do these.
    """
    half = max(_DISC_HALF_SIDE, int(radius))
    soft_radius = 1 if radius <= 8 else 2
    soft = gaussian_weights(soft_sigma, soft_radius)
    index = border_index(2 * half + 1, soft_radius, soft_radius, "mirror")

    def soften(line: Sequence[float]) -> list[float]:
        return [
            sum(weight * line[index[i + j]] for j, weight in enumerate(soft))
            for i in range(len(line))
        ]

    rows = [soften(row) for row in disc(half, radius)]
    kernel = list(zip(*(soften(column) for column in zip(*rows, strict=True)), strict=True))
    keep = min(half, math.ceil(radius) + soft_radius)
    return tuple(
        row[half - keep : half + keep + 1] for row in kernel[half - keep :][: 2 * keep + 1]
    )


@register(
    family="blur",
    source=IMAGENET_C,
    random=True,
    table=published(
        "radius_px sigma_px",
        {
            32: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
            64: ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
            224: ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        },
    ),
)
def motion_blur(images: Tensor, stream: Stream, radius_px: int, sigma_px: float) -> Tensor:
    """A moving camera: a one-sided half Gaussian at an angle from -45 to 45 degrees."""
    return motion_filter(images, radius_px, sigma_px, stream.uniform((), -45.0, 45.0))


def _factors(step: float, count: int) -> tuple[float, ...]:
    return tuple(round(1 + step * i, 2) for i in range(count))


@register(
    family="blur",
    source=IMAGENET_C,
    random=False,
    table=published(
        "factors",
        {
            32: [_factors(0.01, count) for count in (7, 12, 16, 21, 26)],
            64: [_factors(0.01, count) for count in (7, 12, 16, 21, 26)],
            224: [
                _factors(0.01, 12),
                _factors(0.01, 16),
                _factors(0.02, 11),
                _factors(0.02, 13),
                _factors(0.03, 11),
            ],
        },
    ),
)
def zoom_blur(images: Tensor, factors: Sequence[float]) -> Tensor:
    """A camera moving forward: the mean of the image and its magnifications by `factors`."""
    total = images.clone()
    for factor in factors:
        total.add_(images if factor == 1 else clipped_zoom(images, factor))
    return total.div_(len(factors) + 1)


@register(
    family="blur",
    source=IMAGENET_C,
    random=True,
    table=published(
        "sigma_px max_delta_px iterations",
        {
            32: ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
            64: ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
            224: ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        },
    ),
)
def glass_blur(
    images: Tensor,
    stream: Stream,
    sigma_px: float,
    max_delta_px: int,
    iterations: int,
    *,
    swap: bool = False,
) -> Tensor:
    """Frosted glass: blur, take each pixel from near by, blur again.

    One after the other from the bottom right, the pixels of rows and columns d + 1 .. side - d,
    d = max_delta_px, take the value that one at an offset of -d .. d - 1 on each axis has by
    then. So some pixels come up several times and others are lost, as in ImageNet-C and
    CIFAR-10-C. swap: the two pixels change places instead, as the published code sets out to do,
    so that none is lost; on a lattice of spacing 2 d at a time, where they can't meet.
    """
    n, c, h, w = images.shape
    source = torch.arange(h * w, device=images.device).repeat(n, 1)
    shuffle = _swapped if swap else _duplicated
    for _ in range(iterations):
        source = shuffle(source, stream, (h, w), max_delta_px)
    blurred = gaussian_filter(images, sigma_px).reshape(n, c, h * w)
    shuffled = blurred.gather(2, source[:, None].expand(n, c, h * w)).view(n, c, h, w)
    return gaussian_filter(shuffled, sigma_px)


def _duplicated(source: Tensor, stream: Stream, shape: tuple[int, int], d: int) -> Tensor:
    """x[h, w] = x[h + dy, w + dx], from h = H - d down to d + 1, and w likewise in each row.

    Without the scan: what it reads below, or to the right in the same row, has its final value by
    then, so in the end both pixels have the same. Following such pixels, twice as far each time,
    leads to one that reads an old value.
    """
    h, w = shape
    itself = torch.arange(h * w, device=source.device).repeat(len(source), 1)
    read = itself.clone()
    targets = read.view(-1, h, w)[:, d + 1 : h - d + 1, d + 1 : w - d + 1]
    dy, dx = stream.integers(-d, d, (2, *targets.shape[1:])).unbind(1)
    targets.add_(dy, alpha=w).add_(dx)
    same = torch.maximum(read, itself)
    while not torch.equal(same, further := same.gather(1, same)):
        same = further
    return source.gather(1, read.gather(1, same))


def _swapped(source: Tensor, stream: Stream, shape: tuple[int, int], d: int) -> Tensor:
    h, w = shape
    pixels = torch.arange(h * w, device=source.device).view(h, w)
    places = pixels[d + 1 : h - d + 1, d + 1 : w - d + 1]
    for top, left in itertools.product(range(2 * d), repeat=2):
        here = places[top :: 2 * d, left :: 2 * d].flatten()
        dy, dx = stream.integers(-d, d, (2, len(here))).unbind(1)
        there = here + dy * w + dx
        moved = source[:, here]
        source[:, here] = source.gather(1, there)
        source.scatter_(1, there, moved)
    return source


@register(family="blur", source=OVERLAP, random=False, table=AmountRange("blend", 0.4, 0.95))
def blur(images: Tensor, blend: Tensor) -> Tensor:
    """(1 - blend) x + blend b, b five passes of a 3 x 3 mean over x, edges replicated."""
    blurred = images
    for _ in range(5):
        blurred = filter_axis(filter_axis(blurred, _MEAN_3, -2, "edge"), _MEAN_3, -1, "edge")
    return torch.lerp(images, blurred, blend.view(-1, 1, 1, 1))


_MEAN_3 = (1 / 3, 1 / 3, 1 / 3)

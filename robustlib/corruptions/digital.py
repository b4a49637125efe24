"""Digital: what storing and shrinking images does to them."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from robustlib.corruptions.filters import LUMA, luma, pad, take
from robustlib.corruptions.registry import (
    IMAGENET_C,
    OVERLAP,
    AmountRange,
    published,
    register,
)


@register(family="digital", source=OVERLAP, random=False, table=AmountRange("level_count", 8, 3))
def quantization(images: Tensor, level_count: Tensor) -> Tensor:
    """Round each channel value to one of level_count even levels from 0 to 1."""
    steps = (level_count - 1).view(-1, 1, 1, 1)
    return (images * steps).round_().div_(steps)


@register(
    family="digital",
    source=IMAGENET_C,
    random=False,
    table=published(
        "scale",
        {
            32: (0.95, 0.9, 0.85, 0.75, 0.65),
            64: (0.9, 0.8, 0.7, 0.6, 0.5),
            224: (0.6, 0.5, 0.4, 0.3, 0.25),
        },
    ),
)
def pixelate(images: Tensor, scale: float) -> Tensor:
    """Shrink to int(scale side) by a box mean, and enlarge again by repeating pixels.

    As in Pillow, a pixel belongs to a box wholly or not at all.
    """
    rows, columns = (_boxes(side, scale, images.device) for side in images.shape[-2:])
    small = _box_means(_box_means(images, *rows[:2], -2), *columns[:2], -1)
    # Columns first, so that the enlarged rows are copied as wholes.
    return take(take(small, columns[2], -1), rows[2], -2)


def _box_means(images: Tensor, index: Tensor, weights: Tensor, axis: int) -> Tensor:
    if axis == -2:
        weights = weights[..., None]
    means = take(images, index[0], axis).mul_(weights[0])
    for positions, weight in zip(index[1:], weights[1:], strict=True):
        means.addcmul_(take(images, positions, axis), weight)
    return means


@lru_cache(maxsize=256)
def _boxes(size: int, scale: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Positions and weights, each (taps, small), of the pixels that each box averages.

    And the box, (size,), that each output pixel shows.
    """
    small = max(1, int(size * scale))
    ratio = size / small
    boxes = []
    for i in range(small):
        centre = (i + 0.5) * ratio
        first = max(0, int(centre - ratio / 2 + 0.5))
        boxes.append(range(first, min(size, int(centre + ratio / 2 + 0.5))))
    taps = max(map(len, boxes))
    index = [[box[min(t, len(box) - 1)] for box in boxes] for t in range(taps)]
    weights = [[1 / len(box) if t < len(box) else 0.0 for box in boxes] for t in range(taps)]
    shown = [int((i + 0.5) * small / size) for i in range(size)]
    return (
        torch.tensor(index, device=device),
        torch.tensor(weights, device=device),
        torch.tensor(shown, device=device),
    )


# The example quantisation tables of the JPEG standard (ITU-T T.81, annex K.1).
_LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(((99,) * 8,) * 4),
)


@register(
    family="digital",
    source=IMAGENET_C,
    random=False,
    table=published(
        "quality", {32: (80, 65, 58, 50, 40), 64: (65, 58, 50, 40, 25), 224: (25, 18, 15, 10, 7)}
    ),
)
def jpeg_compression(images: Tensor, quality: int) -> Tensor:
    """Store as baseline JPEG of `quality`, 4:2:0, and read back, in 8-bit levels.

    Only the lossy steps: YCbCr, chroma means of 2 x 2, 8 x 8 cosine transform, rounding to
    the standard tables scaled as libjpeg does, and back, chroma by a triangle filter.
    """
    h, w = images.shape[-2:]
    levels = pad((images * 255).round_(), (0, -h % 16), (0, -w % 16), "edge")
    y = luma(levels)
    # Cr and Cb, without their offset of 128 (JFIF).
    chroma = (levels[:, ::2] - y).mul_(_chroma_factors(images.device)).round_()
    y = _through_blocks(y.round_().sub_(128), _LUMA_TABLE, quality).add_(128)[..., :h, :w]
    chroma = _through_blocks(_halve(chroma), _CHROMA_TABLE, quality)
    chroma = _double(chroma[..., : (h + 1) // 2, : (w + 1) // 2])[..., :h, :w]
    cr, cb = chroma.split(1, dim=1)
    out = torch.empty_like(images)
    red, green, blue = out.split(1, dim=1)
    torch.add(y, cr, alpha=2 - 2 * LUMA[0], out=red)
    torch.add(y, cb, alpha=2 - 2 * LUMA[2], out=blue)
    torch.add(y, cr, alpha=(2 * LUMA[0] - 2) * LUMA[0] / LUMA[1], out=green)
    green.add_(cb, alpha=(2 * LUMA[2] - 2) * LUMA[2] / LUMA[1])
    return out.round_().div_(255)


@lru_cache(maxsize=16)
def _chroma_factors(device: torch.device) -> Tensor:
    factors = (0.5 / (1 - LUMA[0]), 0.5 / (1 - LUMA[2]))
    return torch.tensor(factors, device=device).view(2, 1, 1)


def _halve(x: Tensor) -> Tensor:
    """Means of 2 x 2 levels; halves go down in even columns and up in odd ones, as in libjpeg."""
    rows = x[:, :, ::2] + x[:, :, 1::2]
    sums = rows[..., ::2] + rows[..., 1::2]
    sums[..., ::2] += 1
    sums[..., 1::2] += 2
    return sums.mul_(0.25).floor_()


def _double(x: Tensor) -> Tensor:
    """Double both sides by a triangle filter; halves go up in even columns, as in libjpeg."""
    wide = _stretch(x, -1)
    wide[..., ::2] += 0.5
    wide[..., 1::2] += 0.4375
    return _stretch(wide, -2).floor_()


def _stretch(x: Tensor, axis: int) -> Tensor:
    """Double one axis: 3/4 of the nearer and 1/4 of the farther neighbour, edges kept."""
    rows, columns = ((1, 1), (0, 0)) if axis == -2 else ((0, 0), (1, 1))
    padded = pad(x, rows, columns, "edge")
    size = x.shape[axis]
    near = x * 0.75
    shape = list(x.shape)
    shape[axis] = 2 * size
    out = x.new_empty(shape)
    even, odd = (out[..., ::2], out[..., 1::2]) if axis == -1 else (out[:, :, ::2], out[:, :, 1::2])
    torch.add(near, padded.narrow(axis, 0, size), alpha=0.25, out=even)
    torch.add(near, padded.narrow(axis, 2, size), alpha=0.25, out=odd)
    return out


@lru_cache(maxsize=64)
def _divisors(
    table: tuple[tuple[int, ...], ...], quality: int, width: int, device: torch.device
) -> Tensor:
    """Scale a quantisation table as libjpeg does: 1 .. 255, repeated to (8, width) float64."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    scaled = [[min(255, max(1, (q * percent + 50) // 100)) for q in row] for row in table]
    return torch.tensor(scaled, dtype=torch.float64, device=device).repeat(1, width // 8)


@lru_cache(maxsize=16)
def _cosines(device: torch.device) -> Tensor:
    """The orthonormal 8-point DCT-II, (frequency, position), in multiples of 2^-18.

    So every product with 8-bit levels or whole coefficients, and every sum of them, is exact
    in float64, and a matrix product gives the same bits in whatever order it adds.
    """
    rows = [
        [
            math.sqrt((2 if k else 1) / 8) * math.cos(math.pi * (2 * i + 1) * k / 16)
            for i in range(8)
        ]
        for k in range(8)
    ]
    matrix = torch.tensor(rows, dtype=torch.float64, device=device)
    return matrix.mul_(2**18).round_().div_(2**18)


def _through_blocks(x: Tensor, table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Transform 8 x 8 blocks, round the coefficients, transform back: levels -128 .. 127."""
    w = x.shape[-1]
    cosines = _cosines(x.device)
    divisors = _divisors(table, quality, w, x.device)
    rows = x.double().view(-1, 8) @ cosines.T
    # libjpeg keeps eighths, and takes a half away from zero: the factor just above 1 does.
    eighths = torch.matmul(8 * cosines, rows.view(-1, 8, w)).round_()
    steps = eighths.mul_((1 + 2.0**-20) / 8 / divisors).round_()
    columns = torch.matmul(cosines.T, steps.mul_(divisors))
    levels = (columns.view(-1, 8) @ cosines).float().view(x.shape)
    return levels.add_(0.5).floor_().clamp_(-128, 127)

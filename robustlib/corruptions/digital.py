"""Digital: what storing and shrinking images does to them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from robustlib.corruptions.filters import luma, pad, take
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
    h, w = images.shape[-2:]
    return _show_boxes(images, max(1, int(h * scale)), max(1, int(w * scale)), like_pillow=True)


@register(family="digital", source=OVERLAP, random=False, table=AmountRange("block", 2, 4))
def laugros_pixelate(images: Tensor, block: Tensor) -> Tensor:
    """Cut each side into round(side / block) runs of pixels; a box of them shows its mean.

    A block keeps its size in pixels whatever the image side, this project's choice: scaled to
    32 pixels it would be smaller than one.
    """
    h, w = images.shape[-2:]
    out = torch.empty_like(images)
    for boxes, chosen in _groups(
        [(max(1, round(h / b)), max(1, round(w / b))) for b in block.tolist()]
    ).items():
        out[chosen] = _show_boxes(images[chosen], *boxes, like_pillow=False)
    return out


# Positions and weights, each (taps, outputs), of the pixels that each output adds up.
Taps = tuple[Tensor, Tensor]


def _weigh(images: Tensor, taps: Taps, axis: int) -> Tensor:
    index, weights = taps
    if axis == -2:
        weights = weights[..., None]
    out = take(images, index[0], axis).mul_(weights[0])
    for positions, weight in zip(index[1:], weights[1:], strict=True):
        out.addcmul_(take(images, positions, axis), weight)
    return out


def _as_taps(outputs: Sequence[Mapping[int, float]], device: torch.device) -> Taps:
    """From {position: weight} for each output; those with fewer taps repeat one at weight 0."""
    count = max(map(len, outputs))
    padded = [[*o.items(), *[(min(o), 0.0)] * (count - len(o))] for o in outputs]
    index = [[o[t][0] for o in padded] for t in range(count)]
    weights = [[o[t][1] for o in padded] for t in range(count)]
    return torch.tensor(index, device=device), torch.tensor(weights, device=device)


def _show_boxes(images: Tensor, rows: int, columns: int, *, like_pillow: bool) -> Tensor:
    """The means of rows x columns boxes, each computed once, shown by all pixels of the box."""
    (row_taps, row_shown), (column_taps, column_shown) = (
        _boxes(side, count, like_pillow, images.device)
        for side, count in zip(images.shape[-2:], (rows, columns), strict=True)
    )
    small = _weigh(_weigh(images, row_taps, -2), column_taps, -1)
    # Columns first, so that the enlarged rows are copied as wholes.
    return take(take(small, column_shown, -1), row_shown, -2)


@lru_cache(maxsize=256)
def _boxes(size: int, count: int, like_pillow: bool, device: torch.device) -> tuple[Taps, Tensor]:
    """Taps of the means of `count` boxes, and the box that each of `size` pixels shows.

    Pillow rounds the ends of a box in one way to shrink, and in another to enlarge. So a pixel
    may show a box whose mean it isn't part of. like_pillow: do so, too.
    """
    ratio = size / count
    shown = [int((i + 0.5) * count / size) for i in range(size)]
    means = []
    for i in range(count):
        box: Sequence[int] = [j for j in range(size) if shown[j] == i]
        if like_pillow:
            centre = (i + 0.5) * ratio
            first = max(0, int(centre - ratio / 2 + 0.5))
            box = range(first, min(size, int(centre + ratio / 2 + 0.5)))
        means.append({j: 1 / len(box) for j in box})
    return _as_taps(means, device), torch.tensor(shown, device=device)


# ITU-R BT.601 in multiples of 2^-16, as in libjpeg: weights times whole levels, and their sums,
# are exact in float32, so no device rounds them in another way.
_RED, _GREEN, _BLUE = (weight / 2**16 for weight in (19595, 38470, 7471))
_CR_TO_RED, _CB_TO_BLUE = 91881 / 2**16, 116130 / 2**16
_CR_TO_GREEN, _CB_TO_GREEN = -46802 / 2**16, -22554 / 2**16

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
    height = levels.shape[-2]
    plane = _through_blocks(_to_plane(levels), height, quality)
    below = plane[:, height:].unflatten(2, (2, -1)).transpose(1, 2)
    cr, cb = _double(below[..., : (h + 1) // 2, : (w + 1) // 2])[..., :h, :w].split(1, dim=1)
    y = plane[:, None, :h, :w]
    # The memory of levels, where it was not padded, serves again.
    out = levels if levels.shape == images.shape else torch.empty_like(images)
    red, green, blue = out.split(1, dim=1)
    torch.add(y, cr, alpha=_CR_TO_RED, out=red)
    torch.add(y, cb, alpha=_CB_TO_BLUE, out=blue)
    torch.add(y, cr, alpha=_CR_TO_GREEN, out=green)
    green.add_(cb, alpha=_CB_TO_GREEN)
    return out.round_().mul_(1 / 255)


def _to_plane(levels: Tensor) -> Tensor:
    """8-bit RGB (N, 3, H, W) -> YCbCr (JFIF) without offset: float64 (N, 3 H / 2, W).

    Y lies above; the halved Cr and Cb, side by side, below.
    """
    n, _, h, w = levels.shape
    y = luma(levels, (_RED, _GREEN, _BLUE))
    chroma = levels[:, ::2] - y
    chroma[:, 0].mul_(0.5 / (1 - _RED))
    chroma[:, 1].mul_(0.5 / (1 - _BLUE))
    chroma = _halve(chroma.round_())
    plane = y.new_empty((n, h * 3 // 2, w), dtype=torch.float64)
    plane[:, :h] = y[:, 0].round_().sub_(128)
    plane[:, h:].unflatten(2, (2, -1)).copy_(chroma.transpose(1, 2))
    return plane


@lru_cache(maxsize=64)
def _by_column(even: float, odd: float, width: int, device: torch.device) -> Tensor:
    return torch.tensor((even, odd), device=device).repeat((width + 1) // 2)[:width]


def _halve(x: Tensor) -> Tensor:
    """Means of 2 x 2 levels; halves go down in even columns and up in odd ones, as in libjpeg."""
    rows = x[:, :, ::2] + x[:, :, 1::2]
    sums = rows[..., ::2] + rows[..., 1::2]
    bias = _by_column(1 / 4, 2 / 4, sums.shape[-1], x.device)
    return torch.add(bias, sums, alpha=0.25).floor_()


def _double(x: Tensor) -> Tensor:
    """Double both sides, subtract 128 and round to whole levels.

    3/4 of the nearer and 1/4 of the farther neighbour on each axis, edges kept. Halves go up
    in even columns and down in odd ones, as in libjpeg.
    """
    n, c, h, w = x.shape
    padded = pad(x, (1, 1), (1, 1), "edge")
    wide = x.new_empty(n, c, h + 2, 2 * w)
    inner = padded[..., 1:-1]
    torch.lerp(inner, padded[..., :-2], 0.25, out=wide[..., ::2])
    torch.lerp(inner, padded[..., 2:], 0.25, out=wide[..., 1::2])
    wide.add_(_by_column(8 / 16 - 128, 7 / 16 - 128, 2 * w, x.device))
    out = x.new_empty(n, c, 2 * h, 2 * w)
    inner = wide[:, :, 1:-1]
    torch.lerp(inner, wide[:, :, :-2], 0.25, out=out[:, :, ::2])
    torch.lerp(inner, wide[:, :, 2:], 0.25, out=out[:, :, 1::2])
    return out.floor_()


@lru_cache(maxsize=64)
def _divisors(
    table: tuple[tuple[int, ...], ...], quality: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Scale a quantisation table as libjpeg does: 1 .. 255, repeated to (8, width) float64.

    And the factor from eighths to steps, larger by 2^-20, so that halves round away from zero.
    """
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    scaled = [[min(255, max(1, (q * percent + 50) // 100)) for q in row] for row in table]
    divisors = torch.tensor(scaled, dtype=torch.float64, device=device).repeat(1, width // 8)
    return divisors, (1 + 2.0**-20) / 8 / divisors


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


def _through_blocks(plane: Tensor, luma_height: int, quality: int) -> Tensor:
    """Transform the 8 x 8 blocks of (N, H, W), round the coefficients, and transform back.

    Takes float64 levels without their offset of 128, returns float32 levels 0 .. 255. The
    rows above luma_height are rounded by the luma table, the rest by that of chroma.
    """
    n, h, w = plane.shape
    cosines = _cosines(plane.device)
    other = torch.empty_like(plane)
    runs, other_runs = plane.view(-1, 8), other.view(-1, 8)
    blocks, other_blocks = plane.view(-1, 8, w), other.view(-1, 8, w)
    count = len(blocks)
    torch.mm(runs, cosines.T, out=other_runs)
    # libjpeg keeps eighths, and takes a half away from zero.
    torch.bmm((8 * cosines).expand(count, 8, 8), other_blocks, out=blocks).round_()
    parts = plane.view(n, h // 8, 8, w).tensor_split((luma_height // 8,), dim=1)
    for part, table in zip(parts, (_LUMA_TABLE, _CHROMA_TABLE), strict=True):
        divisors, eighths = _divisors(table, quality, w, plane.device)
        part.mul_(eighths).round_().mul_(divisors)
    torch.bmm(cosines.T.expand(count, 8, 8), blocks, out=other_blocks)
    levels = torch.mm(other_runs, cosines, out=runs).float().view(n, h, w)
    return levels.add_(128.5).floor_().clamp_(0, 255)


@register(family="digital", source=OVERLAP, random=False, table=AmountRange("factor", 1.1, 3.25))
def thumbnail_resize(images: Tensor, factor: Tensor) -> Tensor:
    """Shrink each side to max(1, round(side / factor)), and enlarge again to the old side.

    Shrinks by an antialiased triangle filter and enlarges bilinearly; these filters are this
    project's choice.
    """
    h, w = images.shape[-2:]
    sizes = [(max(1, round(h / f)), max(1, round(w / f))) for f in factor.tolist()]
    out = torch.empty_like(images)
    for small, chosen in _groups(sizes).items():
        part = images[chosen]
        steps = ((-2, h, small[0]), (-1, w, small[1]), (-1, small[1], w), (-2, small[0], h))
        for axis, side, target in steps:
            part = _weigh(part, _triangle_taps(side, target, images.device), axis)
        out[chosen] = part
    return out


@lru_cache(maxsize=1024)
def _triangle_taps(size: int, target: int, device: torch.device) -> Taps:
    """Resize by a triangle of half width size / target pixels, or 1 where that is smaller."""
    ratio = size / target
    reach = max(1.0, ratio)
    outputs = []
    for i in range(target):
        centre = (i + 0.5) * ratio - 0.5
        near = range(max(0, math.ceil(centre - reach)), min(size, int(centre + reach) + 1))
        weights = {j: 1 - abs(j - centre) / reach for j in near if abs(j - centre) < reach}
        total = sum(weights.values())
        outputs.append({j: weight / total for j, weight in weights.items()})
    return _as_taps(outputs, device)


def _groups(keys: Sequence[Hashable]) -> dict[Any, list[int]]:
    """The positions of each key."""
    groups: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    return groups

"""Digital: what storing and shrinking images does to them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from robustlib.corruptions.filters import take
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
    return (
        torch.tensor(index, device=device),
        torch.tensor(weights, dtype=torch.float32, device=device),
    )


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


_LARGE = 128 * 128  # pixels


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

    By libjpeg, as in Pillow, so on the CPU wherever the images lie. Large images go through it in
    as many threads as torch has; for small ones, Python's lock takes back what threads bring.
    """
    from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg  # takes seconds

    def through_jpeg(part: Tensor) -> list[Tensor]:
        return decode_jpeg(encode_jpeg(list(part.movedim(3, 1)), quality), ImageReadMode.RGB)

    levels = (images * 255).round_()
    n, _, h, w = levels.shape
    interleaved = torch.empty(n, h, w, 3, dtype=torch.uint8, device="cpu")
    for channel in range(3):  # which is faster than all three at once
        interleaved[..., channel].copy_(levels[:, channel])
    threads = torch.get_num_threads() if h * w >= _LARGE else 1
    parts = interleaved.tensor_split(min(n, threads))
    with ThreadPoolExecutor(len(parts)) as pool:
        run = pool.map if len(parts) > 1 else map  # a new thread costs more than it brings
        for part, stored in zip(parts, run(through_jpeg, parts), strict=True):
            torch.stack([image.movedim(0, 2) for image in stored], out=part)
    for channel in range(3):
        levels[:, channel].copy_(interleaved[..., channel])
    return levels.div_(255)


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

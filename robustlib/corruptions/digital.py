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
    even_steps,
    published,
    register,
)


@register(family="digital", source=OVERLAP, random=False, table=even_steps(level_count=(8, 3)))
def quantization(images: Tensor, level_count: int) -> Tensor:
    """Round each channel value to one of level_count even levels from 0 to 1."""
    return (images * (level_count - 1)).round_().div_(level_count - 1)


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
    for axis in (-2, -1):
        index, weights = _boxes(images.shape[axis], scale, images.device)
        shape = (-1, 1) if axis == -2 else (-1,)
        images = sum(
            take(images, i, axis) * weight.view(shape)
            for i, weight in zip(index, weights, strict=True)
        )
    return images


@lru_cache(maxsize=256)
def _boxes(size: int, scale: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions and weights, each (taps, size), of the pixels that each output averages."""
    small = max(1, int(size * scale))
    ratio = size / small
    boxes = []
    for i in range(size):
        centre = (int((i + 0.5) * small / size) + 0.5) * ratio
        first = max(0, int(centre - ratio / 2 + 0.5))
        boxes.append(range(first, min(size, int(centre + ratio / 2 + 0.5))))
    taps = max(map(len, boxes))
    index = [[box[min(t, len(box) - 1)] for box in boxes] for t in range(taps)]
    weights = [[1 / len(box) if t < len(box) else 0.0 for box in boxes] for t in range(taps)]
    return torch.tensor(index, device=device), torch.tensor(weights, device=device)


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
    y, cb, cr = _to_ycbcr((images * 255).round_())
    y = pad(y, (0, -h % 16), (0, -w % 16), "edge")
    chroma = pad(torch.cat((cb, cr), dim=1), (0, -h % 16), (0, -w % 16), "edge")
    chroma = _halve(chroma)

    y = _through_blocks(y, _LUMA_TABLE, quality)[..., :h, :w]
    chroma = _through_blocks(chroma, _CHROMA_TABLE, quality)
    chroma = chroma[..., : (h + 1) // 2, : (w + 1) // 2]
    chroma = _double(_double(chroma, -2), -1)[..., :h, :w].round_()
    return _to_rgb(y, chroma[:, :1] - 128, chroma[:, 1:] - 128).round_().div_(255)


def _to_ycbcr(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """8-bit levels (N, 3, H, W) -> Y, Cb, Cr (N, 1, H, W), rounded (JFIF)."""
    y = luma(images)
    cb = (images[:, 2:] - y) * (0.5 / (1 - LUMA[2])) + 128
    cr = (images[:, :1] - y) * (0.5 / (1 - LUMA[0])) + 128
    return y.round(), cb.round_(), cr.round_()


def _to_rgb(y: Tensor, cb: Tensor, cr: Tensor) -> Tensor:
    r = y + cr * (2 - 2 * LUMA[0])
    b = y + cb * (2 - 2 * LUMA[2])
    g = (y - LUMA[0] * r - LUMA[2] * b) / LUMA[1]
    return torch.cat((r, g, b), dim=1)


def _halve(x: Tensor) -> Tensor:
    """Means of 2 x 2 levels; halves go down in even columns and up in odd ones, as in libjpeg."""
    rows = x[:, :, ::2] + x[:, :, 1::2]
    sums = rows[..., ::2] + rows[..., 1::2]
    sums[..., ::2] += 1
    sums[..., 1::2] += 2
    return sums.div_(4).floor_()


def _double(x: Tensor, axis: int) -> Tensor:
    """Double one axis: 3/4 of the nearer and 1/4 of the farther neighbour, edges kept."""
    rows, columns = ((1, 1), (0, 0)) if axis == -2 else ((0, 0), (1, 1))
    padded = pad(x, rows, columns, "edge")
    size = x.shape[axis]
    before = padded.narrow(axis, 0, size)
    after = padded.narrow(axis, 2, size)
    pairs = torch.stack((x * 0.75 + before * 0.25, x * 0.75 + after * 0.25), dim=axis)
    return pairs.flatten(axis - 1, axis)


@lru_cache(maxsize=64)
def _divisors(table: tuple[tuple[int, ...], ...], quality: int, device: torch.device) -> Tensor:
    """Scale a quantisation table as libjpeg does: (8, 8, 1) float32 of 1 .. 255."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    scaled = [[min(255, max(1, (q * percent + 50) // 100)) for q in row] for row in table]
    return torch.tensor(scaled, dtype=torch.float32, device=device)[..., None]


@lru_cache(maxsize=16)
def _cosines(device: torch.device) -> Tensor:
    """The orthonormal 8-point DCT-II, (frequency, position)."""
    rows = [
        [
            math.sqrt((2 if k else 1) / 8) * math.cos(math.pi * (2 * i + 1) * k / 16)
            for i in range(8)
        ]
        for k in range(8)
    ]
    return torch.tensor(rows, device=device)


def _transform(blocks: Tensor, matrix: Tensor) -> Tensor:
    """out[k, l] = sum over i, j of matrix[k, i] blocks[i, j] matrix[l, j], blocks (8, 8, M)."""
    for axis in (0, 1):
        shape = (8, 1, 1) if axis == 0 else (1, 8, 1)
        out = matrix[:, 0].view(shape) * blocks.narrow(axis, 0, 1)
        for i in range(1, 8):
            out.addcmul_(matrix[:, i].view(shape), blocks.narrow(axis, i, 1))
        blocks = out
    return blocks


def _through_blocks(x: Tensor, table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Transform 8 x 8 blocks, round the coefficients, transform back to 8-bit levels."""
    n, c, h, w = x.shape
    blocks = (x - 128).view(n, c, h // 8, 8, w // 8, 8).permute(3, 5, 0, 1, 2, 4)
    blocks = blocks.reshape(8, 8, -1)
    matrix = _cosines(x.device)
    divisors = _divisors(table, quality, x.device)
    # libjpeg keeps eighths, and takes a half away from zero.
    eighths = _transform(blocks, matrix).mul_(8).round_()
    steps = eighths.abs().div_(divisors * 8).add_(0.5).floor_().copysign_(eighths)
    blocks = _transform(steps.mul_(divisors), matrix.T).view(8, 8, n, c, h // 8, w // 8)
    x = blocks.permute(2, 3, 4, 0, 5, 1).reshape(n, c, h, w)
    return (x + 128).round_().clamp_(0, 255)

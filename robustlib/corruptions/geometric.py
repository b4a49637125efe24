"""Geometry: pixels move, their colours stay."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from robustlib.core.randomness import Stream
from robustlib.corruptions.filters import border_index, gaussian_weights, sample, sample_affine
from robustlib.corruptions.registry import (
    IMAGENET_C,
    OVERLAP,
    AmountRange,
    published,
    register,
)


@register(family="geometric", source=OVERLAP, random=True, table=AmountRange("degrees", 7, 50))
def rotation(images: Tensor, stream: Stream, degrees: Tensor) -> Tensor:
    """Turn about the centre by +degrees or -degrees, bilinear, black outside."""
    angle = stream.sign() * degrees.deg2rad()
    cos, sin = angle.cos(), angle.sin()
    return sample_affine(images, (cos, sin, -sin, cos, 0.0, 0.0), "zero")


@register(family="geometric", source=OVERLAP, random=True, table=AmountRange("degrees", 12, 39))
def shear(images: Tensor, stream: Stream, degrees: Tensor) -> Tensor:
    """Slant about the centre by +degrees or -degrees, along x or along y, black outside.

    The axis, x or y with equal chance, is this project's choice.
    """
    slope = stream.sign() * degrees.deg2rad().tan()
    along_x = (stream.sign() + 1) / 2
    return sample_affine(images, (1.0, slope * along_x, slope * (1 - along_x), 1.0, 0, 0), "zero")


@register(family="geometric", source=OVERLAP, random=True, table=AmountRange("shift_px", 15, 62))
def translation(images: Tensor, stream: Stream, shift_px: Tensor) -> Tensor:
    """Move by shift_px along both axes, each sign drawn by itself, black fill."""
    n, c, h, w = images.shape
    shift = (stream.sign((2,)) * shift_px[:, None]).long()
    y = torch.arange(h, device=images.device) - shift[:, :1]
    x = torch.arange(w, device=images.device) - shift[:, 1:]
    inside = ((y >= 0) & (y < h))[:, :, None] & ((x >= 0) & (x < w))[:, None, :]
    index = y.clamp_(0, h - 1)[:, :, None] * w + x.clamp_(0, w - 1)[:, None, :]
    index = index.view(n, 1, h * w).expand(n, c, h * w)
    return images.reshape(n, c, h * w).gather(2, index).view_as(images) * inside[:, None]


@register(family="geometric", source=OVERLAP, random=True, table=AmountRange("crop_px", 44, 110))
def elastic(images: Tensor, stream: Stream, crop_px: Tensor) -> Tensor:
    """Cut crop_px off one axis and stretch what is left over the whole side, bilinear.

    The axis, x or y with equal chance, and the place of the crop, even over all that fit, are
    this project's choice.
    """
    h, w = images.shape[-2:]
    along_x = (stream.sign() + 1) / 2
    place = stream.uniform((), -0.5, 0.5)
    side = along_x * w + (1 - along_x) * h
    crop = torch.minimum(crop_px, side - 1)
    stretch, shift = 1 - crop / side, place * crop
    return sample_affine(
        images,
        (
            1 - along_x * (1 - stretch),
            0.0,
            0.0,
            1 - (1 - along_x) * (1 - stretch),
            along_x * shift,
            (1 - along_x) * shift,
        ),
        "symmetric",
    )


@register(
    family="geometric",
    source=IMAGENET_C,
    random=True,
    table=published(
        "displacement_px smoothing_sigma_px affine_jitter_px",
        {
            32: (
                (0, 0, 2.56),
                (1.6, 6.4, 2.24),
                (2.56, 1.92, 1.92),
                (3.2, 1.28, 1.6),
                (3.2, 0.96, 0.96),
            ),
            64: (
                (0, 0, 5.12),
                (3.2, 19.2, 3.84),
                (6.4, 5.12, 3.84),
                (6.4, 1.92, 1.92),
                (10.24, 1.92, 1.28),
            ),
            224: (
                (488, 170.8, 24.4),
                (488, 19.52, 48.8),
                (12.2, 2.44, 4.88),
                (17.08, 2.44, 4.88),
                (29.28, 2.44, 4.88),
            ),
        },
    ),
)
def elastic_transform(
    images: Tensor,
    stream: Stream,
    displacement_px: float,
    smoothing_sigma_px: float,
    affine_jitter_px: float,
) -> Tensor:
    """A random affine map, then a smooth random displacement of every pixel.

    The affine map moves three points (the centre plus (s, s), (s, -s) and (-s, -s), s a third
    of the shorter side) by offsets uniform up to affine_jitter_px on each axis; edges
    mirrored. The displacements, uniform on -1 .. 1, are smoothed by a Gaussian cut at 3 sigma
    and multiplied by displacement_px; edges mirrored with repeating.
    """
    h, w = images.shape[-2:]
    jitter = stream.uniform((6,), -affine_jitter_px, affine_jitter_px)
    images = sample_affine(images, _jittered_affine(jitter, h, w), "mirror")
    if not displacement_px:
        return images
    field = stream.uniform((2, h, w), -1.0, 1.0)
    dx, dy = _smooth(field, smoothing_sigma_px).mul_(displacement_px).unbind(1)
    x = torch.arange(w, device=images.device) + dx
    y = torch.arange(h, device=images.device)[:, None] + dy
    return sample(images, x, y, "symmetric")


def _jittered_affine(jitter: Tensor, h: int, w: int) -> tuple[Tensor, ...]:
    """Target-to-source map of `sample_affine` for moving three points by jitter (N, 6).

    The forward map is p -> q with q = p + offset at the three points. Their differences are
    (0, 2s) and (2s, 0), so its matrix can be read off without solving.
    """
    s = max(1, min(h, w) // 3)
    ax, ay, bx, by, cx, cy = jitter.unbind(1)  # offsets at (+s, +s), (+s, -s), (-s, -s)
    m00, m10 = 1 + (bx - cx) / (2 * s), (by - cy) / (2 * s)
    m01, m11 = (ax - bx) / (2 * s), 1 + (ay - by) / (2 * s)
    # The points sit around side // 2, the centre of `sample_affine` is (side - 1) / 2.
    ox, oy = w // 2 - (w - 1) / 2, h // 2 - (h - 1) / 2
    tx = ox + s + ax - m00 * (ox + s) - m01 * (oy + s)
    ty = oy + s + ay - m10 * (ox + s) - m11 * (oy + s)
    det = m00 * m11 - m01 * m10
    det = torch.where(det.abs() < 1e-3, 1e-3, det)
    a, b, c, d = m11 / det, -m01 / det, -m10 / det, m00 / det
    return a, b, c, d, -(a * tx + b * ty), -(c * tx + d * ty)


@lru_cache(maxsize=64)
def _smoothing_matrix(size: int, sigma: float, device: torch.device) -> Tensor:
    """(size, size) float64: a Gaussian cut at 3 sigma with the mirrored border folded in."""
    radius = int(3 * sigma + 0.5)
    index = border_index(size, radius, radius, "symmetric")
    weights = gaussian_weights(sigma, radius)
    matrix = torch.zeros(size, size, dtype=torch.float64, device="cpu")
    for i in range(size):
        for j, weight in enumerate(weights):
            matrix[i, index[i + j]] += weight
    return matrix.to(device)


def _smooth(field: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing as two products in float64, whose rounding a float32 doesn't see."""
    h, w = field.shape[-2:]
    rows = _smoothing_matrix(h, sigma, field.device)
    columns = _smoothing_matrix(w, sigma, field.device)
    return (rows @ field.double() @ columns.T).float()

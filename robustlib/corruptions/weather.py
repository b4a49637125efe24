"""Weather: fog, snow, rain."""

from __future__ import annotations

import torch
from torch import Tensor

from robustlib.corruptions.filters import clipped_zoom, luma, motion_filter, stamp
from robustlib.corruptions.occlusion import _places
from robustlib.corruptions.registry import (
    IMAGENET_C,
    OVERLAP,
    even_steps,
    published,
    register,
)
from robustlib.randomness import Stream


@register(
    family="weather",
    source=IMAGENET_C,
    random=True,
    table=published(
        "strength wibble_decay",
        {
            32: ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
            224: ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        },
    ),
)
def fog(images: Tensor, stream: Stream, strength: float, wibble_decay: float) -> Tensor:
    """(x + strength p) m / (m + strength): p a plasma in [0, 1], m the largest value of x."""
    h, w = images.shape[-2:]
    side = 1 << (max(h, w, 2) - 1).bit_length()
    mist = plasma(stream, side, wibble_decay)[:, None, :h, :w]
    largest = images.amax((1, 2, 3), keepdim=True)
    # An all-black image has m = 0, and fog leaves it black.
    return mist.mul(strength).add(images).mul_(largest / (largest + strength))


def plasma(stream: Stream, side: int, wibble_decay: float) -> Tensor:
    """Cloud maps (N, side, side) in [0, 1] by the diamond-square algorithm on a torus.

    side: a power of 2. A new point is the mean of four old ones plus an offset uniform on
    +-amplitude. As in the published code the amplitude is the square of a "wibble" that is
    divided by wibble_decay at each level.
    """
    grid = torch.zeros(stream.n, side, side, device=stream.device)
    step, wibble = side, 100.0
    while step >= 2:
        half, points = step // 2, side // step

        def offset(points: int = points, amplitude: float = wibble * wibble) -> Tensor:
            return stream.uniform((points, points), -amplitude, amplitude)

        corners = grid[:, ::step, ::step]
        down = corners + corners.roll(-1, 1)
        centres = (down + down.roll(-1, 2)) / 4 + offset()
        across = corners + corners.roll(-1, 2) + centres + centres.roll(1, 1)
        along = down + centres + centres.roll(1, 2)
        grid[:, half::step, half::step] = centres
        grid[:, ::step, half::step] = across / 4 + offset()
        grid[:, half::step, ::step] = along / 4 + offset()
        step, wibble = half, wibble / wibble_decay
    low = grid.amin((1, 2), keepdim=True)
    high = grid.amax((1, 2), keepdim=True)
    return (grid - low).div_(high - low)


@register(
    family="weather",
    source=IMAGENET_C,
    random=True,
    table=published(
        "loc scale zoom threshold motion_radius_px motion_sigma_px image_weight",
        {
            32: (
                (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
                (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
                (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
                (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
                (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
            ),
            224: (
                (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
                (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
                (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
                (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
                (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
            ),
        },
    ),
)
def snow(
    images: Tensor,
    stream: Stream,
    loc: float,
    scale: float,
    zoom: float,
    threshold: float,
    motion_radius_px: int,
    motion_sigma_px: float,
    image_weight: float,
) -> Tensor:
    """Flakes, magnified normal noise above a threshold, in streaks over a whitened image.

    The image is blended with max(x, 1.5 grey + 0.5), the more the lower image_weight, and the
    streaks are added twice, once turned by 180 degrees. Streaks fall at -135 to -45 degrees.
    """
    h, w = images.shape[-2:]
    flakes = clipped_zoom(stream.normal((1, h, w), mean=loc, std=scale), zoom)
    flakes = torch.where(flakes < threshold, 0.0, flakes.clamp(0, 1))
    degrees = stream.uniform((), -135.0, -45.0)
    streaks = motion_filter(flakes, motion_radius_px, motion_sigma_px, degrees)
    whitened = torch.maximum(images, luma(images) * 1.5 + 0.5)
    out = image_weight * images + (1 - image_weight) * whitened
    return out.add_(streaks).add_(streaks.flip(2, 3))


@register(family="weather", source=OVERLAP, random=True, table=even_steps(drop_count=(12, 120)))
def rain(images: Tensor, stream: Stream, drop_count: int) -> Tensor:
    """Half-white discs at random places, drop_count of them: (x + 1) / 2 under a drop.

    A radius of 4 pixels at 224 is this project's choice; the count is published.
    """
    h, w = images.shape[-2:]
    x, y = _places(images, stream, drop_count)
    radius = max(0.3, 4 * min(h, w) / 224)
    mask = stamp((h, w), x, y, radius, radius)
    return images + mask.mul_(0.5) * (1 - images)

"""Small shapes drawn over images: drops, dashes, rhombi, discs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from robustlib.core.randomness import Stream

# From the distances |dx|, |dy| to the centre, the distance to the outline, positive inside.
Outline = Callable[[Tensor, Tensor], Tensor]


def draw_shapes(
    stream: Stream, images: Tensor, counts: Tensor, outline: Outline, reach: float
) -> Tensor:
    """Coverage in [0, 1] of `counts` shapes at random places over images: float32 (N, 1, H, W).

    counts: (N,), whole numbers, of which the stream is read to the largest: draw nothing after
    it. outline: the shape, symmetric about its centre, in pixels. reach: its largest half side.
    The edge falls off over one pixel. Where shapes overlap, the larger coverage counts.
    """
    h, w = images.shape[-2:]
    most = int(counts.max())
    # An image's k-th place doesn't depend on how many are drawn.
    place = stream.uniform((most, 2))
    x, y = place[..., 0] * w - 0.5, place[..., 1] * h - 0.5
    return stamp((h, w), x, y, counts, outline, reach)


def stamp(
    image_shape: tuple[int, int],
    x: Tensor,
    y: Tensor,
    counts: Tensor,
    outline: Outline,
    reach: float,
) -> Tensor:
    """Coverage (N, 1, H, W) of the first `counts` (N,) shapes with centres x, y (N, K)."""
    h, w = image_shape
    n, k = x.shape
    steps = torch.arange(-math.ceil(reach + 0.5), math.ceil(reach + 0.5) + 1, device=x.device)
    px = (x.round().long()[..., None, None] + steps).expand(n, k, len(steps), len(steps))
    py = (y.round().long()[..., None, None] + steps[:, None]).expand_as(px)
    dx, dy = (px - x[..., None, None]).abs(), (py - y[..., None, None]).abs()
    coverage = (outline(dx, dy) + 0.5).clamp_(0, 1)
    wanted = torch.arange(k, device=x.device) < counts[:, None]
    inside = (px >= 0) & (px < w) & (py >= 0) & (py < h) & wanted[..., None, None]
    index = torch.where(inside, py * w + px, 0).view(n, -1)
    coverage = torch.where(inside, coverage, 0.0).view(n, -1)
    canvas = coverage.new_zeros(n, h * w)
    return canvas.scatter_reduce_(1, index, coverage, "amax").view(n, 1, h, w)


def disc(radius: float) -> Outline:
    """A disc; one thinner than a pixel is fainter instead of lost."""
    return lambda dx, dy: _faint(radius - (dx * dx + dy * dy).sqrt_(), 2 * radius)


def rhombus(radius: float) -> Outline:
    """|dx| + |dy| <= radius."""
    return lambda dx, dy: _faint((radius - dx - dy) / math.sqrt(2), 2 * radius)


def dash(half_width: float, half_height: float) -> Outline:
    """An upright rectangle; one thinner than a pixel is fainter instead of lost."""
    thickness = 2 * min(half_width, half_height)
    return lambda dx, dy: _faint(torch.minimum(half_width - dx, half_height - dy), thickness)


def _faint(distance: Tensor, thickness: float) -> Tensor:
    """The distance to the outline, such that a thin shape covers at most its thickness."""
    return distance.clamp_max_(min(0.5, thickness - 0.5))

"""Occlusion: something covers a part of the image."""

from __future__ import annotations

import torch
from torch import Tensor

from robustlib.core.randomness import Stream
from robustlib.corruptions import shapes
from robustlib.corruptions.registry import OVERLAP, AmountRange, register
from robustlib.corruptions.shapes import draw_shapes

GREY = 0.5


@register(family="occlusion", source=OVERLAP, random=True, table=AmountRange("side_px", 47, 125))
def obstruction(images: Tensor, stream: Stream, side_px: Tensor) -> Tensor:
    """A grey square of side_px, wholly inside the image, at a random place."""
    h, w = images.shape[-2:]
    side = side_px.view(-1, 1, 1)
    u = stream.uniform((2, 1, 1))
    top = (u[:, 0] * ((h - side).clamp_min(0) + 1)).floor_()
    left = (u[:, 1] * ((w - side).clamp_min(0) + 1)).floor_()
    y = torch.arange(h, device=images.device)[:, None]
    x = torch.arange(w, device=images.device)
    covered = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
    return torch.where(covered[:, None], GREY, images)


@register(family="occlusion", source=OVERLAP, random=False, table=AmountRange("width_px", 9, 46))
def border(images: Tensor, width_px: Tensor) -> Tensor:
    """A grey frame of width_px along all four edges."""
    h, w = images.shape[-2:]
    y = torch.arange(h, device=images.device)[:, None]
    x = torch.arange(w, device=images.device)
    depth = torch.minimum(torch.minimum(y, h - 1 - y), torch.minimum(x, w - 1 - x))
    return torch.where(depth < width_px.view(-1, 1, 1, 1), GREY, images)


@register(family="occlusion", source=OVERLAP, random=True, table=AmountRange("dash_count", 14, 180))
def vertical_artifacts(images: Tensor, stream: Stream, dash_count: Tensor) -> Tensor:
    """Upright grey dashes at random places, dash_count of them.

    A dash of 1.5 by 14 pixels at 224 is this project's choice; the count is published.
    """
    width, height = _dash_size(images)
    outline = shapes.dash(width / 2, height / 2)
    return _cover(images, draw_shapes(stream, images, dash_count, outline, height / 2))


@register(family="occlusion", source=OVERLAP, random=True, table=AmountRange("dash_count", 14, 170))
def artifacts(images: Tensor, stream: Stream, dash_count: Tensor) -> Tensor:
    """Lying grey dashes at random places, dash_count of them.

    Size (14 by 1.5 pixels at 224) and direction are this project's choice; the count is
    published.
    """
    width, height = _dash_size(images)
    outline = shapes.dash(height / 2, width / 2)
    return _cover(images, draw_shapes(stream, images, dash_count, outline, height / 2))


@register(family="occlusion", source=OVERLAP, random=True, table=AmountRange("shape_count", 9, 76))
def rhombus(images: Tensor, stream: Stream, shape_count: Tensor) -> Tensor:
    """Grey rhombi of radius 7 at 224 pixels at random places, shape_count of them."""
    radius = max(0.3, 7 * _scale(images))
    outline = shapes.rhombus(radius)
    return _cover(images, draw_shapes(stream, images, shape_count, outline, radius))


@register(family="occlusion", source=OVERLAP, random=True, table=AmountRange("shape_count", 7, 50))
def circle(images: Tensor, stream: Stream, shape_count: Tensor) -> Tensor:
    """Grey discs of radius 6 at 224 pixels at random places, shape_count of them."""
    radius = max(0.3, 6 * _scale(images))
    outline = shapes.disc(radius)
    return _cover(images, draw_shapes(stream, images, shape_count, outline, radius))


def _dash_size(images: Tensor) -> tuple[float, float]:
    return max(0.6, 1.5 * _scale(images)), 14 * _scale(images)


def _scale(images: Tensor) -> float:
    return min(images.shape[-2:]) / 224


def _cover(images: Tensor, mask: Tensor) -> Tensor:
    return images + mask * (GREY - images)

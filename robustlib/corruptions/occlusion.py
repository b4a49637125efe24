"""Occlusion: something covers a part of the image."""

from __future__ import annotations

import torch
from torch import Tensor

from robustlib.corruptions.filters import random_places, stamp
from robustlib.corruptions.registry import OVERLAP, even_steps, register
from robustlib.randomness import Stream

GREY = 0.5


@register(family="occlusion", source=OVERLAP, random=True, table=even_steps(side_px=(47, 125)))
def obstruction(images: Tensor, stream: Stream, side_px: int) -> Tensor:
    """A grey square of side_px, wholly inside the image, at a random place."""
    h, w = images.shape[-2:]
    u = stream.uniform((2, 1, 1))
    top = (u[:, 0] * (max(0, h - side_px) + 1)).floor_()
    left = (u[:, 1] * (max(0, w - side_px) + 1)).floor_()
    y = torch.arange(h, device=images.device)[:, None]
    x = torch.arange(w, device=images.device)
    covered = (y >= top) & (y < top + side_px) & (x >= left) & (x < left + side_px)
    return torch.where(covered[:, None], GREY, images)


@register(family="occlusion", source=OVERLAP, random=False, table=even_steps(width_px=(9, 46)))
def border(images: Tensor, width_px: int) -> Tensor:
    """A grey frame of width_px along all four edges."""
    h, w = images.shape[-2:]
    out = torch.full_like(images, GREY)
    inner = (..., slice(width_px, h - width_px), slice(width_px, w - width_px))
    if min(h, w) > 2 * width_px:
        out[inner] = images[inner]
    return out


@register(
    family="occlusion", source=OVERLAP, random=True, table=even_steps(vertical_count=(14, 180))
)
def vertical_artifacts(images: Tensor, stream: Stream, vertical_count: int) -> Tensor:
    """Upright grey dashes at random places, vertical_count of them.

    A dash of 1.5 by 14 pixels at 224 is this project's choice; the count is published.
    """
    h, w = images.shape[-2:]
    scale = min(h, w) / 224
    x, y = random_places(stream, (h, w), vertical_count)
    mask = stamp((h, w), x, y, max(0.3, 0.75 * scale), 7 * scale)
    return images + mask * (GREY - images)

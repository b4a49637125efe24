"""Colour and light: every pixel changes by the same rule."""

from __future__ import annotations

import torch
from torch import Tensor

from robustlib.corruptions.filters import hsv_to_rgb, rgb_to_hsv, value_chroma_saturation
from robustlib.corruptions.registry import (
    IMAGENET_C,
    OVERLAP,
    even_steps,
    published,
    register,
)
from robustlib.randomness import Stream


@register(
    family="light",
    source=IMAGENET_C,
    random=False,
    table=published(
        "value_shift",
        {
            32: (0.05, 0.1, 0.15, 0.2, 0.3),
            64: (0.1, 0.2, 0.3, 0.4, 0.5),
            224: (0.1, 0.2, 0.3, 0.4, 0.5),
        },
    ),
)
def brightness(images: Tensor, value_shift: float) -> Tensor:
    """Add value_shift to V of HSV and clip; hue and saturation stay.

    That multiplies a pixel by V' / V. Black, which has no hue, becomes the grey V'.
    """
    value = images.amax(1, keepdim=True)
    shifted = (value + value_shift).clamp_(0, 1)
    return torch.where(value > 0, images * (shifted / value.clamp_min(1e-12)), shifted)


@register(
    family="light",
    source=IMAGENET_C,
    random=False,
    table=published(
        "factor",
        {
            32: (0.75, 0.5, 0.4, 0.3, 0.15),
            64: (0.4, 0.3, 0.2, 0.1, 0.05),
            224: (0.4, 0.3, 0.2, 0.1, 0.05),
        },
    ),
)
def contrast(images: Tensor, factor: float) -> Tensor:
    """(x - m) factor + m, m the mean of each channel over the image."""
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean).mul_(factor).add_(mean)


@register(
    family="light",
    source=IMAGENET_C,
    random=False,
    table=published(
        "saturation_factor saturation_shift",
        {
            32: ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
            64: ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
            224: ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        },
    ),
)
def saturate(images: Tensor, saturation_factor: float, saturation_shift: float) -> Tensor:
    """S' = clip(S saturation_factor + saturation_shift) in HSV; hue and value stay.

    That scales a pixel's distance from its value, V - x, by S' / S. A grey counts as hue 0,
    so a shift tints it red, as in the published code.
    """
    value, _, saturation = value_chroma_saturation(images)
    new = (saturation * saturation_factor + saturation_shift).clamp_(0, 1)
    value, saturation, new = value[:, None], saturation[:, None], new[:, None]
    ratio = new / torch.where(saturation > 0, saturation, 1.0)
    out = value - (value - images).mul_(ratio)
    if saturation_shift:
        tinted = torch.cat((value, (value * (1 - new)).expand(-1, 2, -1, -1)), dim=1)
        out = torch.where(saturation > 0, out, tinted)
    return out


@register(family="light", source=OVERLAP, random=True, table=even_steps(turn=(0.05, 0.5)))
def hue(images: Tensor, stream: Stream, turn: float) -> Tensor:
    """Turn the hue of HSV by +turn or -turn of the full circle, the sign drawn for each image."""
    angle, saturation, value = rgb_to_hsv(images)
    return hsv_to_rgb(angle + turn * stream.sign((1, 1)), saturation, value)

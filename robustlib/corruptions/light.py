"""Colour and light: every pixel changes by the same rule."""

from __future__ import annotations

import torch
from torch import Tensor

from robustlib.core.randomness import Stream
from robustlib.corruptions.filters import hsv_to_rgb, luma, rgb_to_hsv
from robustlib.corruptions.registry import (
    IMAGENET_C,
    OVERLAP,
    AmountRange,
    published,
    register,
)


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
    ratio = shifted / value.clamp_min(1e-12)
    return torch.addcmul(shifted.mul_(value.eq_(0)), images, ratio)


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
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    inverse = value / chroma.clamp_min(1e-12)  # 1 / S
    ratio = torch.minimum((inverse * saturation_shift).add_(saturation_factor), inverse)
    out = torch.lerp(value, images, ratio)
    if saturation_shift:
        out[:, 1:].sub_(value.mul_(chroma.eq_(0)), alpha=saturation_shift)
    return out


@register(family="light", source=OVERLAP, random=True, table=AmountRange("shift", 0.16, 0.51))
def laugros_brightness(images: Tensor, stream: Stream, shift: Tensor) -> Tensor:
    """x + shift or x - shift, the sign drawn for each image."""
    return images + _each(stream.sign() * shift)


@register(family="light", source=OVERLAP, random=False, table=AmountRange("blend", 0.33, 0.74))
def laugros_contrast(images: Tensor, blend: Tensor) -> Tensor:
    """(1 - blend) x + blend m, m the mean of all values of the image."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return images + (mean - images).mul_(_each(blend))


@register(family="light", source=OVERLAP, random=False, table=AmountRange("blend", 0.49, 1))
def gray_scale(images: Tensor, blend: Tensor) -> Tensor:
    """(1 - blend) x + blend g, g the grey value of each pixel."""
    return images + (luma(images) - images).mul_(_each(blend))


@register(family="light", source=OVERLAP, random=True, table=AmountRange("shift", 0.09, 0.4))
def color_distortion(images: Tensor, stream: Stream, shift: Tensor) -> Tensor:
    """Add shift to one of the three channels, drawn for each image."""
    channel = stream.integers(0, 3)[:, None] == torch.arange(3, device=images.device)
    return images + (channel * shift[:, None])[..., None, None]


@register(family="light", source=OVERLAP, random=True, table=AmountRange("shift", 0.11, 0.44))
def backlight(images: Tensor, stream: Stream, shift: Tensor) -> Tensor:
    """Add shift to one half of the image and take it from the other, which one is drawn.

    Halves side by side, as against one above the other, are this project's choice.
    """
    w = images.shape[-1]
    side = images.new_ones(w)
    side[w // 2 :] = -1
    return images + side * _each(stream.sign() * shift)


@register(family="light", source=OVERLAP, random=True, table=AmountRange("turn", 0.05, 0.5))
def hue(images: Tensor, stream: Stream, turn: Tensor) -> Tensor:
    """Turn the hue of HSV by +turn or -turn of the full circle, the sign drawn for each image."""
    angle, saturation, value = rgb_to_hsv(images)
    turn = (stream.sign() * turn).view(-1, 1, 1)
    return hsv_to_rgb(angle + turn, saturation, value)


def _each(amount: Tensor) -> Tensor:
    """One value for each image (N,), to be combined with (N, C, H, W)."""
    return amount.view(-1, 1, 1, 1)

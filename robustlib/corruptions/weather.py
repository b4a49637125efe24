"""Weather: fog, snow, frost, spatter, rain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlib.core.randomness import Stream
from robustlib.corruptions.filters import (
    clipped_zoom,
    filter_2d,
    gaussian_filter,
    luma,
    motion_filter,
    pad,
)
from robustlib.corruptions.registry import (
    IMAGENET_C,
    OVERLAP,
    AmountRange,
    published,
    register,
)
from robustlib.corruptions.shapes import disc, draw_shapes
from robustlib.corruptions.textures import plasma, scaled_pictures


@register(
    family="weather",
    source=IMAGENET_C,
    random=True,
    table=published(
        "strength wibble_decay",
        {
            32: ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
            64: ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
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
            64: (
                (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
                (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
                (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
                (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
                (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
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
    flakes = F.threshold(flakes, threshold, 0.0).clamp_(0, 1)
    degrees = stream.uniform((), -135.0, -45.0)
    streaks = motion_filter(flakes, motion_radius_px, motion_sigma_px, degrees)
    whiter = (luma(images).mul_(1.5).add_(0.5) - images).clamp_min_(0)
    return torch.add(images, whiter, alpha=1 - image_weight).add_(streaks).add_(streaks.flip(2, 3))


@register(
    family="weather",
    source=IMAGENET_C,
    random=True,
    table=published(
        "loc scale sigma_px threshold strength mud",
        {
            32: (
                (0.62, 0.1, 0.7, 0.7, 0.5, False),
                (0.65, 0.1, 0.8, 0.7, 0.5, False),
                (0.65, 0.3, 1, 0.69, 0.5, False),
                (0.65, 0.1, 0.7, 0.69, 0.6, True),
                (0.65, 0.1, 0.5, 0.68, 0.6, True),
            ),
            64: (
                (0.62, 0.1, 0.7, 0.7, 0.6, False),
                (0.65, 0.1, 0.8, 0.7, 0.6, False),
                (0.65, 0.3, 1, 0.69, 0.6, False),
                (0.65, 0.1, 0.7, 0.68, 0.6, True),
                (0.65, 0.1, 0.5, 0.67, 0.6, True),
            ),
            224: (
                (0.65, 0.3, 4, 0.69, 0.6, False),
                (0.65, 0.3, 3, 0.68, 0.6, False),
                (0.65, 0.3, 2, 0.68, 0.5, False),
                (0.65, 0.3, 1, 0.65, 1.5, True),
                (0.67, 0.4, 1, 0.65, 1.5, True),
            ),
        },
    ),
)
def spatter(
    images: Tensor,
    stream: Stream,
    loc: float,
    scale: float,
    sigma_px: float,
    threshold: float,
    strength: float,
    mud: bool,
) -> Tensor:
    """Splashes where smoothed normal noise passes a threshold: water, or mud if `mud`.

    Mud covers the image with brown, its mask blurred by sigma = strength and cut at 0.8.
    Water adds turquoise, strength times the relief of the drops, scaled to a maximum of 1.
    """
    h, w = images.shape[-2:]
    liquid = gaussian_filter(stream.normal((1, h, w), mean=loc, std=scale), sigma_px)
    if mud:
        cover = gaussian_filter((liquid > threshold).float(), strength)
        cover = F.threshold(cover, 0.8, 0.0)
        brown = images.new_tensor(_MUD).view(3, 1, 1) / 255
        return (brown - images).mul_(cover).add_(images)
    liquid = F.threshold(liquid, threshold, 0.0).mul_(255).clamp_(0, 255).floor_()
    relief = liquid.mul(_relief(liquid))
    relief.div_(relief.amax((2, 3), keepdim=True).clamp_min_(1e-6))
    turquoise = images.new_tensor(_WATER).view(3, 1, 1) / 255
    return (relief * (strength * turquoise)).add_(images)


@register(
    family="weather",
    source=IMAGENET_C,
    random=True,
    table=published(
        "image_weight frost_weight photograph_scale",
        {
            32: (
                (1, 0.2, 0.2),
                (1, 0.3, 0.2),
                (0.9, 0.4, 0.2),
                (0.85, 0.4, 0.2),
                (0.75, 0.45, 0.2),
            ),
            64: (
                (1, 0.3, 0.3),
                (0.9, 0.4, 0.3),
                (0.8, 0.45, 0.3),
                (0.75, 0.5, 0.3),
                (0.7, 0.55, 0.3),
            ),
            224: ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
        },
    ),
)
def frost(
    images: Tensor,
    stream: Stream,
    image_weight: float,
    frost_weight: float,
    photograph_scale: float,
    *,
    photographs: str | Path | None = None,
) -> Tensor:
    """image_weight x + frost_weight f, f a random crop of one of several pictures of frost.

    photographs: a folder with the photographs of ImageNet-C, for the published corruption; of
    the six files its code draws one of the first five, as here (frost2.png and frost3.png are the
    same picture). Or a folder with others, .png or .jpg, each as likely. None for the pictures of
    `textures.frost_pictures`, this project's own. They are scaled by photograph_scale, or by
    more if the image needs it, which is this project's choice: the published code fails then.
    A folder that is changed is read again.
    Raises `ValueError` if the folder is missing, holds no such file or only some of the published
    ones, or if a file can't be read.
    """
    h, w = images.shape[-2:]
    pixels, sizes = scaled_pictures(photographs, photograph_scale, (h, w), images.device)
    start, height, width = sizes[stream.integers(0, len(sizes))].unbind(1)
    # As published, a crop never reaches the last row or column.
    places = torch.stack((height - h, width - w), 1).clamp_min(1)
    top, left = (stream.uniform((2,)) * places).long().minimum(places - 1).unbind(1)
    rows = top[:, None] + torch.arange(h, device=images.device)
    columns = left[:, None] + torch.arange(w, device=images.device)
    index = (start[:, None] + rows * width[:, None])[:, :, None] + columns[:, None]
    crops = pixels.gather(1, index.view(1, -1).expand(3, -1)).view(3, -1, h, w)
    return (images * image_weight).add_(crops.transpose(0, 1), alpha=frost_weight / 255)


_WATER = (175.0, 238.0, 238.0)
_MUD = (63.0, 42.0, 20.0)
_EMBOSS = ((-2.0, -1.0, 0.0), (-1.0, 1.0, 1.0), (0.0, 1.0, 2.0))
_REACH = 20


def _relief(liquid: Tensor) -> Tensor:
    """Embossed distance to the nearest rim of a drop, in 8-bit levels: (N, 1, H, W)."""
    distance = _mean_3x3(_distance(_edges(liquid, 50, 150)))
    height = _equalise(distance.add_(1e-4).long())
    return _mean_3x3(filter_2d(height, _EMBOSS, "mirror").clamp_(0, 255)).round_()


def _mean_3x3(images: Tensor) -> Tensor:
    images = pad(images, (1, 1), (1, 1), "mirror")
    images = (images[..., :-2, :] + images[..., 1:-1, :]).add_(images[..., 2:, :])
    return (images[..., :-2] + images[..., 1:-1]).add_(images[..., 2:]).div_(9)


def _edges(grey: Tensor, weak: int, strong: int) -> Tensor:
    """Canny's detector: Sobel gradients, thinned to ridges, kept where strong or joined to it.

    grey: whole levels 0 to 255. Returns int16 (N, 1, H, W), 1 on an edge and 0 elsewhere.
    """
    h, w = grey.shape[-2:]
    levels = pad(grey, (1, 1), (1, 1), "edge").to(torch.int16)
    across = (levels[..., :-2, :] + levels[..., 2:, :]).add_(levels[..., 1:-1, :], alpha=2)
    down = (levels[..., :-2] + levels[..., 2:]).add_(levels[..., 1:-1], alpha=2)
    gx = across[..., 2:] - across[..., :-2]
    gy = down[..., 2:, :] - down[..., :-2, :]
    ax, ay = gx.abs(), gy.abs()
    magnitude = ax + ay
    padded = F.pad(magnitude, (1, 1, 1, 1))
    above = padded + 1

    def ridge(dy: int, dx: int) -> Tensor:
        before = above[..., 1 - dy : 1 - dy + h, 1 - dx : 1 - dx + w]
        after = padded[..., 1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]
        return _at_least(magnitude, torch.maximum(before, after))

    tangent = 0.41421356  # tan 22.5 degrees
    flat = _at_least((ax * tangent).to(torch.int16), ay)
    steep = _at_least((ay * tangent).to(torch.int16), ax)
    rising = gx.bitwise_xor_(gy) >> 15  # all ones where gx and gy differ in sign
    diagonal = (ridge(1, -1) & rising) | (ridge(1, 1) & ~rising)
    thin = (ridge(0, 1) & flat) | (ridge(1, 0) & steep) | (diagonal & ~(flat | steep))
    candidates = thin & _at_least(magnitude, weak + 1)
    edges = candidates & _at_least(magnitude, strong + 1)
    while True:
        grown = edges.clone()
        grown[..., 1:, :] |= edges[..., :-1, :]
        grown[..., :-1, :] |= edges[..., 1:, :]
        wide = grown.clone()
        wide[..., 1:] |= grown[..., :-1]
        wide[..., :-1] |= grown[..., 1:]
        wide &= candidates
        if not (wide ^ edges).amax():
            return edges
        edges = wide


def _at_least(values: Tensor, bound: Tensor | int) -> Tensor:
    """1 where values >= bound and 0 elsewhere, in the type of the values: faster than as bool."""
    return torch.ge(values, bound, out=torch.empty_like(values))


def _distance(edges: Tensor) -> Tensor:
    """Euclidean distance to the nearest 1 of int16 edges, at most 20: (N, 1, H, W) float32."""
    along = _REACH - _REACH * edges
    for step in (1, 2, 4, 8, 5):  # every sum up to 20
        further = along + step
        left, right = along[..., step:], along[..., :-step]
        torch.minimum(left, further[..., :-step], out=left)
        torch.minimum(right, further[..., step:], out=right)
    h = edges.shape[-2]
    square = F.pad(along * along, (0, 0, _REACH, _REACH), value=_REACH**2)
    nearest = square[..., _REACH : _REACH + h, :].clone()
    pair = torch.empty_like(nearest)
    for step in range(1, _REACH):
        above = square[..., _REACH - step : _REACH - step + h, :]
        below = square[..., _REACH + step : _REACH + step + h, :]
        torch.minimum(above, below, out=pair)
        torch.minimum(nearest, pair.add_(step * step), out=nearest)
    return nearest.float().sqrt_()


def _equalise(levels: Tensor) -> Tensor:
    """Equalise the histogram of int64 levels 0 .. 20 to 0 .. 255, for each image: float32."""
    index = levels.flatten(1)
    total = index.shape[1]
    like: dict[str, Any] = {"dtype": torch.float32, "device": levels.device}
    counts = torch.zeros(len(index), _REACH + 1, **like)
    counts.scatter_add_(1, index, torch.ones((), **like).expand_as(index))
    below = counts.cumsum(1)
    # The lowest level is the first that isn't empty.
    first = below.gather(1, below.sign().argmax(1, keepdim=True))
    table = ((below - first) * (255.0 / (total - first).clamp_min(1))).round_()
    flat = first.eq(total)  # an image of one level stays as it is
    table = torch.where(flat, torch.arange(_REACH + 1, **like), table)
    return table.gather(1, index).view_as(levels)


@register(family="weather", source=OVERLAP, random=True, table=AmountRange("drop_count", 12, 120))
def rain(images: Tensor, stream: Stream, drop_count: Tensor) -> Tensor:
    """Half-white discs at random places, drop_count of them: (x + 1) / 2 under a drop.

    A radius of 4 pixels at 224 is this project's choice; the count is published.
    """
    radius = max(0.3, 4 * min(images.shape[-2:]) / 224)
    mask = draw_shapes(stream, images, drop_count, disc(radius), radius)
    return images + mask.mul_(0.5) * (1 - images)

"""Weather: fog, snow, frost, spatter, rain."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlib.corruptions.filters import (
    clipped_zoom,
    filter_2d,
    filter_axis,
    gaussian_filter,
    luma,
    motion_filter,
)
from robustlib.corruptions.registry import (
    IMAGENET_C,
    OVERLAP,
    AmountRange,
    published,
    register,
)
from robustlib.corruptions.shapes import disc, draw_shapes
from robustlib.randomness import Stream


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
    flakes = torch.where(flakes < threshold, 0.0, flakes.clamp(0, 1))
    degrees = stream.uniform((), -135.0, -45.0)
    streaks = motion_filter(flakes, motion_radius_px, motion_sigma_px, degrees)
    whitened = torch.maximum(images, luma(images) * 1.5 + 0.5)
    out = image_weight * images + (1 - image_weight) * whitened
    return out.add_(streaks).add_(streaks.flip(2, 3))


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
    wet = liquid > threshold
    if mud:
        cover = gaussian_filter(wet.float(), strength)
        cover = torch.where(cover < 0.8, 0.0, cover)
        brown = torch.tensor(_MUD, device=images.device).view(3, 1, 1) / 255
        return images * (1 - cover) + brown * cover
    liquid = torch.where(wet, liquid * 255, 0.0).clamp_(0, 255).floor_()
    relief = liquid * _relief(liquid)
    relief = relief / relief.amax((2, 3), keepdim=True).clamp_min(1e-6)
    turquoise = torch.tensor(_WATER, device=images.device).view(3, 1, 1) / 255
    return images + strength * relief * turquoise


@register(
    family="weather",
    source=IMAGENET_C,
    random=True,
    table=published(
        "image_weight frost_weight",
        {
            32: ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
            64: ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
            224: ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        },
    ),
)
def frost(images: Tensor, stream: Stream, image_weight: float, frost_weight: float) -> Tensor:
    """image_weight x + frost_weight f, f a synthetic picture of frost drawn for each image.

    The published corruption takes f from six photographs. This one draws f, and shares with
    it the weights and, roughly, the mean colour and the contrast.
    """
    picture = frost_picture(stream, *images.shape[-2:])
    return picture.mul_(frost_weight).add_(images, alpha=image_weight)


def frost_picture(stream: Stream, h: int, w: int) -> Tensor:
    """Bluish frost (N, 3, h, w) in [0, 1]: six-armed crystals on a cloudy ground.

    Seeds of random brightness grow arms every 60 degrees, turned alike within an image.
    """
    side = 1 << (max(h, w, 2) - 1).bit_length()
    ground = plasma(stream, side, 1.8)[:, None, :h, :w] - 0.5
    seeds = stream.uniform((1, h, w))
    reach = max(1, min(h, w) // 16)
    density = 0.1 / reach**1.5
    seeds = torch.where(seeds < density, seeds / density, 0.0)
    # Off the rim, where replicated edges would smear a seed into a wedge.
    seeds[..., (0, -1), :] = 0
    seeds[..., (0, -1)] = 0
    angle = stream.uniform((), 0.0, 60.0)
    crystals = torch.zeros_like(seeds)
    for turn in range(0, 360, 60):
        arm = motion_filter(seeds, reach, reach, angle + turn)
        crystals = torch.maximum(crystals, arm)
    crystals = crystals / crystals.amax((2, 3), keepdim=True).clamp_min(1e-6)
    level = stream.uniform((1, 1, 1), 0.25, 0.85)
    grey = level + 0.35 * ground + 0.8 * crystals
    tint = torch.tensor(_FROST, device=stream.device).view(3, 1, 1)
    return (grey * tint).clamp_(0, 1)


_FROST = (0.86, 1.03, 1.11)
_WATER = (175.0, 238.0, 238.0)
_MUD = (63.0, 42.0, 20.0)
_EMBOSS = ((-2.0, -1.0, 0.0), (-1.0, 1.0, 1.0), (0.0, 1.0, 2.0))
_MEAN_3 = (1 / 3, 1 / 3, 1 / 3)
_REACH = 20


def _relief(liquid: Tensor) -> Tensor:
    """Embossed distance to the nearest rim of a drop, in 8-bit levels: (N, 1, H, W)."""
    distance = _distance(_edges(liquid, 50, 150))
    distance = filter_axis(filter_axis(distance, _MEAN_3, -2, "mirror"), _MEAN_3, -1, "mirror")
    height = _equalise((distance + 1e-4).floor_())
    height = filter_2d(height, _EMBOSS, "mirror").clamp_(0, 255)
    return filter_axis(filter_axis(height, _MEAN_3, -2, "mirror"), _MEAN_3, -1, "mirror").round_()


def _edges(grey: Tensor, weak: float, strong: float) -> Tensor:
    """Canny's detector: Sobel gradients, thinned to ridges, kept where strong or joined to it.

    bool (N, 1, H, W). A weak pixel is joined if at most 8 steps away from a strong one.
    """
    h, w = grey.shape[-2:]
    smooth, slope = (1.0, 2.0, 1.0), (-1.0, 0.0, 1.0)
    gx = filter_axis(filter_axis(grey, smooth, -2, "edge"), slope, -1, "edge")
    gy = filter_axis(filter_axis(grey, smooth, -1, "edge"), slope, -2, "edge")
    ax, ay = gx.abs(), gy.abs()
    magnitude = ax + ay
    padded = F.pad(magnitude, (1, 1, 1, 1))

    def ridge(dy: int, dx: int) -> Tensor:
        before = padded[..., 1 - dy : 1 - dy + h, 1 - dx : 1 - dx + w]
        after = padded[..., 1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]
        return (magnitude > before) & (magnitude >= after)

    diagonal = torch.where(gx * gy > 0, ridge(1, 1), ridge(1, -1))
    tangent = 0.41421356  # tan 22.5 degrees
    thin = torch.where(
        ay < tangent * ax,
        ridge(0, 1),
        torch.where(ax < tangent * ay, ridge(1, 0), diagonal),
    )
    candidates = (thin & (magnitude > weak)).float()
    edges = (thin & (magnitude > strong)).float()
    for _ in range(8):
        edges = F.max_pool2d(edges, 3, stride=1, padding=1) * candidates
    return edges > 0


def _distance(edges: Tensor) -> Tensor:
    """Euclidean distance to the nearest true pixel, at most 20: (N, 1, H, W) float32."""
    far = torch.where(edges, 0.0, float(_REACH))
    for axis in (-2, -1):
        rows, columns = ((_REACH, _REACH), (0, 0)) if axis == -2 else ((0, 0), (_REACH, _REACH))
        padded = F.pad(far * far, (*columns, *rows), value=float(_REACH**2))
        size = far.shape[axis]
        nearest = padded.narrow(axis, _REACH, size)
        for step in range(1, _REACH):
            for start in (_REACH - step, _REACH + step):
                shifted = padded.narrow(axis, start, size) + float(step * step)
                nearest = torch.minimum(nearest, shifted)
        far = nearest.sqrt()
    return far


def _equalise(levels: Tensor) -> Tensor:
    """Equalise the histogram of whole levels 0 .. 20 to 0 .. 255, for each image."""
    total = levels[0].numel()
    below = torch.stack([(levels <= v).sum((1, 2, 3)) for v in range(_REACH + 1)], dim=1)
    lowest = levels.amin((1, 2, 3)).long()[:, None]
    first = below.gather(1, lowest)
    table = ((below - first) * (255.0 / (total - first).clamp_min(1))).round_()
    flat = first.eq(total)  # an image of one level stays as it is
    table = torch.where(flat, torch.arange(_REACH + 1.0, device=levels.device), table)
    return table.gather(1, levels.flatten(1).long()).view_as(levels)


@register(family="weather", source=OVERLAP, random=True, table=AmountRange("drop_count", 12, 120))
def rain(images: Tensor, stream: Stream, drop_count: Tensor) -> Tensor:
    """Half-white discs at random places, drop_count of them: (x + 1) / 2 under a drop.

    A radius of 4 pixels at 224 is this project's choice; the count is published.
    """
    radius = max(0.3, 4 * min(images.shape[-2:]) / 224)
    mask = draw_shapes(stream, images, drop_count, disc(radius), radius)
    return images + mask.mul_(0.5) * (1 - images)

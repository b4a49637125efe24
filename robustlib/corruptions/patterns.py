"""Patterns: what a formula draws is laid over the image, cuts it out or bends it.

The ten corruptions of ImageNet-C-bar. What is drawn at random and how it enters is as in the
published code, where every length but that of `single_frequency_greyscale` is a share of the image
side; here it is the shorter side.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlib.core.randomness import Stream
from robustlib.corruptions.filters import filter_axis, gaussian_weights, sample, take
from robustlib.corruptions.occlusion import GREY
from robustlib.corruptions.registry import IMAGENET_C_BAR, published, register

# Powers and angles are made of exp, log and atan, which round a number the same wherever it stands
# in a tensor, as pow and atan2 don't.


def _of_255(*amplitudes: float) -> tuple[float, ...]:
    """Amplitudes that are published in 8-bit levels."""
    return tuple(round(amplitude / 255, 6) for amplitude in amplitudes)


@register(
    family="pattern",
    source=IMAGENET_C_BAR,
    random=True,
    table=published("amplitude", {224: _of_255(19.6, 29.4, 39.2, 88.2, 98)}),
)
def single_frequency_greyscale(images: Tensor, stream: Stream, amplitude: float) -> Tensor:
    """x + amplitude sin(a column + b row + phase), the same wave for all channels.

    One of a and b, either with equal chance, is uniform on -pi .. pi radians a pixel; the other is
    uniform up to it.
    """
    row, column = _places(images)
    larger = stream.uniform((1, 1), -math.pi, math.pi)
    smaller = stream.uniform((1, 1), -1, 1).mul_(larger)
    phase = stream.uniform((1, 1), 0, 2 * math.pi)
    upright = stream.sign((1, 1)) > 0
    a, b = torch.where(upright, larger, smaller), torch.where(upright, smaller, larger)
    return images + (a * column + (b * row + phase)).sin_().mul_(amplitude)[:, None]


@register(
    family="pattern",
    source=IMAGENET_C_BAR,
    random=True,
    table=published("amplitude", {224: _of_255(38.4, 64, 102.4, 115.2, 128)}),
)
def cocentric_sine_waves(images: Tensor, stream: Stream, amplitude: float) -> Tensor:
    """x + amplitude (s - 1/2), s rising from 0 to 1 across each ring about a random centre.

    Rings are up to a tenth of the side wide. Their radius swings by up to a tenth of the side, as
    a sine of up to ten times the angle about the centre. The name is spelt as published.
    """
    side = _side(images)
    below, right = _from_a_point(images, stream.uniform((2,)))
    swings = stream.uniform((1, 1), 0, 10)
    swing_px = stream.uniform((1, 1), 0, side / 10)
    ring_px = stream.uniform((1, 1), 0, side / 10)
    radius = (below * below + right * right).sqrt_()
    rings = (_angle(below, right) * swings).sin_().mul_(swing_px).add_(radius).div_(ring_px)
    return images + (rings - rings.floor()).sub_(0.5).mul_(amplitude)[:, None]


@register(
    family="pattern",
    source=IMAGENET_C_BAR,
    random=True,
    table=published("blend", {224: _of_255(30.4, 44.8, 54.4, 59.2, 64)}),
)
def plasma_noise(images: Tensor, stream: Stream, blend: float) -> Tensor:
    """(1 - blend) x + blend p, p waves of colour from -1 to 1, bent by finer waves.

    Not the plasma of `fog`. A place (u, v), in units of 0.075 to 0.2 of the side, moves in 4 to 6
    steps: k = 0, 1, ... adds (cos(1.93^k v + t / 1.15^k), sin(1.93^k u + t / 1.15^k)) / d^k, turned
    by 0.3 of its normal, with d from 1.25 to 1.75 and t from 0 to 6 pi. Then p is
    sin(u - t), sin((u + v + sin t) / 2), sin(v + t) in red, green, blue.
    """
    row, column = _places(images)
    t = stream.uniform((1, 1), 0, 6 * math.pi)
    steps = stream.integers(4, 7, (1, 1))
    decay = stream.uniform((1, 1), 1.25, 1.75)
    unit = stream.uniform((1, 1), 0.075, 0.2) * _side(images)
    u, v = column / unit, row / unit
    size = torch.ones_like(decay)
    for k in range(6):
        phase = t / 1.15**k
        across = (v * 1.93**k + phase).cos_().mul_(size)
        down = (u * 1.93**k + phase).sin_().mul_(size)
        u, v = u + (across - 0.3 * down), v + (down + 0.3 * across)
        size = torch.where(steps > k + 1, size / decay, 0.0)
    colours = torch.stack((u - t, (u + v + t.sin()) / 2, v + t), dim=1)
    return (images * (1 - blend)).add_(colours.sin_(), alpha=blend)


@register(
    family="pattern",
    source=IMAGENET_C_BAR,
    random=True,
    table=published("blend", {224: (0.23, 0.26, 0.29, 0.38, 0.44)}),
)
def perlin_noise(images: Tensor, stream: Stream, blend: float) -> Tensor:
    """(1 - blend) x + blend min(1, (1 + p) / 2), p >= 0 Perlin's turbulence: a bright veil.

    p is the sum of |n(f place)| / f over f = 1, 2, 4, 8, 16, n Perlin's gradient noise with cells
    of a seventh of the side at f = 1, times 1.5.
    """
    h, w = images.shape[-2:]
    veil = _turbulence(stream, h, w, _side(images) / 7).add_(1).div_(2).clamp_max_(1)
    return (images * (1 - blend)).add_(veil[:, None], alpha=blend)


def _turbulence(stream: Stream, h: int, w: int, cell_px: float) -> Tensor:
    """Turbulence (N, H, W) of five octaves, which share one lattice of random directions."""
    finest = 16 / cell_px
    corners = int((h - 1) * finest) + 2, int((w - 1) * finest) + 2
    direction = stream.uniform(corners, 0, 2 * math.pi)
    slopes = direction.sin(), direction.cos_()
    total = torch.zeros(stream.n, h, w, dtype=torch.float32, device=stream.device)
    for octave in (1, 2, 4, 8, 16):
        rows, columns = (_cells(n, octave / cell_px, stream.device) for n in (h, w))
        total.add_(_gradient_noise(slopes, rows, columns).abs_(), alpha=1.5 / octave)
    return total


_Cells = tuple[Tensor, Tensor]  # of each row or column: which cell, int64, and where in it, 0 to 1


def _gradient_noise(slopes: tuple[Tensor, Tensor], rows: _Cells, columns: _Cells) -> Tensor:
    """Between corners, what the slopes (N, corners, corners) down and across lead to: (N, H, W)."""
    (top, y), (left, x) = rows, columns
    y = y[:, None]

    def from_corner(i: int, j: int) -> Tensor:
        down, across = (take(take(s, top + i, -2), left + j, -1) for s in slopes)
        return down.mul_(y - i).add_(across.mul_(x - j))

    above = torch.lerp(from_corner(0, 0), from_corner(0, 1), _eased(x))
    below = torch.lerp(from_corner(1, 0), from_corner(1, 1), _eased(x))
    return torch.lerp(above, below, _eased(y))


def _eased(share: Tensor) -> Tensor:
    return share * share * (3 - 2 * share)


def _cells(n: int, per_px: float, device: torch.device) -> _Cells:
    places = torch.arange(n, dtype=torch.float64, device=device) * per_px
    cells = places.long()
    return cells, (places - cells).float()


@register(
    family="pattern",
    source=IMAGENET_C_BAR,
    random=True,
    table=published(
        "threshold",
        {
            32: (-2.29, -2.08, -1.87, -1.45, -1.24),
            224: (-2.26, -2.02, -1.78, -1.3, -0.82),
        },
    ),
)
def blue_noise_sample(images: Tensor, stream: Stream, threshold: float) -> Tensor:
    """Black where blue noise of variance 1 doesn't pass the threshold.

    Its amplitude rises in proportion to the frequency, so that black pixels keep apart.
    """
    white = stream.normal((1, *images.shape[2:]))
    return images * (_coloured(white, _frequency(images)) > threshold)


@register(
    family="pattern",
    source=IMAGENET_C_BAR,
    random=True,
    table=published(
        "sigma", {32: _of_255(16, 25.6, 35.2, 41.6, 44.8), 224: _of_255(6.4, 12.8, 19.2, 25.6, 32)}
    ),
)
def brownish_noise(images: Tensor, stream: Stream, sigma: float) -> Tensor:
    """x + sigma z, z noise of variance 1 with an amplitude as 1 / (f^2 + 1) for each channel.

    f is the frequency in periods per side.
    """
    white = stream.normal(images.shape[1:])
    return _coloured(white, 1 / (_frequency(images).square_() + 1)).mul_(sigma).add_(images)


def _frequency(images: Tensor) -> Tensor:
    """The frequency in periods per side of each entry of `rfft2` of an image."""
    h, w = images.shape[-2:]
    like: dict[str, Any] = {"d": 1 / _side(images), "dtype": torch.float32, "device": images.device}
    down, across = torch.fft.fftfreq(h, **like)[:, None], torch.fft.rfftfreq(w, **like)
    return (down * down + across * across).sqrt_()


def _coloured(white: Tensor, amplitude: Tensor) -> Tensor:
    """White noise (N, C, H, W) with a spectrum multiplied by `amplitude`, scaled to variance 1.

    The mean stays as it comes. Image by image and in double precision: the last digits of a
    transform depend on the size of the batch and, on some CPUs, on the number of threads.
    """
    done = []
    for one in white.double():
        noise = torch.fft.irfft2(torch.fft.rfft2(one) * amplitude, s=one.shape[1:])
        std = noise.std((1, 2), correction=0, keepdim=True)
        scaled = torch.where(std > 0, noise / std, 0.0)  # a single pixel has no variance
        done.append(scaled.float())
    return torch.stack(done)


@register(
    family="pattern",
    source=IMAGENET_C_BAR,
    random=True,
    table=published("share", {32: (0.1, 0.2, 0.3, 0.4, 0.5), 224: (0.2, 0.3, 0.4, 0.5, 0.6)}),
)
def checkerboard_cutout(images: Tensor, stream: Stream, share: float) -> Tensor:
    """Grey squares: of the black fields of a chequerboard, each is covered with chance `share`.

    The board is turned by any angle; its fields are 0.1 to 0.25 of the side wide, at least 1 pixel.
    """
    row, column = _places(images)
    side = _side(images)
    angle = stream.uniform((1, 1), 0, 2 * math.pi)
    field_px = (stream.uniform((1, 1), 0.1, 0.25) * side).clamp_min_(1)
    reach = math.ceil(math.hypot(*images.shape[2:]) / max(0.1 * side, 1)) + 1
    fields = 2 * reach + 1
    chosen = stream.uniform((fields * fields,)) < share
    down = ((angle.cos() * row + angle.sin() * column) / field_px).floor_().long()
    along = ((angle.cos() * column - angle.sin() * row) / field_px).floor_().long()
    index = (down + reach).mul_(fields).add_(along + reach)
    covered = chosen.gather(1, index.flatten(1)).view_as(index) & ((down + along) % 2 == 0)
    return torch.where(covered[:, None], GREY, images)


@register(
    family="pattern",
    source=IMAGENET_C_BAR,
    random=True,
    table=published(
        "radius",
        {32: (0.007, 0.035, 0.056, 0.063, 0.07), 224: (0.01, 0.02, 0.03, 0.05, 0.06)},
    ),
)
def sparkles(images: Tensor, stream: Stream, radius: float) -> Tensor:
    """Five white stars at random places: 1 - (1 - x) (1 - s1) ... (1 - s5), s a star's light.

    Rays are about `radius` of the side long, at least 1 pixel. See `_star`.
    """
    mean_px = radius * _side(images)
    places = stream.uniform((5, 2))
    counts = stream.integers(50, _RAYS + 1, (5, 1))
    lengths = stream.normal((5, _RAYS), mean=mean_px, std=0.25 * mean_px).clamp_min_(1)
    dark = 1 - images
    for k in range(5):
        below, right = _from_a_point(images, places[:, k])
        star = _star(below, right, lengths[:, k], counts[:, k], sharpness=1)
        dark.mul_(1 - star[:, None])
    return 1 - dark


@register(
    family="pattern",
    source=IMAGENET_C_BAR,
    random=True,
    table=published(
        "sharpness",
        {32: (0.13, 0.195, 0.325, 0.585, 0.65), 224: (0.13, 0.26, 0.52, 1.17, 1.3)},
    ),
)
def inverse_sparkles(images: Tensor, stream: Stream, sharpness: float) -> Tensor:
    """1 - s (1 - x), s the light of one star: the image is seen inside of it and white around.

    The star stands in the middle half of both axes, its rays about a quarter of the side long.
    See `_star`.
    """
    mean_px = 0.25 * _side(images)
    below, right = _from_a_point(images, stream.uniform((2,), 0.25, 0.75))
    count = stream.integers(50, _RAYS + 1, (1,))
    lengths = stream.normal((_RAYS,), mean=mean_px, std=0.25 * mean_px)
    star = _star(below, right, lengths, count, sharpness)
    return 1 - (1 - images).mul_(star[:, None])


_RAYS = 199  # of a star, at most


def _star(below: Tensor, right: Tensor, lengths: Tensor, count: Tensor, sharpness: float) -> Tensor:
    """The light of a star (N, H, W), 0 to 1: (1 - (f - 1/2)^2) (l / r)^(2 sharpness), or 1 if less.

    below, right: distances from its centre. lengths: (N, `_RAYS`) in pixels, of which the first
    `count` (N, 1) are its rays, evenly spread. A pixel at distance r lies at f, 0 to 1, of the way
    from one ray to the next, and l is the length between theirs.
    """
    turn = (_angle(below, right) / (2 * math.pi) + 0.5) * count[:, None]
    ray = turn.floor()
    f = turn - ray
    ray = ray.long().flatten(1)
    near, far = (lengths.gather(1, (ray + i) % count).view_as(f) for i in (0, 1))
    length = torch.lerp(near, far, f)
    ratio = length.square_() / (below * below + right * right + 1e-4)
    return ratio.log_().mul_(sharpness).exp_().mul_(1 - (f - 0.5).square_()).clamp_max_(1)


@register(
    family="pattern",
    source=IMAGENET_C_BAR,
    random=True,
    table=published("strength", {224: (0.235, 0.32, 0.49, 0.66, 0.915)}),
)
def caustic_refraction(images: Tensor, stream: Stream, strength: float) -> Tensor:
    """The image through rippled water: bent by the slopes of the surface, and lit by them.

    With (g, h) the slopes down and across, of the caustics smoothed by sigma = 1 pixel and taken
    between a pixel's neighbours (0 beyond the edge, which draws a frame), a pixel is read
    side / 2 strength c (sqrt(1 - (1 - c^2) / 16) - c / 4) (g, h) away, c = 1 / sqrt(1 + g^2 + h^2):
    a ray refracted with index 4. It is read in place where c >= 0.999, and is black from outside.
    Then 2 strength (g - h) is added.
    """
    row, column = _places(images)
    surface = _caustics(images, stream)
    for axis in (-2, -1):
        surface = filter_axis(surface, gaussian_weights(1.0, 4), axis, "symmetric")
    padded = F.pad(surface, (1, 1, 1, 1))
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    cos = (down * down + across * across).add_(1).rsqrt_()
    bend = ((1 - cos * cos).div_(-16).add_(1).sqrt_() - cos / 4).mul_(cos)
    reach_px = torch.where(cos < 0.999, bend * (strength * _side(images) / 2), 0.0)
    bent = sample(images, column + reach_px * across, row + reach_px * down, "zero")
    return bent.add_((down - across)[:, None], alpha=2 * strength)


def _caustics(images: Tensor, stream: Stream) -> Tensor:
    """Bright lines, as of light in water: (N, H, W), 0 to 1.

    They repeat after 0.75 to 1.25 of the side, over which each coordinate of a place p grows by
    2 pi. It is bent five times into q, starting from itself:
    q = p + (cos(t - q1) + sin(t + q2), sin(t - q2) + cos(t + q1)). Each time adds
    200 / |(p1 / sin(q1 + t), p2 / cos(q2 + t))| to the light.
    """
    row, column = _places(images)
    time = stream.uniform((1, 1), 0.5, 2)
    period_px = stream.uniform((1, 1), 0.75, 1.25) * _side(images)
    p1, p2 = (
        (place / period_px).remainder_(1).mul_(2 * math.pi).sub_(250) for place in (row, column)
    )
    start1, start2 = p1 + 80 * math.pi, p2 + 80 * math.pi  # whole turns: for accuracy
    q1, q2 = start1, start2
    light = torch.ones(stream.n, len(row), len(column), dtype=torch.float32, device=images.device)
    for n in range(1, 6):
        t = time * (1 - 3.5 / n)
        q1, q2 = (
            start1 + (t - q1).cos_() + (t + q2).sin_(),
            start2 + (t - q2).sin_() + (t + q1).cos_(),
        )
        ray1, ray2 = p1 / (q1 + t).sin_(), p2 / (q2 + t).cos_()
        light.add_((ray1.square_() + ray2.square_()).rsqrt_(), alpha=200)
    light = (light.div_(5).log_().mul_(1.4).exp_() - 1.17).square_()
    return light.square_().square_().clamp_max_(1)


def _side(images: Tensor) -> int:
    return min(images.shape[2:])


def _places(images: Tensor) -> tuple[Tensor, Tensor]:
    """The row (H, 1) and column (W,) of each pixel, float32."""
    h, w = images.shape[2:]
    like: dict[str, Any] = {"dtype": torch.float32, "device": images.device}
    return torch.arange(h, **like)[:, None], torch.arange(w, **like)


def _from_a_point(images: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, H, 1) and columns (N, 1, W) from a point at (N, 2) shares of height and width."""
    row, column = _places(images)
    h, w = images.shape[2:]
    return row - (place[:, 0] * h)[:, None, None], column - (place[:, 1] * w)[:, None, None]


def _angle(below: Tensor, right: Tensor) -> Tensor:
    """atan2(right, below): -pi to pi, 0 downward."""
    angle = torch.atan(right / below).nan_to_num_()  # 0 / 0 at the point itself
    opposite = angle + torch.full_like(right, math.pi).copysign_(right)
    return torch.where(below < 0, opposite, angle)

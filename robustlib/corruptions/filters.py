"""Image operations that several corruptions share.

Every operation is elementwise or gathers pixels, in an order that doesn't depend on the
batch. So an image comes out the same to the bit whatever it is batched with, which a
convolution or a matrix product doesn't promise (and on a GPU they may round to TF32).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def luma(images: Tensor) -> Tensor:
    """Grey value 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601): (N, 3, H, W) -> (N, 1, H, W)."""
    r, g, b = images.split(1, dim=1)
    return (r * 0.299).add_(g, alpha=0.587).add_(b, alpha=0.114)


def border_index(size: int, before: int, after: int, mode: str) -> list[int]:
    """Source positions for -before .. size - 1 + after.

    mode: "edge" repeats the last pixel (c c|a b c|c c), "mirror" reflects without repeating it
    (c b|a b c|b a), "symmetric" reflects and repeats it (b a|a b c|c b).
    """
    positions = range(-before, size + after)
    if mode == "edge":
        return [min(max(i, 0), size - 1) for i in positions]
    if mode == "symmetric":
        return [min(i % (2 * size), 2 * size - 1 - i % (2 * size)) for i in positions]
    period = max(1, 2 * size - 2)
    return [min(i % period, period - i % period) for i in positions]


@lru_cache(maxsize=256)
def _border_tensor(size: int, before: int, after: int, mode: str, device: torch.device) -> Tensor:
    return torch.tensor(border_index(size, before, after, mode), device=device)


def pad(images: Tensor, rows: tuple[int, int], columns: tuple[int, int], mode: str) -> Tensor:
    """Pad the last two axes by (before, after) with a mode of `border_index`.

    Returns `images` itself where there is nothing to add.
    """
    if not any(rows + columns):
        return images
    h, w = images.shape[-2:]
    if mode == "edge" or (mode == "mirror" and max(rows) < h and max(columns) < w):
        torch_mode = "replicate" if mode == "edge" else "reflect"
        return F.pad(images, (*columns, *rows), mode=torch_mode)
    images = take(images, _border_tensor(h, *rows, mode, images.device), -2)
    return take(images, _border_tensor(w, *columns, mode, images.device), -1)


def filter_axis(images: Tensor, weights: Sequence[float], axis: int, mode: str) -> Tensor:
    """Correlate one axis (-2 or -1) with an odd-length kernel."""
    radius = len(weights) // 2
    size = images.shape[axis]
    rows, columns = ((radius, radius), (0, 0)) if axis == -2 else ((0, 0), (radius, radius))
    padded = pad(images, rows, columns, mode)
    out = padded.narrow(axis, 0, size) * weights[0]
    for i, weight in enumerate(weights[1:], start=1):
        out.add_(padded.narrow(axis, i, size), alpha=weight)
    return out


def filter_2d(images: Tensor, kernel: Sequence[Sequence[float]], mode: str) -> Tensor:
    """Correlate (N, C, H, W) with an odd-sized kernel; taps of weight 0 cost nothing."""
    h, w = images.shape[-2:]
    ry, rx = len(kernel) // 2, len(kernel[0]) // 2
    padded = pad(images, (ry, ry), (rx, rx), mode)
    out = torch.zeros_like(images)
    for i, row in enumerate(kernel):
        for j, weight in enumerate(row):
            if weight:
                out.add_(padded[..., i : i + h, j : j + w], alpha=weight)
    return out


def filter_even(images: Tensor, kernel: Sequence[Sequence[float]], mode: str) -> Tensor:
    """Correlate (N, C, H, W) with an odd-sized kernel whose rows are even: row[-x] = row[x].

    Each row is a sum of centred runs of equal weights, and a running sum along x over ever
    longer runs serves all rows. So a disc of radius r costs about 4 r additions of the image.
    Weights below 1e-9 are left out.
    """
    h, w = images.shape[-2:]
    ry, rx = len(kernel) // 2, len(kernel[0]) // 2
    padded = pad(images, (ry, ry), (rx, rx), mode)
    run = padded[..., rx : rx + w].contiguous()
    out = torch.zeros_like(images)
    for k in range(rx + 1):
        if k:
            run.add_(padded[..., rx - k : rx - k + w]).add_(padded[..., rx + k : rx + k + w])
        for i, row in enumerate(kernel):
            weight = row[rx + k] - (row[rx + k + 1] if k < rx else 0.0)
            if abs(weight) > 1e-9:
                out.add_(run[..., i : i + h, :], alpha=weight)
    return out


@lru_cache(maxsize=256)
def gaussian_weights(sigma: float, radius: int) -> tuple[float, ...]:
    """Weights exp(-i^2 / (2 sigma^2)) for i = -radius .. radius, normalised to sum 1."""
    weights = [math.exp(-i * i / (2 * sigma * sigma)) for i in range(-radius, radius + 1)]
    total = sum(weights)
    return tuple(w / total for w in weights)


def gaussian_filter(images: Tensor, sigma: float) -> Tensor:
    """Blur the last two axes; the kernel is cut at round(4 sigma), edges are replicated."""
    weights = gaussian_weights(sigma, int(4 * sigma + 0.5))
    return filter_axis(filter_axis(images, weights, -2, "edge"), weights, -1, "edge")


def take(images: Tensor, index: Tensor, axis: int) -> Tensor:
    """`images.index_select(axis, index)` for axis -2 or -1; columns are faster of a matrix."""
    if axis == -2:
        return images.index_select(-2, index)
    matrix = images.reshape(-1, images.shape[-1])
    return matrix.index_select(1, index).view(*images.shape[:-1], len(index))


def clipped_zoom(images: Tensor, factor: float) -> Tensor:
    """Magnify the centre: crop ceil(side / factor), stretch bilinearly, trim to the shape."""
    for axis in (-2, -1):
        near, far, weight = _zoom_taps(images.shape[axis], factor, images.device)
        weight = weight[:, None] if axis == -2 else weight
        base = take(images, near, axis)
        images = take(images, far, axis).sub_(base).mul_(weight).add_(base)
    return images


@lru_cache(maxsize=512)
def _zoom_taps(size: int, factor: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Two source positions for each target position of `clipped_zoom`, and the second's weight.

    The stretch maps the first and last pixel of the crop onto those of the result.
    """
    crop = math.ceil(size / factor)
    first = (size - crop) // 2
    stretched = max(size, int(crop * factor + 0.5))
    trim = (stretched - size) // 2
    step = (crop - 1) / max(1, stretched - 1)
    places = [first + (trim + i) * step for i in range(size)]
    near = [min(int(place), first + crop - 1) for place in places]
    far = [min(place + 1, first + crop - 1) for place in near]
    weight = [place - position for place, position in zip(places, near, strict=True)]
    return (
        torch.tensor(near, device=device),
        torch.tensor(far, device=device),
        torch.tensor(weight, dtype=torch.float32, device=device),
    )


def motion_filter(images: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """Blur (N, C, H, W) along an angle for each image, degrees (N,).

    A one-sided half Gaussian: weights exp(-i^2 / (2 sigma^2)), i = 0 .. 2 radius, normalised,
    each on the pixel nearest to i steps along the angle, edges replicated. One-sided, so it
    also shifts the image. This is ImageMagick's motion blur, which ImageNet-C uses. Weights
    below 1e-9 are left out.

    On a CPU, images of the same offset are shifted together; on a GPU, pixels are gathered, to
    the same bits.
    """
    n, c, h, w = images.shape
    reach = 2 * radius
    weights = gaussian_weights(sigma, reach)[reach:]
    weights = tuple(weight / sum(weights) for weight in weights if weight > 1e-9 * sum(weights))
    order = degrees.argsort()  # images of similar angles have many offsets in common
    angle = torch.deg2rad(degrees[order])
    steps = torch.arange(len(weights), device=images.device)
    dx = torch.ceil(angle.cos()[:, None] * steps - 0.5).long()
    dy = torch.ceil(angle.sin()[:, None] * steps - 0.5).long()
    images = images[order]
    out = torch.zeros_like(images)
    if images.device.type == "cpu":
        top, left = (max(0, -int(offsets.min())) for offsets in (dy, dx))
        below, right = (max(0, int(offsets.max())) for offsets in (dy, dx))
        padded = pad(images, (top, below), (left, right), "edge")
        for weight, xs, ys in zip(weights, dx.T.tolist(), dy.T.tolist(), strict=True):
            start = 0
            for (x, y), same in itertools.groupby(zip(xs, ys, strict=True)):
                stop = start + len(list(same))
                shifted = padded[start:stop, :, top + y :, left + x :][..., :h, :w]
                out[start:stop].add_(shifted, alpha=weight)
                start = stop
    else:
        rows = dy[..., None] + torch.arange(h, device=images.device)
        columns = dx[..., None] + torch.arange(w, device=images.device)
        starts, columns = rows.clamp_(0, h - 1).mul_(w), columns.clamp_(0, w - 1)
        flat, flat_out = images.flatten(2), out.flatten(2)
        for i, weight in enumerate(weights):
            index = (starts[:, i, :, None] + columns[:, i, None]).view(n, 1, h * w)
            flat_out.add_(flat.gather(2, index.expand(n, c, h * w)), alpha=weight)
    return out[order.argsort()]


def sample(images: Tensor, x: Tensor, y: Tensor, border: str) -> Tensor:
    """Read (N, C, H, W) bilinearly at pixel coordinates x, y, each (N, H, W).

    border: "zero" outside, "mirror" or "symmetric" (see `border_index`).
    """
    h, w = images.shape[-2:]
    if border == "mirror" and min(h, w) > 1:
        grid = torch.stack((x * (2 / (w - 1)) - 1, y * (2 / (h - 1)) - 1), dim=-1)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=True)
    grid = torch.stack((x * (2 / w) + (1 / w - 1), y * (2 / h) + (1 / h - 1)), dim=-1)
    mode = "zeros" if border == "zero" else "reflection"
    return F.grid_sample(images, grid, padding_mode=mode, align_corners=False)


def sample_affine(images: Tensor, matrix: Sequence[Tensor | float], border: str) -> Tensor:
    """Read at (a dx + b dy + cx + tx, c dx + d dy + cy + ty), dx and dy from the centre.

    matrix: a, b, c, d, tx, ty, each a float or one value for each image (N,). The centre is
    ((W - 1) / 2, (H - 1) / 2). It maps target pixels to source pixels.
    """
    n, _, h, w = images.shape
    like: dict[str, Any] = {"dtype": torch.float32, "device": images.device}
    a, b, c, d, tx, ty = (
        # as_tensor of a number would wait for a GPU
        (torch.as_tensor(m, **like) if isinstance(m, Tensor) else torch.full((1,), m, **like)).view(
            -1, 1, 1
        )
        for m in matrix
    )
    dx = torch.arange(w, **like) - (w - 1) / 2
    dy = (torch.arange(h, **like) - (h - 1) / 2)[:, None]
    x = a * dx + b * dy + (tx + (w - 1) / 2)
    y = c * dx + d * dy + (ty + (h - 1) / 2)
    return sample(images, x.expand(n, h, w), y.expand(n, h, w), border)


def rgb_to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in [0, 1), saturation and value in [0, 1], each (N, H, W). A grey has hue 0."""
    r, g, b = images.unbind(1)
    value, chroma, saturation = value_chroma_saturation(images)
    safe = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(
        value == r,
        (g - b) / safe,
        torch.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4),
    )
    return (hue / 6).remainder_(1.0), saturation, value


def value_chroma_saturation(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """max, max - min, and (max - min) / max (0 for black) over channels, each (N, H, W)."""
    r, g, b = images.unbind(1)
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    saturation = chroma / value.clamp_min(torch.finfo(value.dtype).tiny)
    return value, chroma, saturation


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Inverse of `rgb_to_hsv`: (N, H, W) three times -> (N, 3, H, W)."""
    channels = []
    for offset in (5, 3, 1):
        k = (hue * 6 + offset).remainder_(6.0)
        ramp = torch.minimum(k, 4 - k).clamp_(0, 1)
        channels.append(value - value * saturation * ramp)
    return torch.stack(channels, dim=1)

"""Textures to lay over images: clouds, and pictures of frost."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from robustlib.core.randomness import Stream
from robustlib.corruptions.filters import gaussian_filter


def plasma(stream: Stream, side: int, wibble_decay: float) -> Tensor:
    """Cloud maps (N, side, side) in [0, 1] by the diamond-square algorithm on a torus.

    side: a power of 2. A new point is the mean of four old ones plus an offset uniform on
    +-amplitude. As in the published code the amplitude is the square of a "wibble" that is
    divided by wibble_decay at each level.
    """
    offsets = stream.uniform((side * side - 1,), -1, 1)
    grid = torch.zeros(stream.n, 1, 1, dtype=torch.float32, device=stream.device)
    used, wibble = 0, 100.0
    while (points := grid.shape[1]) < side:
        at_centres, at_rows, at_columns = (
            offsets[:, used : (used := used + points * points)].view(-1, points, points)
            for _ in range(3)
        )
        amplitude = 4 * wibble * wibble
        down = grid + grid.roll(-1, 1)
        across = grid + grid.roll(-1, 2)
        centres = (down + down.roll(-1, 2)).add_(at_centres, alpha=amplitude).mul_(0.25)
        across.add_(centres).add_(centres.roll(1, 1)).add_(at_rows, alpha=amplitude).mul_(0.25)
        down.add_(centres).add_(centres.roll(1, 2)).add_(at_columns, alpha=amplitude).mul_(0.25)
        # Pairs as complex numbers: the fastest way to interleave.
        rows = torch.complex(grid, across), torch.complex(down, centres)
        grid = torch.stack(rows, 2).view(torch.float32).view(-1, 2 * points, 2 * points)
        wibble /= wibble_decay
    low = grid.amin((1, 2), keepdim=True)
    high = grid.amax((1, 2), keepdim=True)
    return grid.sub_(low).div_(high - low)


# The files of ImageNet-C's frost. Its code draws from six and never comes to the sixth.
PUBLISHED_PHOTOGRAPHS = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")

# A path, and what tells whether its file has changed.
_Files = tuple[tuple[Path, tuple[int, ...]], ...]


def scaled_pictures(
    folder: str | Path | None, scale: float, image_shape: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The photographs in a folder, or `frost_pictures` if None, ready to be cropped.

    Of a folder with the published files the five of `PUBLISHED_PHOTOGRAPHS` and no others; of
    another folder all that end in .png, .jpg or .jpeg. They are scaled by `scale`, or by as much
    more as it takes to cover an image of `image_shape`. They stay in memory until a file changes.
    Returns their pixels, one picture after another, uint8 (3, total), and the first pixel,
    height and width of each, int64 (P, 3).
    Raises `ValueError` if the folder is missing, holds no such file or only some of the published
    ones, or if a file can't be read.
    """
    files = None if folder is None else _photograph_files(Path(folder).resolve())
    shapes = [picture.shape for picture in _originals(files)]
    h, w = image_shape
    scales = tuple(max(scale, h / shape[1], w / shape[2]) for shape in shapes)
    return _scaled(files, scales, device)


def _photograph_files(folder: Path) -> _Files:
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [path for path in inside if path.suffix.lower() in (".png", ".jpg", ".jpeg")]
    if not found:
        raise ValueError(
            "photographs must be a folder with the photographs of ImageNet-C's frost, .png or "
            f".jpg; {folder} {'holds none' if folder.is_dir() else 'is not a folder'}."
        )
    published = [folder / name for name in PUBLISHED_PHOTOGRAPHS]
    missing = [path.name for path in published if path not in found]
    if not missing:
        found = published
    elif len(missing) < len(published):
        raise ValueError(
            f"of the photographs of ImageNet-C's frost, {folder} lacks {', '.join(missing)}; add "
            "what is missing, or give photographs of your own other names."
        )
    stats = [path.stat() for path in found]
    return tuple(
        (path, (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
        for path, stat in zip(found, stats, strict=True)
    )


@lru_cache(maxsize=4)
def _originals(files: _Files | None) -> tuple[Tensor, ...]:
    """The pictures in files, or our own if None: each uint8 (3, H, W)."""
    if files is None:
        return tuple(frost_pictures())
    return tuple(_photograph(path) for path, _ in files)


def _photograph(path: Path) -> Tensor:
    """A picture as OpenCV reads it for ImageNet-C: upright, without transparency, 8 bits."""
    try:
        with Image.open(path) as photograph:
            if photograph.mode.startswith(("I", "F")):
                raise OSError(f"it has more than 8 bits a channel, mode {photograph.mode}")
            upright = ImageOps.exif_transpose(photograph).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:  # the last for a broken PNG
        raise ValueError(f"the photograph {path} can't be read: {error}.") from error
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1)


@lru_cache(maxsize=8)
def _scaled(
    files: _Files | None, scales: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    pixels, sizes, start = [], [], 0
    for picture, scale in zip(_originals(files), scales, strict=True):
        scaled = _resize(_resize(picture.float(), scale, -2), scale, -1)
        pixels.append(scaled.round_().to(torch.uint8).flatten(1))
        h, w = scaled.shape[1:]
        sizes.append((start, h, w))
        start += h * w
    return torch.cat(pixels, 1).to(device), torch.tensor(sizes, device=device)


def _resize(picture: Tensor, scale: float, axis: int) -> Tensor:
    """Scale one axis as OpenCV does: linear between the two nearest pixels, also to shrink.

    The new side is rounded, but pixel i lies at (i + 1/2) / scale - 1/2 of the old one whatever
    the rounding.
    """
    side = picture.shape[axis]
    count = round(side * scale)
    places = torch.arange(count, dtype=torch.float64, device=picture.device) + 0.5
    places.mul_(1 / scale).sub_(0.5).clamp_(0, side - 1)
    near = places.long()
    weight = (places - near).float()
    far = (near + 1).clamp_max(side - 1)
    weight = weight[:, None] if axis == -2 else weight
    return torch.lerp(picture.index_select(axis, near), picture.index_select(axis, far), weight)


def frost_pictures() -> Tensor:
    """This project's pictures of frost, the same on every call: uint8 (5, 3, 1024, 1024).

    Feathers of ice on a cloudy ground, grey to teal. Levels, contrast, number, shape and
    sharpness are this project's choice: with them, frost changes images about as much as
    with the published photographs.
    """
    side, feathers = 1024, 4000
    last = side - 1  # as a bit mask, it wraps places around
    cpu: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    stream = Stream(0, torch.arange(len(_FROST_LEVELS), device="cpu"), "pictures of frost")
    ground = plasma(stream, side, 1.9)
    x, y = stream.integers(0, side, (2, feathers)).unbind(1)
    # Neighbours grow in similar directions. With whole degrees from a table, no rounding of a
    # cosine can move a pixel.
    turns = [math.radians(degree) for degree in range(360)]
    circle = torch.tensor([(math.cos(turn), math.sin(turn)) for turn in turns], **cpu)
    degrees = ground.flatten(1).gather(1, y * side + x) * 1440
    degrees = (degrees + stream.uniform((feathers,), 0, 60)).long()
    length = stream.uniform((feathers,), 15, 70)
    light = stream.uniform((feathers,), 0.2, 1)
    along, out = torch.arange(16, **cpu)[:, None] / 16, torch.arange(12, **cpu) / 12
    fading = (1 - 0.7 * along) * (1 - 0.5 * out)
    # Barbs of 16 places on the shaft: two forked ones, and one along it that closes the gaps.
    barbs = ((-40, 0.2 * (1 - along) * out), (40, 0.2 * (1 - along) * out), (0, 0.1 * out))
    pictures = []
    for i, (level, tint) in enumerate(zip(_FROST_LEVELS, _FROST_TINTS, strict=True)):
        ice = torch.zeros(side * side, **cpu)

        def per_feather(values: Tensor, i: int = i) -> Tensor:
            return values[i, :, None, None]

        dx, dy = circle[per_feather(degrees) % 360].unbind(-1)
        for fork, reach in barbs:
            barb_dx, barb_dy = circle[(per_feather(degrees) + fork) % 360].unbind(-1)
            columns = per_feather(x) + per_feather(length) * (along * dx + reach * barb_dx)
            rows = per_feather(y) + per_feather(length) * (along * dy + reach * barb_dy)
            index = (rows.long() & last) * side + (columns.long() & last)
            shade = per_feather(light) * fading
            ice.scatter_reduce_(0, index.flatten(), shade.flatten(), "amax")
        ice = gaussian_filter(ice.view(1, 1, side, side), 0.5)[0]
        grey = level + 0.4 * ground[i] + 0.6 * ice
        rgb = grey * torch.tensor(tint, **cpu).view(3, 1, 1)
        pictures.append((rgb * 255).clamp_(0, 255).to(torch.uint8))
    return torch.stack(pictures)


_FROST_LEVELS = (0.33, 0.335, 0.205, 0.315, 0.27)
_FROST_TINTS = (
    (0.7, 1.05, 1.12),
    (0.95, 1.02, 1.05),
    (0.85, 1.03, 1.1),
    (0.95, 1.0, 1.04),
    (1.0, 1.0, 1.0),
)

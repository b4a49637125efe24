"""shapes10: ten classes of procedural 32x32 images, the data set that needs no download.

Each image is a function of (seed, split, index) alone. A shape, given by its signed distance,
is posed, coloured, textured and lit at random, painted on a background with a 1/f spectrum and
partly covered. Nothing but the shape depends on the class. A fine texture shows it best; its
luminance and colour differ less from the background's. All numbers in this file are this
project's choice; `data/README.md` tells what they lead to.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from robustlib.core import paths
from robustlib.core.checks import check_labels, check_name, check_number, check_whole, settle
from robustlib.data.base import Dataset, Split, cached

VERSION = 3
"""Part of the cache's folder name: raise it with every change that changes a pixel."""

CLASSES = (
    "disk",
    "ring",
    "square",
    "triangle",
    "star",
    "cross",
    "crescent",
    "heart",
    "arrow",
    "hourglass",
)
SIZE = 32
DEFAULT_TRAIN = 10_000
DEFAULT_TEST = 2_000
_SPLITS = ("train", "test")
_BLOCK = 2_000  # images in one file of the cache, and the most that are made at once
_SCALARS = 80  # uniform numbers kept for each image, more than are used
_FIELDS = 4  # white-noise fields kept for each image

Floats = NDArray[np.floating]  # float32 throughout
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """How an object differs from its background: what `benchmarks.shapes10` calibrates.

    Each image draws its own values between the ends of a range. The calibrated ones are the
    defaults.

    Attributes:
        contrast: lowest and highest difference of luminance, either way; pixels are in [0, 1].
        tint: largest shift of colour on each of two axes, either way, from 0 on.
        texture: lowest and highest amplitude of the texture.
        period: shortest and longest period of stripes and dots in pixels, at least 2.

    Raises:
        ValueError: an end that isn't in its range, or a lower end above the upper one.
    """

    contrast: Range = (0.02, 0.14)
    tint: float = 0.12
    texture: Range = (0.06, 0.12)
    period: Range = (2.0, 3.2)

    def __post_init__(self) -> None:
        settle(
            self,
            contrast=_checked_range(self.contrast, "contrast", 0, 1),
            tint=check_number(self.tint, "tint", low=0, high=1),
            texture=_checked_range(self.texture, "texture", 0, 1),
            period=_checked_range(self.period, "period", 2, SIZE),
        )


def _checked_range(ends: Range, name: str, low: float, high: float) -> Range:
    if not isinstance(ends, tuple | list) or len(ends) != 2:
        raise ValueError(f"{name} must be two numbers, the lower and the upper end, got {ends!r}.")
    first = check_number(ends[0], f"lower end of {name}", low=low, high=high)
    return first, check_number(ends[1], f"upper end of {name}", low=first, high=high)


APPEARANCE = Appearance()


def load(n_train: int = 0, n_test: int = 0) -> Dataset:
    """shapes10 with `n_train` and `n_test` images; 0 means 10,000 and 2,000.

    Any number can be had; image i is the same whatever the number. Made once, then read from
    `shapes10/` in `robustlib.core.paths.data_dir()`.
    """
    n_train = check_whole(n_train, "n_train", low=0) or DEFAULT_TRAIN
    n_test = check_whole(n_test, "n_test", low=0) or DEFAULT_TEST
    folder = paths.data_dir() / "shapes10" / f"v{VERSION}"
    train, test = _load_split("train", n_train, folder), _load_split("test", n_test, folder)
    return Dataset.build("shapes10", CLASSES, train, test)


def generate(
    split: str, indices: ArrayLike, seed: int = 0, *, appearance: Appearance = APPEARANCE
) -> Split:
    """The images at `indices` of a split, `"train"` or `"test"`, which share none.

    indices: whole numbers (N,), of at least 0. The class is index modulo 10, so that any run of
    consecutive indices is balanced. seed: 0 for the images of `load`, or another one from 0 on.
    appearance: of the objects; the images of `load` have the default one.
    Returns a `Split` of (N, 3, 32, 32) with ids `indices`. The pixels of an image do not depend on
    the others that it is made with.
    """
    draws = _Draws(split, indices, seed)
    labels = draws.indices % len(CLASSES)
    scene, luminance = _background(draws)
    scene = _paint_object(scene, luminance, labels, draws, appearance)
    scene = _light_and_expose(scene, draws)
    images = np.rint(np.clip(scene, 0.0, 1.0) * 255.0).astype(np.uint8)
    return Split(
        torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(draws.indices)
    )


def backgrounds(split: str, indices: ArrayLike, seed: int = 0) -> Floats:
    """The backgrounds of `generate`, before anything is painted: float32 (N, 3, 32, 32)."""
    return _background(_Draws(split, indices, seed))[0]


def _load_split(split: str, n: int, folder: Path) -> Split:
    starts = range(0, n, _BLOCK)
    files = [folder / f"{split}-{start:07d}.safetensors" for start in starts]
    missing = sum(not file.is_file() for file in files)
    bar = tqdm(
        total=missing * _BLOCK,
        desc=f"making shapes10 {split}",
        mininterval=1.0,
        file=sys.stdout,
        disable=missing == 0,
    )
    blocks = []
    with bar:
        for start, file in zip(starts, files, strict=True):

            def make(start: int = start) -> Split:
                block = generate(split, np.arange(start, start + _BLOCK))
                bar.update(_BLOCK)
                return block

            blocks.append(cached(file, make))
    return Split(
        torch.cat([block.images for block in blocks])[:n].contiguous(),
        torch.cat([block.labels for block in blocks])[:n].contiguous(),
        torch.cat([block.ids for block in blocks])[:n].contiguous(),
    )


class _Draws:
    """The random numbers of a batch of images, drawn for each image from its own stream.

    Philox is counter-based, and its key names the image: streams neither overlap nor depend on
    the batch. Each call takes the next column of every image's numbers.
    """

    def __init__(self, split: str, indices: ArrayLike, seed: int) -> None:
        check_name(split, _SPLITS, "split of shapes10")
        seed = check_whole(seed, "seed", low=0, high=2**62)
        indices = np.asarray(indices)
        n = indices.size
        self.indices = check_labels(indices, n, what="indices").numpy()
        self._uniform = np.empty((n, _SCALARS), dtype=np.float32)
        self._normal = np.empty((n, _FIELDS, SIZE, SIZE), dtype=np.float32)
        stream = seed * len(_SPLITS) + _SPLITS.index(split)
        for row, index in enumerate(self.indices):
            generator = np.random.Generator(np.random.Philox(key=[stream, int(index)]))
            generator.random(dtype=np.float32, out=self._uniform[row])
            generator.standard_normal(dtype=np.float32, out=self._normal[row])
        self._next_scalar = 0
        self._next_field = 0

    def __len__(self) -> int:
        return len(self._uniform)

    def uniform(self, low: float, high: float) -> Floats:
        """(N, 1, 1), uniform in [low, high)."""
        column = self._uniform[:, self._next_scalar]
        self._next_scalar += 1
        return (low + (high - low) * column)[:, None, None].astype(np.float32)

    def sign(self) -> Floats:
        """(N, 1, 1), -1 or 1."""
        return np.where(self.uniform(-1, 1) < 0, np.float32(-1), np.float32(1))

    def colour(self, spread: float) -> Floats:
        """(N, 3, 1, 1), a shift of colour that leaves the mean of the channels alone."""
        red_green, blue_yellow = self.uniform(-spread, spread), self.uniform(-spread, spread)
        return _opponent_to_rgb(red_green, blue_yellow)

    def white_field(self) -> Floats:
        """(N, 32, 32), white Gaussian noise."""
        field = self._normal[:, self._next_field]
        self._next_field += 1
        return field


def _grid() -> tuple[Floats, Floats]:
    """x (to the right) and y (upwards) of the pixels' centres, from the image's centre."""
    line = (np.arange(SIZE, dtype=np.float32) + 0.5) - SIZE / 2
    return line[None, None, :], -line[None, :, None]


def _opponent_to_rgb(red_green: Floats, blue_yellow: Floats) -> Floats:
    """(N, H, W) twice to (N, 3, H, W): two colour axes, both orthogonal to grey."""
    half = blue_yellow * np.float32(0.5)
    return np.stack([red_green - half, -red_green - half, blue_yellow], axis=1)


def _pink(white: Floats, exponent: Floats | float = 1.0) -> Floats:
    """Filter white noise (N, 32, 32) to an amplitude spectrum of 1 / f^exponent, unit variance."""
    fy = np.fft.fftfreq(SIZE)[:, None]
    fx = np.fft.rfftfreq(SIZE)[None, :]
    f = np.sqrt(fx**2 + fy**2).astype(np.float32)
    f[0, 0] = 1.0
    gain = f ** -np.asarray(exponent, dtype=np.float32)
    gain[..., 0, 0] = 0.0
    field = np.fft.irfft2(np.fft.rfft2(white) * gain, s=(SIZE, SIZE)).astype(np.float32)
    return field / field.std(axis=(1, 2), keepdims=True)


def _rotate(x: Floats, y: Floats, angle: Floats) -> tuple[Floats, Floats]:
    """Coordinates in a frame turned anticlockwise by `angle` (radians)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def _blend(below: Floats, above: Floats, cover: Floats) -> Floats:
    """Paint (N, 3, H, W) `above` on `below` where `cover` (N, H, W) is 1."""
    return below + (above - below) * cover[:, None]


# --- The scene ------------------------------------------------------------------------------


def _background(draws: _Draws) -> tuple[Floats, Floats]:
    """The background (N, 3, 32, 32), and its mean luminance (N, 1, 1).

    Natural images have amplitude spectra near 1/f, mostly in luminance (Field 1987; Ruderman
    et al. 1998). Two soft blobs are the clutter.
    """
    x, y = _grid()
    mean = draws.uniform(0.32, 0.68)
    luminance = _pink(draws.white_field(), draws.uniform(0.9, 1.3)) * draws.uniform(0.03, 0.09)
    red_green = _pink(draws.white_field()) * draws.uniform(0.006, 0.02)
    blue_yellow = _pink(draws.white_field()) * draws.uniform(0.006, 0.03)
    scene: Floats = (mean + luminance)[:, None] + _opponent_to_rgb(red_green, blue_yellow)
    scene += draws.colour(0.08)
    for _ in range(2):
        u, v = _rotate(
            x - draws.uniform(-16, 16), y - draws.uniform(-16, 16), draws.uniform(0, np.pi)
        )
        radius = np.hypot(u / draws.uniform(2, 7), v / draws.uniform(2, 5))
        cover = np.clip((1.0 - radius) * 2.0, 0.0, 1.0) * draws.uniform(0.3, 0.9)
        shift = draws.sign() * draws.uniform(0.03, 0.10)
        scene = _blend(scene, scene + shift[:, None] + draws.colour(0.10), cover)
    return scene, mean


def _paint_object(
    scene: Floats,
    mean: Floats,
    labels: NDArray[np.int64],
    draws: _Draws,
    appearance: Appearance,
) -> Floats:
    x, y = _grid()
    centre_x, centre_y = draws.uniform(-4.0, 4.0), draws.uniform(-4.0, 4.0)
    scale, aspect = draws.uniform(8.0, 11.5), draws.uniform(0.9, 1.12)
    angle, mirror = draws.uniform(-0.5, 0.5), draws.sign()
    variant = draws.uniform(0, 1)
    dx, dy = x - centre_x, y - centre_y
    u, v = _rotate(dx, dy, angle)
    u, v = u * mirror / (scale * aspect), v / (scale / aspect)
    distance = _distances(u, v, labels, variant) * scale
    cover = np.clip(0.5 - distance / draws.uniform(1.0, 1.8), 0.0, 1.0)

    contrast = draws.sign() * draws.uniform(*appearance.contrast)
    light_angle = draws.uniform(0, 2 * np.pi)
    towards_light, _ = _rotate(dx, dy, light_angle)
    shade = draws.uniform(0.0, 0.10) * towards_light / scale
    luminance = mean + contrast + shade + _texture(x, y, draws, appearance)
    painted = luminance[:, None] + draws.colour(appearance.tint)

    bar_angle, bar_offset = draws.uniform(0, np.pi), draws.uniform(-0.8, 0.8)
    across, _ = _rotate(dx, dy, bar_angle)
    bar = np.abs(across - bar_offset * scale) - draws.uniform(0.7, 1.6)
    bar = np.where(draws.uniform(0, 1) < 0.45, bar, np.float32(SIZE))
    blob_angle, blob_radius = draws.uniform(0, 2 * np.pi), draws.uniform(1.5, 3.5)
    blob_away = draws.uniform(0.5, 1.1) * scale
    blob_x, blob_y = blob_away * np.cos(blob_angle), blob_away * np.sin(blob_angle)
    blob = np.hypot(dx - blob_x, dy - blob_y) - blob_radius
    blob = np.where(draws.uniform(0, 1) < 0.3, blob, np.float32(SIZE))
    occluder = np.clip(0.5 - np.minimum(bar, blob), 0.0, 1.0)
    occluder_shift = draws.sign() * draws.uniform(0.0, 0.18)
    occluding = scene[:, :, :, ::-1] + occluder_shift[:, None] + draws.colour(0.06)
    return _blend(_blend(scene, painted, cover), occluding, occluder)


def _texture(x: Floats, y: Floats, draws: _Draws, appearance: Appearance) -> Floats:
    """Fill of the object, (N, 32, 32) about 0: a third each stripes, dots, white noise."""
    kind, amplitude = draws.uniform(0, 3), draws.uniform(*appearance.texture)
    u, v = _rotate(x, y, draws.uniform(0, np.pi))
    frequency = 2 * np.pi / draws.uniform(*appearance.period)
    wave_u = np.sin(u * frequency + draws.uniform(0, 2 * np.pi))
    wave_v = np.sin(v * frequency)
    waves = np.where(kind < 1, wave_u, wave_u * wave_v * 1.5)
    return amplitude * np.where(kind < 2, waves, draws.white_field())


def _light_and_expose(scene: Floats, draws: _Draws) -> Floats:
    """Light falling off to one side, then contrast and brightness of the exposure."""
    x, y = _grid()
    slope, _ = _rotate(x, y, draws.uniform(0, 2 * np.pi))
    light = 1.0 + draws.uniform(0.0, 0.2) * slope / (SIZE / 2)
    contrast, brightness = draws.uniform(0.7, 1.15), draws.uniform(-0.06, 0.06)
    return 0.5 + contrast[:, None] * (scene * light[:, None] - 0.5) + brightness[:, None]


# --- The shapes -----------------------------------------------------------------------------


def _distances(u: Floats, v: Floats, labels: NDArray[np.int64], variant: Floats) -> Floats:
    """Signed distance (negative inside) to each image's shape, in units of its radius.

    u, v: (N, 32, 32), in the shape's upright frame, v upwards. variant: (N, 1, 1) in [0, 1),
    varies the proportions.
    """
    distance = np.empty_like(u)
    for label, name in enumerate(CLASSES):
        rows = labels == label
        distance[rows] = _SHAPES[name](u[rows], v[rows], variant[rows])
    return distance


def _disk(u: Floats, v: Floats, t: Floats) -> Floats:
    return np.hypot(u, v) - (0.82 + 0.1 * t)


def _ring(u: Floats, v: Floats, t: Floats) -> Floats:
    width = 0.19 + 0.08 * t
    return np.abs(np.hypot(u, v) - (0.98 - width)) - width


def _square(u: Floats, v: Floats, t: Floats) -> Floats:
    side = 0.74 + 0.08 * t
    return _box(u, v, side, side)


def _cross(u: Floats, v: Floats, t: Floats) -> Floats:
    arm = 0.24 + 0.10 * t
    return np.minimum(_box(u, v, 0.98, arm), _box(u, v, arm, 0.98))


def _crescent(u: Floats, v: Floats, t: Floats) -> Floats:
    bite = np.hypot(u - (0.42 + 0.12 * t), v) - 0.78
    return np.maximum(np.hypot(u, v) - 1.0, -bite)


def _heart(u: Floats, v: Floats, t: Floats) -> Floats:
    """A square standing on its corner, and a disk on each of its upper sides."""
    half = 0.56 + 0.06 * t
    u, v = u / half, (v + 0.1) / half
    a, b = (u + v) / np.float32(np.sqrt(2)), (v - u) / np.float32(np.sqrt(2))
    square = np.maximum(np.abs(a), np.abs(b)) - 1.0
    disks = np.minimum(np.hypot(a - 1.0, b), np.hypot(a, b - 1.0)) - 1.0
    return np.minimum(square, disks) * half


def _triangle(u: Floats, v: Floats, t: Floats) -> Floats:
    top = 0.95 + 0.15 * t
    return _polygon(u, v, [(0.98, -0.72), (0.0, top), (-0.98, -0.72)])


def _star(u: Floats, v: Floats, t: Floats) -> Floats:
    inner = 0.42 + 0.08 * t
    angles = np.pi / 2 + np.arange(10) * np.pi / 5
    radii = [1.12 if k % 2 == 0 else 1.12 * inner for k in range(10)]
    corners = [(r * np.cos(a), r * np.sin(a)) for r, a in zip(radii, angles, strict=True)]
    return _polygon(u, v, corners)


def _arrow(u: Floats, v: Floats, t: Floats) -> Floats:
    shaft, neck = 0.20 + 0.08 * t, 0.02
    return _polygon(
        u,
        v,
        [
            (-shaft, -1.05),
            (shaft, -1.05),
            (shaft, neck),
            (0.9, neck),
            (0.0, 1.05),
            (-0.9, neck),
            (-shaft, neck),
        ],
    )


def _hourglass(u: Floats, v: Floats, t: Floats) -> Floats:
    waist = 0.10 + 0.08 * t
    return _polygon(
        u,
        v,
        [(-0.82, -0.95), (0.82, -0.95), (waist, 0), (0.82, 0.95), (-0.82, 0.95), (-waist, 0)],
    )


def _box(u: Floats, v: Floats, half_u: float | Floats, half_v: float | Floats) -> Floats:
    du, dv = np.abs(u) - half_u, np.abs(v) - half_v
    outside = np.hypot(np.maximum(du, 0), np.maximum(dv, 0))
    return outside + np.minimum(np.maximum(du, dv), 0)


def _polygon(u: Floats, v: Floats, corners: list[tuple[float | Floats, float | Floats]]) -> Floats:
    """Signed distance to a polygon: the nearest edge, and the parity of edges crossed."""
    square = np.full_like(u, np.inf)
    inside = np.zeros(u.shape, dtype=bool)
    for (au, av), (bu, bv) in zip(corners, corners[1:] + corners[:1], strict=True):
        eu, ev = np.float32(1) * (bu - au), np.float32(1) * (bv - av)
        du, dv = u - au, v - av
        along = np.clip((du * eu + dv * ev) / (eu * eu + ev * ev), 0.0, 1.0)
        square = np.minimum(square, (du - eu * along) ** 2 + (dv - ev * along) ** 2)
        left = eu * dv - ev * du > 0
        upward = (av <= v) & (v < bv)
        downward = (bv <= v) & (v < av)
        inside ^= (upward & left) | (downward & ~left)
    distance = np.sqrt(square)
    return np.where(inside, -distance, distance).astype(np.float32)


_SHAPES: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "disk": _disk,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "crescent": _crescent,
    "heart": _heart,
    "arrow": _arrow,
    "hourglass": _hourglass,
}

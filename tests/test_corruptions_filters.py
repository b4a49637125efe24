from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from robustlib.core.randomness import Stream
from robustlib.corruptions.blur import (
    _duplicated,
    blur,
    defocus_blur,
    disc,
    disc_kernel,
    glass_blur,
)
from robustlib.corruptions.digital import (
    jpeg_compression,
    laugros_pixelate,
    pixelate,
    thumbnail_resize,
)
from robustlib.corruptions.filters import filter_2d, filter_even, motion_filter


def noise(n: int, h: int, w: int, seed: int = 0) -> Tensor:
    images = torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(seed))
    return (images * 255).round() / 255


@pytest.mark.parametrize(("radius", "soft_sigma"), [(0.5, 0.6), (1.5, 0.1), (3, 0.1), (10, 0.5)])
def test_even_filter_is_the_plain_sum(radius: float, soft_sigma: float) -> None:
    images = noise(2, 30, 26)
    kernel = disc_kernel(radius, soft_sigma)
    expected = filter_2d(images, kernel, "mirror")
    torch.testing.assert_close(filter_even(images, kernel, "mirror"), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("radius", "soft_sigma"), [(2.5, 0.01), (4, 0.5), (6, 0.5), (8, 0.5)])
def test_defocus_is_the_disc_kernel(radius: float, soft_sigma: float) -> None:
    for size in ((40, 33), (3, 5), (1, 1)):
        images = noise(2, *size)
        expected = filter_2d(images, disc_kernel(radius, soft_sigma), "mirror")
        out = defocus_blur(images, radius, soft_sigma)
        torch.testing.assert_close(out, expected, rtol=0, atol=2e-6)


def test_disc_by_hand() -> None:
    assert disc(1, 1) == [[0, 0.2, 0], [0.2, 0.2, 0.2], [0, 0.2, 0]]


def test_motion_filter_by_hand() -> None:
    images = noise(3, 60, 50)
    degrees = torch.tensor([-45.0, 20.0, 130.0])
    weights = [math.exp(-i * i / 8) for i in range(7)]
    rows, columns = torch.arange(60), torch.arange(50)
    for image, angle, out in zip(
        images, degrees, motion_filter(images, 3, 2, degrees), strict=True
    ):
        radians = math.radians(angle)
        expected = torch.zeros(3, 60, 50)
        for i, weight in enumerate(weights):
            y = (rows + math.ceil(math.sin(radians) * i - 0.5)).clamp(0, 59)
            x = (columns + math.ceil(math.cos(radians) * i - 0.5)).clamp(0, 49)
            expected += image[:, y][:, :, x] * weight / sum(weights)
        torch.testing.assert_close(out, expected)


def test_motion_filter_of_a_crop() -> None:
    # Small images are gathered, large ones shifted: away from the edges the bits are the same.
    images = noise(3, 60, 50)
    degrees = torch.tensor([-45.0, 20.0, 130.0])
    out = motion_filter(images, 3, 2, degrees)[..., 16:34, 16:34]
    crop = motion_filter(images[..., 10:40, 10:40], 3, 2, degrees)[..., 6:24, 6:24]
    assert torch.equal(crop, out)


def test_pixelate_uneven_boxes_by_hand() -> None:
    images = torch.tensor([0.0, 0.1, 0.2, 0.6, 0.8]).view(1, 1, 1, 5).expand(1, 3, 5, 5)
    # 5 pixels to 3: boxes 0-1, 2, 3-4; output pixels 0 .. 4 show 0, 0, 1, 2, 2.
    expected = torch.tensor([0.05, 0.05, 0.2, 0.7, 0.7]).expand(1, 3, 5, 5)
    torch.testing.assert_close(pixelate(images, 0.6), expected)


@pytest.mark.parametrize(
    "size", [(1, 1), (2, 2), (1, 40), (3, 200), (17, 33), (32, 32), (48, 56), (101, 77)]
)
def test_jpeg_is_that_of_pillow(size: tuple[int, int]) -> None:
    smooth = torch.nn.functional.interpolate(noise(2, 5, 5), size=size, mode="bilinear")
    images = torch.cat((smooth, noise(2, *size), noise(1, *size).round(), smooth.flip(1)))
    for quality in (1, 7, 10, 15, 18, 25, 40, 50, 58, 65, 80, 95, 100):
        for image, out in zip(images, jpeg_compression(images, quality), strict=True):
            stored = io.BytesIO()
            levels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8)
            Image.fromarray(levels.numpy()).save(stored, "JPEG", quality=quality)
            expected = torch.from_numpy(np.array(Image.open(stored))).permute(2, 0, 1) / 255
            assert torch.equal(out, expected), quality


def test_jpeg_is_the_same_in_any_batch_and_number_of_threads() -> None:
    images = noise(7, 130, 140)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([jpeg_compression(image, 10) for image in images.split(1)])
        for threads in (2, 3, 16):
            torch.set_num_threads(threads)
            assert torch.equal(jpeg_compression(images, 10), alone)
    finally:
        torch.set_num_threads(before)


def test_jpeg_flat_block_by_hand() -> None:
    # DC = 8 (100 - 128) = -224; the luma divisor at quality 50 is 16: exactly -14 steps.
    grey = torch.full((1, 3, 16, 16), 100 / 255)
    torch.testing.assert_close(jpeg_compression(grey, 50), grey)
    # 8 (101 - 128) = -216 = -13.5 steps, a half, away from zero.
    torch.testing.assert_close(jpeg_compression(grey + 1 / 255, 50), grey)


@pytest.mark.parametrize(("d", "shape"), [(1, (9, 12)), (2, (14, 11)), (4, (16, 21)), (3, (5, 40))])
def test_glass_is_the_sequential_scan(d: int, shape: tuple[int, int]) -> None:
    h, w = shape
    n = 3
    source = torch.arange(h * w).repeat(n, 1)
    source = _duplicated(source, Stream(4, torch.arange(n), "glass"), shape, d)
    places = [(y, x) for y in range(d + 1, h - d + 1) for x in range(d + 1, w - d + 1)]
    offsets = Stream(4, torch.arange(n), "glass").integers(-d, d, (2, len(places)))
    expected = torch.arange(h * w).repeat(n, 1).view(n, h, w)
    for i in range(n):
        for (y, x), (dy, dx) in reversed(list(zip(places, offsets[i].T.tolist(), strict=True))):
            expected[i, y, x] = expected[i, y + dy, x + dx].clone()
    assert torch.equal(source.view(n, h, w), expected)
    if places:
        assert not torch.equal(expected[0], expected[1])


@pytest.mark.parametrize(
    ("side", "d", "iterations", "survival"),
    [(32, 1, 1, 0.70), (32, 1, 2, 0.57), (224, 1, 2, 0.54), (224, 2, 3, 0.28), (224, 4, 2, 0.32)],
)
def test_glass_survival(side: int, d: int, iterations: int, survival: float) -> None:
    n = 40 if side == 32 else 2
    images = torch.arange(float(side * side)).view(1, 1, side, side).expand(n, 1, side, side)
    stream = Stream(0, torch.arange(n), "glass")
    out = glass_blur(images, stream, 0.05, d, iterations)
    kept = sum(len(image.unique()) for image in out) / images.numel()
    assert kept == pytest.approx(survival, abs=0.015)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (8, 3), (8, 8)])
def test_glass_leaves_tiny_images(size: tuple[int, int], swap: bool) -> None:
    images = noise(2, *size)
    out = glass_blur(images, Stream(0, torch.arange(2), "glass"), 0.05, 4, 1, swap=swap)
    torch.testing.assert_close(out, images)


def test_blur_by_hand() -> None:
    images = torch.zeros(2, 3, 31, 31)
    images[:, :, 15, 15] = 1
    out = blur(images, torch.tensor([1.0, 0.5]))
    line = torch.tensor([1.0, 5, 15, 30, 45, 51, 45, 30, 15, 5, 1]) / 3**5
    torch.testing.assert_close(out[0, 0, 10:21, 10:21], torch.outer(line, line))
    torch.testing.assert_close(out[1], (out[0] + images[1]) / 2)
    column = torch.tensor([0.0, 0.0, 1.0]).view(1, 1, 3, 1).expand(1, 3, 3, 4)
    rows = torch.tensor([0.0, 0.0, 1.0])  # five means of a line with edges kept
    for _ in range(5):
        a, b, c = rows
        rows = torch.stack((2 * a + b, a + b + c, b + 2 * c)) / 3
    torch.testing.assert_close(blur(column, torch.ones(1))[0, 0, :, 0], rows)


def test_thumbnail_by_hand() -> None:
    step = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(1, 1, 1, 4).expand(1, 3, 4, 4)
    # To 2 pixels: triangle weights 3, 3, 1 of the pixels at distance 1/2, 1/2 and 3/2.
    low, high = 1 / 7, 6 / 7
    expected = torch.tensor([low, low + (high - low) / 4, high - (high - low) / 4, high])
    out = thumbnail_resize(step, torch.tensor([2.0]))
    torch.testing.assert_close(out, expected.expand(1, 3, 4, 4))
    assert thumbnail_resize(noise(1, 2, 3), torch.tensor([3.25])).shape == (1, 3, 2, 3)


def test_laugros_pixelate_by_hand() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4).expand(3, 3, 4, 4) / 16
    out = laugros_pixelate(images, torch.tensor([2.0, 4.0, 1.0]))[:, 0] * 16
    two = torch.tensor([[2.5, 4.5], [10.5, 12.5]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    torch.testing.assert_close(out[0], two)
    torch.testing.assert_close(out[1], torch.full((4, 4), 7.5))
    torch.testing.assert_close(out[2], images[2, 0] * 16)


@pytest.mark.parametrize("function", [blur, thumbnail_resize, laugros_pixelate])
@pytest.mark.parametrize("size", [(32, 32), (45, 70), (1, 1)])
def test_amounts_are_independent(function: object, size: tuple[int, int]) -> None:
    amounts = {
        blur: [0.4, 0.95, 0.4, 0.7, 0.5],
        thumbnail_resize: [1.1, 3.25, 1.1, 2.0, 2.01],
        laugros_pixelate: [2.0, 4.0, 2.0, 3.0, 1.0],
    }[function]  # type: ignore[index]
    images, amount = noise(5, *size), torch.tensor(amounts)
    before = images.clone()
    out = function(images, amount)  # type: ignore[operator]
    assert out.shape == images.shape
    assert torch.equal(images, before)
    assert -1e-6 <= out.min() <= out.max() <= 1 + 1e-6
    for i in range(5):
        alone = function(images[i : i + 1], amount[i : i + 1])  # type: ignore[operator]
        assert torch.equal(out[i : i + 1], alone)
    flat = torch.full_like(images, 0.3)
    torch.testing.assert_close(function(flat, amount), flat)  # type: ignore[operator]

"""The ten of ImageNet-C-bar are what they are described to be.

By hand from scripted draws, by what their pictures have in common, and the two with the longest
formulas once more in other terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from robustlib.core.checks import UnknownNameError
from robustlib.core.randomness import Stream
from robustlib.corruptions import corrupt, info, names, patterns
from robustlib.perturbations import Corruption
from robustlib.recipes import Augmented

BAR = names("imagenet_c_bar")
GREY = torch.full((1, 3, 32, 32), 0.5)
BLACK = torch.zeros(1, 3, 32, 32)


class Scripted:
    """A stream for one image that hands out what it is given, one call after another.

    Given are the values that a call returns; of normals, the standard ones.
    """

    n = 1
    device = torch.device("cpu")

    def __init__(self, *values: float | Sequence[float]) -> None:
        self.values = list(values)

    def _next(self, shape: Sequence[int], low: float, high: float) -> Tensor:
        value = torch.as_tensor(self.values.pop(0), dtype=torch.float32)
        assert value.min() >= low
        assert value.max() <= high
        return value.expand(1, *shape).clone()

    def uniform(self, shape: Sequence[int] = (), low: float = 0.0, high: float = 1.0) -> Tensor:
        return self._next(shape, low, high)

    def sign(self, shape: Sequence[int] = ()) -> Tensor:
        return self._next(shape, -1, 1)

    def integers(self, low: int, high: int, shape: Sequence[int] = ()) -> Tensor:
        return self._next(shape, low, high - 1).long()

    def normal(self, shape: Sequence[int] = (), mean: float = 0.0, std: float = 1.0) -> Tensor:
        return mean + std * self._next(shape, -6, 6)


def scripted(name: str, images: Tensor, amount: float, *values: float | Sequence[float]) -> Tensor:
    stream = Scripted(*values)
    (field,) = info(name).parameters(224)[0]
    out: Tensor = info(name).function(images, stream, **{field: amount})
    assert not stream.values
    return out


def photograph(n: int, side: int) -> Tensor:
    """Smooth fields of colour."""
    generator = torch.Generator().manual_seed(side)
    coarse = torch.rand(n, 3, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")


# Names and severities


def test_the_names_are_taken_wherever_corruptions_are() -> None:
    assert len(BAR) == 10
    assert Augmented("imagenet_c_bar").corruptions == BAR
    assert Augmented(("plasma_noise", "fog")).corruptions == ("plasma_noise", "fog")
    assert Corruption("sparkles", 2).family == "pattern"
    assert [name for name in BAR if info(name).table_side(64) == 32] == [
        *("blue_noise_sample", "brownish_noise", "checkerboard_cutout"),
        *("sparkles", "inverse_sparkles"),
    ]
    with pytest.raises(UnknownNameError, match="'cocentric_sine_waves'"):
        corrupt(GREY, "concentric_sine_waves")
    with pytest.raises(UnknownNameError, match="'imagenet_c_bar'"):
        names("imagenet-c-bar")


@pytest.mark.parametrize(
    ("name", "side", "unit", "offset", "levels"),
    [
        ("single_frequency_greyscale", 224, 19.6 / 255, 0, (1, 1.5, 2, 4.5, 5)),
        ("cocentric_sine_waves", 224, 12.8 / 255, 0, (3, 5, 8, 9, 10)),
        ("plasma_noise", 224, 6.4 / 255, 0, (4.75, 7, 8.5, 9.25, 10)),
        ("perlin_noise", 224, 0.05, 0, (4.6, 5.2, 5.8, 7.6, 8.8)),
        ("caustic_refraction", 224, 0.05 * 2, 0, (2.35, 3.2, 4.9, 6.6, 9.15)),
        ("blue_noise_sample", 224, 0.3, -2.5, (0.8, 1.6, 2.4, 4, 5.6)),
        ("blue_noise_sample", 32, 0.3, -2.5, (0.7, 1.4, 2.1, 3.5, 4.2)),
        ("brownish_noise", 224, 6.4 / 255, 0, (1, 2, 3, 4, 5)),
        ("brownish_noise", 32, 6.4 / 255, 0, (2.5, 4, 5.5, 6.5, 7)),
        ("checkerboard_cutout", 224, 0.1, 0, (2, 3, 4, 5, 6)),
        ("checkerboard_cutout", 32, 0.1, 0, (1, 2, 3, 4, 5)),
        ("sparkles", 224, 0.01, 0, (1, 2, 3, 5, 6)),
        ("sparkles", 32, 0.01, 0, (0.7, 3.5, 5.6, 6.3, 7)),
        ("inverse_sparkles", 224, 0.13, 0, (1, 2, 4, 9, 10)),
        ("inverse_sparkles", 32, 0.13, 0, (1, 1.5, 2.5, 4.5, 5)),
    ],
)
def test_severities_are_the_published_levels(
    name: str, side: int, unit: float, offset: float, levels: Sequence[float]
) -> None:
    found = [value for row in info(name).parameters(side) for value in row.values()]
    assert found == pytest.approx([offset + unit * level for level in levels], abs=1e-6)
    assert info(name).table_side(side) == side


@pytest.mark.parametrize(
    ("name", "amount"),
    [
        ("single_frequency_greyscale", 0),
        ("cocentric_sine_waves", 0),
        ("plasma_noise", 0),
        ("perlin_noise", 0),
        ("blue_noise_sample", -math.inf),
        ("brownish_noise", 0),
        ("checkerboard_cutout", 0),
        ("caustic_refraction", 0),
    ],
)
def test_of_no_amount_nothing_is_left(name: str, amount: float) -> None:
    images = photograph(3, 40)
    (field,) = info(name).parameters(224)[0]
    out = info(name).function(images, Stream(0, torch.arange(3), name), **{field: amount})
    torch.testing.assert_close(out, images, rtol=0, atol=1e-5)


# Waves


def test_a_single_frequency_by_hand() -> None:
    quarter = math.pi / 2
    rows = scripted("single_frequency_greyscale", GREY, 0.2, quarter, 0, 0, 1)
    expected = torch.tensor([0.5, 0.7, 0.5, 0.3]).repeat(8).expand(1, 3, 32, 32)
    torch.testing.assert_close(rows, expected)
    columns = scripted("single_frequency_greyscale", GREY, 0.2, quarter, 0, 0, -1)
    torch.testing.assert_close(columns, expected.transpose(2, 3))


def test_a_single_frequency_has_one_peak() -> None:
    n, side = 150, 64
    images = torch.full((n, 3, side, side), 0.5)
    out = corrupt(images, "single_frequency_greyscale", 5) - 0.5
    assert torch.equal(out[:, 0], out[:, 1])
    assert torch.equal(out[:, 0], out[:, 2])
    assert out.abs().max() <= 98 / 255 + 1e-6
    window = torch.hann_window(side)
    power = torch.fft.rfft2(out[:, 0] * window * window[:, None]).abs() ** 2
    down, across = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)
    peak = power.flatten(1).argmax(1)
    at_down, at_across = down[peak // len(across), 0], across[peak % len(across)]
    away = [
        torch.minimum((d := (axis - at[:, None, None]).abs()), 1 - d)
        for axis, at in ((down, at_down), (across, at_across))
    ]
    near = (away[0] <= 2.5 / side) & (away[1] <= 2.5 / side)
    assert ((power * near).sum((1, 2)) / power.sum((1, 2))).median() > 0.99
    # The larger component is even over 0 .. 1/2 periods a pixel, either one with equal chance.
    larger = torch.maximum(at_down.abs(), at_across.abs())
    assert abs(larger.mean() - 0.25) < 4 * 0.5 / math.sqrt(12 * n)
    assert abs((at_across > at_down.abs()).float().mean() - 0.5) < 4 * 0.5 / math.sqrt(n)


def test_concentric_rings_by_hand() -> None:
    """Without swing they are circles: a ring of 3 pixels rises from -1/2 by 1/3 a pixel."""
    out = scripted("cocentric_sine_waves", GREY, 0.3, 0.5, 4, 0, 3)
    rising = 0.5 + 0.3 * (torch.arange(16) % 3 / 3 - 0.5)
    torch.testing.assert_close(out[0, 0, 16, 16:], rising)
    torch.testing.assert_close(out[0, 0, 16:, 16], rising)
    around = out[..., 1:, 1:]
    for same in (around.flip(2), around.flip(3), around.transpose(2, 3)):
        torch.testing.assert_close(same, around)
    assert out[0, 0, 16 + 3, 16 + 4] == pytest.approx(0.5 + 0.3 * (2 / 3 - 0.5), abs=1e-5)  # 5 away


def test_concentric_rings_rise_evenly() -> None:
    out = corrupt(torch.full((40, 3, 64, 64), 0.5), "cocentric_sine_waves", 5) - 0.5
    assert torch.equal(out[:, 0], out[:, 2])
    amplitude = 128 / 255
    assert out.abs().max() <= amplitude / 2 + 1e-5
    parts = torch.histc(out / amplitude, 4, -0.5, 0.5) / out.numel()
    torch.testing.assert_close(parts, torch.full((4,), 0.25), rtol=0, atol=0.02)


# Clouds


def test_perlin_noise_by_hand() -> None:
    """All slopes point along x, so between corners n = t - (3 t^2 - 2 t^3), times 1.5."""
    out = scripted("perlin_noise", torch.zeros(1, 3, 224, 224), 0.4, 0)
    veil = out[0, 0, 0] / 0.4
    torch.testing.assert_close(veil[::32], torch.full((7,), 0.5))  # corners of all octaves
    n_8th, n_4th = 0.125 - (3 * 0.125**2 - 2 * 0.125**3), 0.25 - (3 * 0.25**2 - 2 * 0.25**3)
    assert veil[8] == pytest.approx(0.5 + 0.75 * n_4th, abs=1e-6)
    assert veil[4] == pytest.approx(0.5 + 0.75 * (n_8th + n_4th / 2), abs=1e-6)
    assert (out == out[:, :, :1]).all()


@pytest.mark.parametrize("name", ["plasma_noise", "perlin_noise", "brownish_noise"])
def test_clouds_are_smooth(name: str) -> None:
    out = corrupt(torch.full((4, 3, 224, 224), 0.5), name, 3)
    values = out - out.mean((2, 3), keepdim=True)
    together = (values[..., 1:] * values[..., :-1]).sum() / (values * values).sum()
    assert together > 0.9


def test_the_veil_is_grey_and_bright() -> None:
    blend = info("perlin_noise").parameters(224)[4]["blend"]
    veil = corrupt(torch.zeros(8, 3, 64, 48), "perlin_noise", 5) / blend
    assert torch.equal(veil[:, 0], veil[:, 1])
    assert veil.min() == pytest.approx(0.5, abs=1e-4)
    assert 0.55 < veil.mean() < 0.75
    assert veil.max() <= 1 + 1e-6


def test_plasma_has_every_colour() -> None:
    blend = info("plasma_noise").parameters(224)[0]["blend"]
    out = corrupt(torch.full((60, 3, 64, 64), 0.5), "plasma_noise", 1)
    colour = (out - (1 - blend) * 0.5) / blend
    assert colour.min() == pytest.approx(-1, abs=1e-3)
    assert colour.max() == pytest.approx(1, abs=1e-3)
    assert (colour.mean((0, 2, 3)).abs() < 0.15).all()
    assert torch.corrcoef(colour.transpose(0, 1).flatten(1)).fill_diagonal_(0).abs().max() < 0.3


# Coloured noise


@pytest.mark.parametrize("side", [32, 45])
def test_the_colour_of_noise(side: int) -> None:
    images = torch.zeros(300, 3, side, side)
    white = torch.randn(300, 1, side, side, generator=torch.Generator().manual_seed(side))
    f = patterns._frequency(images)
    assert f[0, 3] == pytest.approx(3)
    assert f[4, 3] == f[-4, 3] == pytest.approx(5)

    def power_at(noise: Tensor, down: int, across: int) -> float:
        return (torch.fft.rfft2(noise)[..., down, across].abs() ** 2).mean().item()

    blue = patterns._coloured(white, f)
    brownish = patterns._coloured(white, 1 / (f**2 + 1))
    for noise in (blue, brownish):
        ones = torch.ones(300, 1)
        torch.testing.assert_close(noise.std((2, 3), correction=0), ones)
    # The mean of 300 exponential variables is off by 6 %, a ratio of two by 8 %.
    assert power_at(blue, 6, 8) / power_at(blue, 3, 4) == pytest.approx(4, rel=0.4)
    assert power_at(brownish, 0, 1) / power_at(brownish, 0, 3) == pytest.approx(25, rel=0.4)
    assert power_at(blue, 0, 0) < 1e-6 * power_at(blue, 0, 1)


def test_blue_noise_blackens_its_share_and_keeps_it_apart() -> None:
    images = torch.ones(60, 3, 64, 64)
    for severity in (1, 3, 5):
        out = corrupt(images, "blue_noise_sample", severity, severities_for=224)
        assert set(out.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(out[:, 0], out[:, 2])
        black = out[:, 0] == 0
        threshold = info("blue_noise_sample").parameters(224)[severity - 1]["threshold"]
        share = 0.5 * math.erfc(-threshold / math.sqrt(2))  # of a normal variable
        assert black.float().mean() == pytest.approx(share, rel=0.05)
        beside = (black[..., 1:] & black[..., :-1]).float().mean() / black.float().mean()
        assert beside < 0.5 * share


def test_brownish_noise_has_its_sigma_in_each_channel() -> None:
    out = corrupt(torch.full((100, 3, 48, 48), 0.5), "brownish_noise", 1) - 0.5
    sigma = info("brownish_noise").parameters(48)[0]["sigma"]
    torch.testing.assert_close(
        out.std((2, 3), correction=0), torch.full((100, 3), sigma), rtol=1e-3, atol=0
    )
    assert abs(torch.corrcoef(out.mean((2, 3)).T).fill_diagonal_(0)).max() < 0.4


# Squares and stars


def test_a_checkerboard_by_hand() -> None:
    row, column = torch.arange(32)[:, None] // 8, torch.arange(32) // 8
    black = ((row + column) % 2 == 0).expand(1, 3, 32, 32)
    images = photograph(1, 32)
    out = scripted("checkerboard_cutout", images, 0.3, 0, 0.25, 0.2)  # all are chosen
    assert torch.equal(out, torch.where(black, 0.5, images))
    assert torch.equal(scripted("checkerboard_cutout", images, 0.3, 0, 0.25, 0.4), images)


def test_a_checkerboard_covers_half_its_share() -> None:
    images = torch.zeros(400, 3, 64, 64)
    for severity, share in ((1, 0.1), (5, 0.5)):
        out = corrupt(images, "checkerboard_cutout", severity, severities_for=32)
        assert set(out.unique().tolist()) == {0.0, 0.5}
        covered = (out[:, 0] == 0.5).float().mean((1, 2))
        assert abs(covered.mean() - share / 2) < 4 * covered.std() / math.sqrt(400)


def test_stars_by_hand() -> None:
    """Rays of 8 pixels; 16 below the centre a ray ends: (1 - 1/4) (8 / 16)^2 = 0.1875."""
    out = scripted("sparkles", BLACK, 0.25, 0.5, 50, 0)
    assert out[0, 0, 0, 16] == pytest.approx(1 - (1 - 0.1875) ** 5, abs=1e-4)  # the same above
    assert (out[0, :, 12:21, 12:21] == 1).all()  # also the centre, where angles have no value
    inverse = scripted("inverse_sparkles", BLACK, 1, 0.5, 50, 0)
    assert inverse[0, 0, 0, 16] == pytest.approx(1 - 0.1875, abs=1e-4)
    assert (inverse[0, :, 12:21, 12:21] == 0).all()
    sharper = scripted("inverse_sparkles", BLACK, 2, 0.5, 50, 0)
    assert sharper[0, 0, 0, 16] == pytest.approx(1 - 0.75 * 0.5**4, abs=1e-4)


@pytest.mark.parametrize("name", ["sparkles", "inverse_sparkles"])
def test_stars_only_brighten(name: str) -> None:
    images = photograph(30, 64)
    for severity in (1, 5):
        assert (corrupt(images, name, severity) >= images - 1e-6).all()
    white = torch.ones(2, 3, 32, 32)
    assert torch.equal(corrupt(white, name, 3), white)


def test_sparkles_are_points_and_inverse_ones_a_hole() -> None:
    black = torch.zeros(100, 3, 96, 96)
    light = corrupt(black, "sparkles", 2, severities_for=224)[:, 0]
    assert (light > 0.5).float().mean((1, 2)).max() < 0.05
    assert (light == 1).flatten(1).any(1).all()
    around = corrupt(black, "inverse_sparkles", 5, severities_for=224)[:, 0]
    corners = around[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.mean() > 0.7
    assert around[:, 48, 48].mean() < 0.3


# Water


def test_water_keeps_the_colours_but_for_its_light() -> None:
    images = photograph(8, 224)
    out = corrupt(images, "caustic_refraction", 1)
    before, after = (x.flatten(1).sort(1).values for x in (images, out))
    moved = (out - images).abs().mean()
    assert moved > 0.01
    assert (after - before).abs().mean() < 0.75 * moved
    assert (out.mean((1, 2, 3)) - images.mean((1, 2, 3))).abs().max() < 0.03


def test_water_lights_one_side_of_a_slope() -> None:
    out = corrupt(torch.full((8, 3, 128, 128), 0.5), "caustic_refraction", 2) - 0.5
    inside = out[:, 0, 1:-1, 1:-1]
    assert inside.max() > 0.1
    assert inside.min() < -0.1
    assert inside.mean((1, 2)).abs().max() < 0.02


# Once more, from the same draws, in float64


def test_plasma_again_in_complex_numbers() -> None:
    """A turn by 0.3 of the normal is a product with 1 + 0.3i."""
    ids = torch.arange(6)
    images = photograph(6, 32)[:, :, :20]
    blend = info("plasma_noise").parameters(20)[2]["blend"]
    out = corrupt(images, "plasma_noise", 3, 4, ids)
    stream = Stream(4, ids, "plasma_noise", 3)
    t, steps = stream.uniform((), 0, 6 * math.pi), stream.integers(4, 7)
    decay, unit = stream.uniform((), 1.25, 1.75), stream.uniform((), 0.075, 0.2)
    assert len(steps.unique()) > 1
    for i, (time, count, d, size) in enumerate(
        zip(t.tolist(), steps.tolist(), decay.tolist(), unit.tolist(), strict=True)
    ):
        for row, column in ((0, 0), (3, 30), (19, 11)):
            z = complex(column, row) / (20 * size)
            for k in range(count):
                phase = time / 1.15**k
                step = complex(
                    math.cos(1.93**k * z.imag + phase), math.sin(1.93**k * z.real + phase)
                )
                z += step * (1 + 0.3j) / d**k
            angles = z.real - time, (z.real + z.imag + math.sin(time)) / 2, z.imag + time
            colour = torch.tensor([math.sin(angle) for angle in angles])
            expected = ((1 - blend) * images[i, :, row, column] + blend * colour).clamp(0, 1)
            torch.testing.assert_close(out[i, :, row, column], expected, rtol=0, atol=1e-4)


def refracted(ray: np.ndarray, normal: np.ndarray, index: float) -> np.ndarray:
    """Snell's law for unit vectors that point the same way."""
    cos = ray @ normal
    out: np.ndarray = ray / index + (math.sqrt(1 - (1 - cos**2) / index**2) - cos / index) * normal
    return out


def test_snell() -> None:
    for degrees in (5, 40, 85):
        ray = np.array([math.sin(math.radians(degrees)), 0, math.cos(math.radians(degrees))])
        bent = refracted(ray, np.array([0, 0, 1.0]), 4)
        assert math.hypot(*bent) == pytest.approx(1)
        assert bent[0] == pytest.approx(ray[0] / 4)


def caustic(p: complex, time: float) -> float:
    q, light = p, 1.0
    for n in range(1, 6):
        t = time * (1 - 3.5 / n)
        q = p + complex(
            math.cos(t - q.real) + math.sin(t + q.imag), math.sin(t - q.imag) + math.cos(t + q.real)
        )
        sine, cosine = math.sin(q.real + t), math.cos(q.imag + t)
        light += 200 / math.hypot(p.real / sine, p.imag / cosine)
    return min(1, (1.17 - (light / 5) ** 1.4) ** 8)


@pytest.mark.parametrize("severity", [1, 5])
def test_caustic_refraction_again_by_vectors(severity: int) -> None:
    h, w = 30, 24
    images, ids = photograph(2, h)[..., :w].contiguous(), torch.tensor([3, 8])
    strength = info("caustic_refraction").parameters(w)[severity - 1]["strength"]
    out = corrupt(images, "caustic_refraction", severity, 4, ids)
    stream = Stream(4, ids, "caustic_refraction", severity)
    times, periods = stream.uniform((), 0.5, 2).tolist(), stream.uniform((), 0.75, 1.25).tolist()
    for image, found, time, period in zip(images.double(), out, times, periods, strict=True):
        surface = np.zeros((h + 2, w + 2))
        for row in range(h):
            for column in range(w):
                place = [x / (period * w) % 1 * 2 * math.pi - 250 for x in (row, column)]
                surface[row + 1, column + 1] = caustic(complex(*place), time)
        inside = surface[1:-1, 1:-1]
        inside[:] = scipy.ndimage.gaussian_filter(inside, 1)
        down, across = (
            surface[2:, 1:-1] - surface[:-2, 1:-1],
            surface[1:-1, 2:] - surface[1:-1, :-2],
        )
        places = np.stack(np.mgrid[:h, :w]).astype(float)
        for row in range(h):
            for column in range(w):
                normal = np.array([down[row, column], across[row, column], 1])
                normal /= np.linalg.norm(normal)
                if normal[2] < 0.999:
                    bent = refracted(np.array([0, 0, 1.0]), normal, 4)
                    places[:, row, column] += strength * w / 2 * bent[:2]
        light = 2 * strength * (down - across)
        expected = [
            scipy.ndimage.map_coordinates(channel, places, order=1, mode="grid-constant") + light
            for channel in image.numpy()
        ]
        expected = torch.from_numpy(np.stack(expected)).float().clamp(0, 1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)

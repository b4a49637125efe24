from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from robustlib.core.checks import UnknownNameError
from robustlib.core.randomness import Stream
from robustlib.corruptions import augment, corrupt, families, info, names
from robustlib.corruptions.blur import disc_kernel, glass_blur
from robustlib.corruptions.digital import jpeg_compression, pixelate, quantization
from robustlib.corruptions.filters import (
    border_index,
    hsv_to_rgb,
    luma,
    motion_filter,
    pad,
    rgb_to_hsv,
)
from robustlib.corruptions.light import brightness, contrast, saturate
from robustlib.corruptions.noise import poisson, salt_pepper
from robustlib.corruptions.occlusion import border
from robustlib.corruptions.shapes import dash, disc, rhombus, stamp

ALL = names()
RANDOM = tuple(name for name in ALL if info(name).random)
SEVERITIES = (1, 2, 3, 4, 5)


def picture(n: int = 4, h: int = 32, w: int = 32, seed: int = 0) -> Tensor:
    """Smooth colour fields with an edge: something a blur and a codec can work on."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 5, 5, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(h, w), mode="bilinear")
    images[:, :, h // 3 : h // 2, w // 4 :] *= 0.4
    return (images * 255).round() / 255


def change(images: Tensor, name: str, severity: int) -> float:
    return (corrupt(images, name, severity) - images).abs().mean().item()


def one_pixel(*rgb: float) -> Tensor:
    return torch.tensor(rgb).view(1, 3, 1, 1)


# The contract, for every corruption


@pytest.mark.parametrize("name", ALL)
def test_contract(name: str) -> None:
    images = picture(6)
    before = images.clone()
    ids = torch.tensor([5, -3, 2**40, 0, 17, 900])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    previous = None
    for severity in SEVERITIES:
        out = corrupt(images, name, severity, seed=1, ids=ids)
        assert out.dtype == torch.float32
        assert out.shape == images.shape
        assert out.min() >= 0
        assert out.max() <= 1
        assert torch.equal(images, before)
        assert not torch.equal(out, images)
        assert torch.equal(out, corrupt(images, name, severity, seed=1, ids=ids))
        parts = [
            corrupt(images[part], name, severity, seed=1, ids=ids[part])
            for part in order.split([1, 2, 3])
        ]
        assert torch.equal(torch.cat(parts), out[order])
        assert previous is None or not torch.equal(out, previous)
        previous = out


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [(16, 16), (17, 40), (64, 33), (100, 61)])
def test_sizes(name: str, size: tuple[int, int]) -> None:
    images = picture(3, *size)
    for severity in (1, 5):
        out = corrupt(images, name, severity)
        assert out.shape == images.shape
        assert out.isfinite().all()
        assert torch.equal(corrupt(images[1:2], name, severity, ids=torch.tensor([1])), out[1:2])


@pytest.mark.parametrize("name", ALL)
def test_constant_images(name: str) -> None:
    images = torch.stack((torch.zeros(3, 32, 32), torch.ones(3, 32, 32)))
    for severity in SEVERITIES:
        out = corrupt(images, name, severity)
        assert out.isfinite().all()
        assert out.min() >= 0
        assert out.max() <= 1


@pytest.mark.parametrize("name", ALL)
def test_empty_and_tiny(name: str) -> None:
    assert corrupt(torch.zeros(0, 3, 32, 32), name).shape == (0, 3, 32, 32)
    assert corrupt(torch.zeros(2, 3, 0, 0), name).shape == (2, 3, 0, 0)
    for size in ((1, 1), (2, 5), (8, 8)):
        assert corrupt(picture(2, *size), name, 5).isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_non_contiguous_input(name: str) -> None:
    images = picture(3)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(corrupt(channels_last, name), corrupt(images, name))


def test_threads_make_no_difference() -> None:
    images = picture(5, 64, 64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = {name: corrupt(images[:1], name, 4) for name in ALL}
        torch.set_num_threads(2)
        together = {name: corrupt(images, name, 4) for name in ALL}
    finally:
        torch.set_num_threads(before)
    assert [name for name in ALL if not torch.equal(alone[name], together[name][:1])] == []


@pytest.mark.parametrize("name", ALL)
def test_ids_and_seeds(name: str) -> None:
    images = picture(1).expand(12, -1, -1, -1)
    out = corrupt(images, name, 3)
    other_seed = corrupt(images, name, 3, seed=1)
    if name in RANDOM:
        assert not torch.equal(out, other_seed)
        assert any(not torch.equal(out[0], out[i]) for i in range(1, 12))
        assert torch.equal(out, corrupt(images, name, 3, ids=torch.arange(12)))
    else:
        assert torch.equal(out, other_seed)
        assert all(torch.equal(out[0], out[i]) for i in range(12))


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "speckle_noise"])
def test_noise_is_independent(name: str) -> None:
    images = torch.full((16, 3, 32, 32), 0.5)
    variants = [
        corrupt(images, name, 3),
        corrupt(images, name, 4),
        corrupt(images, name, 3, seed=1),
        corrupt(images, name, 3, ids=torch.arange(16) + 16),
    ]
    noise = torch.cat([(v - 0.5).flatten(1) for v in variants])
    correlations = torch.corrcoef(noise).fill_diagonal_(0)
    assert correlations.abs().max() < 6 / math.sqrt(3072)


def test_result_carries_no_gradient() -> None:
    images = picture(2).requires_grad_()
    assert not corrupt(images, "contrast").requires_grad


@pytest.mark.parametrize(
    "name",
    [
        *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "gaussian_blur"),
        *("zoom_blur", "defocus_blur", "brightness", "contrast", "pixelate", "rotation"),
        *("jpeg_compression", "translation", "shear", "hue", "quantization", "obstruction"),
        *("border", "rain", "vertical_artifacts"),
    ],
)
@pytest.mark.parametrize("size", [32, 224])
def test_severity_raises_change(name: str, size: int) -> None:
    images = picture(24 if size == 32 else 4, size, size)
    changes = [change(images, name, s) for s in (1, 3, 5)]
    assert changes == sorted(changes)
    assert changes[0] < changes[2]


# Names, suites, families, parameters


def test_suites() -> None:
    assert set(names("laugros")) == {
        *("gaussian", "salt_pepper", "quantization", "blur", "thumbnail_resize"),
        *("laugros_pixelate", "artifacts", "vertical_artifacts", "rhombus", "circle", "rain"),
        *("obstruction", "border", "translation", "shear", "rotation", "elastic", "backlight"),
        *("laugros_brightness", "laugros_contrast", "color_distortion", "gray_scale", "hue"),
    }
    assert len(names("noc")) == 8
    assert set(names("noc")) <= set(names("laugros"))
    assert not set(names("laugros")) & set(names("imagenet_c"))
    assert len(set(ALL)) == len(ALL)
    assert set(names("imagenet_c_extra")) == {
        *("speckle_noise", "gaussian_blur", "spatter", "saturate")
    }
    assert len(names("imagenet_c_15")) == 15
    assert names("imagenet_c") == names("imagenet_c_15") + names("imagenet_c_extra")
    assert len(set(names("imagenet_c"))) == 19
    assert set(names("imagenet_c_bar")) == {
        *("single_frequency_greyscale", "cocentric_sine_waves", "plasma_noise", "perlin_noise"),
        *("blue_noise_sample", "brownish_noise", "checkerboard_cutout", "sparkles"),
        *("inverse_sparkles", "caustic_refraction"),
    }
    assert set(names("study")) == {*names("imagenet_c"), *names("laugros")}
    assert len(names("study")) == 42
    assert names() == names("all") == names("study") + names("imagenet_c_bar")
    with pytest.raises(UnknownNameError, match="imagenet_c"):
        names("imagenetc")


def test_families_cover_all_names_once() -> None:
    members = [name for family in families().values() for name in family]
    assert sorted(members) == sorted(ALL)
    assert set(families()) == {
        *("noise", "blur", "weather", "digital", "geometric", "light", "occlusion", "pattern")
    }
    assert all(families().values())
    assert all(name in families()[info(name).family] for name in ALL)


@pytest.mark.parametrize("name", ALL)
def test_info(name: str) -> None:
    entry = info(name)
    if name in names("imagenet_c"):
        assert entry.parameters(32) != entry.parameters(224)
        assert "1903.12261" in entry.source
    assert entry.name == name
    assert "arXiv" in entry.source
    assert entry.function.__doc__
    assert entry.table_side(224) == (None if name in names("laugros") else 224)
    for side in (16, 32, 64, 224, 512):
        rows = entry.parameters(side)
        assert len(rows) == 5
        assert all(row.keys() == rows[0].keys() for row in rows)
    with pytest.raises(AttributeError):
        entry.name = "other"  # type: ignore[misc]


def test_parameters() -> None:
    assert [row["sigma"] for row in info("gaussian_noise").parameters(32)] == [
        *(0.04, 0.06, 0.08, 0.09, 0.1)
    ]
    assert info("gaussian_noise").parameters(300)[4] == {"sigma": 0.38}
    assert info("gaussian_noise").parameters(64)[4] == {"sigma": 0.18}
    assert info("gaussian_noise").parameters(96) == info("gaussian_noise").parameters(64)
    assert info("gaussian_noise").parameters(16) == info("gaussian_noise").parameters(32)
    assert [row["width_px"] for row in info("border").parameters(224)] == [9, 18, 28, 37, 46]
    assert [row["width_px"] for row in info("border").parameters(32)] == [1, 3, 4, 5, 7]
    assert [row["level_count"] for row in info("quantization").parameters(32)][::4] == [8, 3]
    assert info("hue").parameters(32)[4] == {"turn": 0.5}
    assert [info("fog").table_side(side) for side in (1, 45, 46, 119, 120, 999)] == [
        *(32, 32, 64, 64, 224, 224)
    ]
    with pytest.raises(ValueError, match="image_side"):
        info("border").parameters(0)


# Errors


def test_errors() -> None:
    images = picture(2)
    with pytest.raises(UnknownNameError, match="gaussian_noise"):
        corrupt(images, "gausian_noise")
    with pytest.raises(UnknownNameError):
        info("nope")
    for severity in (0, 6, 2.5, True):
        with pytest.raises(ValueError, match="severity"):
            corrupt(images, "fog", severity)  # type: ignore[arg-type]
    for seed in (1.5, True, None, "1"):
        with pytest.raises(ValueError, match="seed"):
            corrupt(images, "fog", seed=seed)  # type: ignore[arg-type]
    bad_ids = [
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(2),
        torch.zeros(2, 1).long(),
        [0.5, 1],
    ]
    for ids in bad_ids:
        with pytest.raises(ValueError, match="ids"):
            corrupt(images, "fog", ids=ids)  # type: ignore[arg-type]
    for bad in (images * 255, images.double(), images[0], images[:, :1], images * float("nan")):
        with pytest.raises(ValueError, match="images"):
            corrupt(bad, "fog")


# Augmentation


def test_augment() -> None:
    images, ids = picture(18), torch.arange(18) + 40
    before = images.clone()
    out = augment(images, ["contrast", "border"], seed=3, ids=ids)
    assert out.shape == images.shape
    assert torch.equal(images, before)
    assert torch.equal(out, augment(images, ["contrast", "border"], seed=3, ids=ids))
    outs = [augment(images, ["contrast", "border"], seed=s, ids=ids) for s in range(6)]
    assert any(not torch.equal(outs[0], o) for o in outs[1:])
    candidates = [corrupt(images, "contrast", s) for s in SEVERITIES]
    candidates += [border(images, torch.full((18,), float(px))) for px in range(1, 8)]
    kinds = [{k for k, c in enumerate(candidates) if torch.equal(c[i], out[i])} for i in range(18)]
    assert all(kinds)
    for first, last in ((0, 5), (5, 10), (10, 14), (14, 18)):
        borders = [min(kind) >= 5 for kind in kinds[first:last]]
        assert all(borders) or set.intersection(*kinds[first:last])


def test_augment_draws_every_name_and_severity() -> None:
    images = picture(4)
    ids = torch.arange(4)
    options = [corrupt(images, name, s) for name in ("contrast", "pixelate") for s in SEVERITIES]
    seen = set()
    for seed in range(60):
        out = augment(images, ["contrast", "pixelate"], seed=seed, ids=ids)
        seen |= {k for k, o in enumerate(options) if any(map(torch.equal, o, out))}
    assert len(seen) == 10


def test_augment_draws_for_each_image() -> None:
    images = picture(1).expand(200, -1, -1, -1)
    ids = torch.arange(200)
    out = augment(images, ["contrast", "border"], seed=1, ids=ids, groups=None)
    options = [corrupt(images[:1], name, s) for name in ("contrast",) for s in SEVERITIES]
    options += [border(images[:1], torch.tensor([float(px)])) for px in range(1, 8)]
    counts = [sum(torch.equal(o[0], image) for image in out) for o in options]
    assert sum(counts) == 200
    assert min(counts[:5]) >= 10
    assert min(counts[6:10]) >= 10
    some = torch.tensor([7, 3, 150])
    again = augment(images[some], ["contrast", "border"], seed=1, ids=some, groups=None)
    assert torch.equal(again, out[some])
    with pytest.raises(ValueError, match="groups"):
        augment(images, ["fog"], seed=0, ids=ids, groups=0)


@pytest.mark.parametrize("name", ALL)
def test_random_severity(name: str) -> None:
    images, ids = picture(1).expand(24, -1, -1, -1), torch.arange(24)
    out = corrupt(images, name, "random", seed=2)
    parts = [corrupt(images[i], name, "random", seed=2, ids=ids[i]) for i in ids.split([5, 19])]
    assert torch.equal(torch.cat(parts), out)
    if name not in names("laugros"):
        levels = [corrupt(images, name, s, seed=2) for s in SEVERITIES]
        hits = [[torch.equal(o, level[i]) for level in levels] for i, o in enumerate(out)]
        assert all(map(any, hits))
        assert sum(map(any, zip(*hits, strict=True))) >= 4
    else:
        assert len({image.sum().item() for image in out}) >= 2


def test_severities_for_another_side() -> None:
    images = torch.full((30, 3, 32, 32), 0.5)
    assert abs(corrupt(images, "gaussian_noise", 1, severities_for=224).std() - 0.08) < 0.001
    same = corrupt(picture(), "fog", 2, severities_for=32)
    assert torch.equal(same, corrupt(picture(), "fog", 2))
    frame = corrupt(torch.zeros(1, 3, 32, 32), "border", 1, severities_for=224)
    assert (frame[0, 0, 16] == 0.5).sum() == 18
    for side in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="severities_for"):
            corrupt(images, "fog", severities_for=side)  # type: ignore[arg-type]


def test_options() -> None:
    assert info("fog").options == {}
    with pytest.raises(ValueError, match="no options"):
        corrupt(picture(), "fog", thickness=3)
    with pytest.raises(UnknownNameError, match="swap"):
        corrupt(picture(), "glass_blur", swop=True)


def test_augment_small_batches_and_errors() -> None:
    for n in range(4):
        assert augment(picture(n), ["fog"], seed=0, ids=torch.arange(n)).shape[0] == n
    images, ids = picture(2), torch.arange(2)
    with pytest.raises(ValueError, match="empty"):
        augment(images, [], seed=0, ids=ids)
    with pytest.raises(ValueError, match="repeats"):
        augment(images, ["fog", "fog"], seed=0, ids=ids)
    with pytest.raises(UnknownNameError):
        augment(images, ["fogg"], seed=0, ids=ids)
    with pytest.raises(ValueError, match="not the text 'fog'"):
        augment(images, "fog", seed=0, ids=ids)
    with pytest.raises(ValueError, match="not a set"):
        augment(images, {"fog", "snow"}, seed=0, ids=ids)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ids"):
        augment(images, ["fog"], seed=0, ids=ids[:1])


# Values worked out by hand


def test_contrast_by_hand() -> None:
    images = torch.tensor([0.0, 1.0, 0.2, 0.4]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    expected = torch.tensor([0.2, 0.7, 0.3, 0.4]).view(2, 2)  # mean 0.4, factor 0.5
    torch.testing.assert_close(contrast(images, 0.5)[0, 0], expected)


def test_brightness_by_hand() -> None:
    torch.testing.assert_close(brightness(one_pixel(0.5, 0.25, 0.0), 0.1), one_pixel(0.6, 0.3, 0.0))
    torch.testing.assert_close(brightness(one_pixel(0.0, 0.0, 0.0), 0.1), one_pixel(0.1, 0.1, 0.1))
    torch.testing.assert_close(brightness(one_pixel(1.0, 0.5, 0.2), 0.3), one_pixel(1.0, 0.5, 0.2))


def test_saturate_by_hand() -> None:
    torch.testing.assert_close(
        saturate(one_pixel(0.8, 0.4, 0.6), 0.5, 0.0), one_pixel(0.8, 0.6, 0.7)
    )
    grey = one_pixel(0.5, 0.5, 0.5)
    torch.testing.assert_close(saturate(grey, 2.0, 0.0), grey)
    torch.testing.assert_close(saturate(grey, 2.0, 0.2), one_pixel(0.5, 0.4, 0.4))


def test_hue_by_hand() -> None:
    red = one_pixel(1.0, 0.0, 0.0).expand(1, 3, 8, 8)
    turned = corrupt(red, "hue", 5)  # by half a circle, whichever the sign
    torch.testing.assert_close(turned, 1 - red)
    grey = torch.full((1, 3, 8, 8), 0.3)
    torch.testing.assert_close(corrupt(grey, "hue", 3), grey)


def test_hsv_round_trip() -> None:
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hsv_to_rgb(*rgb_to_hsv(images)), images)
    h, s, v = rgb_to_hsv(one_pixel(0.0, 1.0, 0.5))
    assert (round(h.item() * 360), s.item(), v.item()) == (150, 1.0, 1.0)


def test_quantization_by_hand() -> None:
    values = torch.tensor([0.0, 0.2, 0.3, 0.7, 0.8, 1.0]).expand(2, 1, 1, 6)
    out = quantization(values, torch.tensor([3.0, 4.0]))
    assert out[0].flatten().tolist() == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    torch.testing.assert_close(out[1].flatten(), torch.tensor([0.0, 1, 1, 2, 2, 3]) / 3)
    assert len(corrupt(picture(), "quantization", 1).unique()) <= 8


def test_pixelate_by_hand() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4).div(16).expand(1, 3, 4, 4)
    expected = torch.tensor([[2.5, 4.5], [10.5, 12.5]]).div(16)
    expected = expected.repeat_interleave(2, 0).repeat_interleave(2, 1)
    torch.testing.assert_close(pixelate(images, 0.5)[0, 0], expected)


def test_border_by_hand() -> None:
    out = border(torch.zeros(1, 3, 4, 5), torch.ones(1))
    assert out[0, 0].tolist() == [
        [0.5] * 5,
        [0.5, 0, 0, 0, 0.5],
        [0.5, 0, 0, 0, 0.5],
        [0.5] * 5,
    ]
    widths = border(torch.zeros(3, 3, 4, 4), torch.tensor([2.0, 3.0, 1.0]))
    assert (widths == 0.5).flatten(1).sum(1).tolist() == [48, 48, 36]


def test_translation_by_hand() -> None:
    images = picture(40) * 0.5 + 0.25
    shift = info("translation").parameters(32)[2]["shift_px"]
    seen = set()
    for image, out in zip(images, corrupt(images, "translation", 3), strict=True):
        for sy in (-1, 1):
            for sx in (-1, 1):
                expected = torch.roll(image, (sy * shift, sx * shift), (1, 2))
                expected[:, slice(0, shift) if sy > 0 else slice(-shift, None)] = 0
                expected[:, :, slice(0, shift) if sx > 0 else slice(-shift, None)] = 0
                if torch.equal(out, expected):
                    seen.add((sy, sx))
                    break
            else:
                continue
            break
        else:
            pytest.fail("not a translation")
    assert len(seen) == 4


def test_obstruction_is_one_grey_square() -> None:
    images = torch.zeros(30, 3, 40, 60)
    side = info("obstruction").parameters(40)[1]["side_px"]
    covered = corrupt(images, "obstruction", 2)[:, 0] == 0.5
    assert (covered.sum((1, 2)) == side * side).all()
    assert (covered.any(2).sum(1) == side).all()
    assert covered.any(2)[:, 0].float().mean() < 0.5


def test_rotation_keeps_the_centre_and_shows_black_corners() -> None:
    images = torch.ones(8, 3, 33, 33)
    out = corrupt(images, "rotation", 5)
    torch.testing.assert_close(out[:, :, 12:21, 12:21], images[:, :, 12:21, 12:21])
    assert (out[:, :, 0, 0] == 0).all()


def test_impulse_noise_counts() -> None:
    images = torch.full((50, 3, 32, 32), 0.5)
    out = corrupt(images, "impulse_noise", 5)
    for extreme in (0.0, 1.0):
        assert abs((out == extreme).float().mean() - 0.035) < 0.003
    assert set(out.unique().tolist()) == {0.0, 0.5, 1.0}


def test_salt_pepper_takes_the_amount_of_each_image() -> None:
    images = torch.full((2, 3, 200, 200), 0.5)
    stream = Stream(0, torch.arange(2), "salt_pepper")
    out = salt_pepper(images, stream, torch.tensor([0.01, 0.2])).clamp(0, 1)  # as its caller does
    for image, p in zip(out, (0.01, 0.2), strict=True):
        tolerance = 5 * math.sqrt(p / image.numel())
        for extreme in (0.0, 1.0):
            assert (image == extreme).float().mean().item() == pytest.approx(p / 2, abs=tolerance)


def test_gaussian_only_brightens_by_a_half_normal() -> None:
    """E|z| = sqrt(2 / pi), and P(|z| < 1) = 0.6827."""
    images = torch.full((4, 3, 100, 100), 0.1)
    for severity, sigma in ((1, 0.05), (5, 0.18)):
        noise = corrupt(images, "gaussian", severity) - images
        assert noise.min() >= 0
        assert noise.mean().item() == pytest.approx(sigma * math.sqrt(2 / math.pi), rel=0.01)
        assert (noise < sigma).float().mean().item() == pytest.approx(0.6827, abs=0.01)


def test_gaussian_noise_has_its_sigma() -> None:
    images = torch.full((30, 3, 32, 32), 0.5)
    assert abs(corrupt(images, "gaussian_noise", 3).std() - 0.08) < 0.001


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.7, 3.0, 9.9, 10.1, 30.0, 500.0])
def test_poisson_distribution(rate: float) -> None:
    counts = poisson(torch.full((50, 4000), rate), Stream(0, torch.arange(50), "poisson"))
    n = counts.numel()
    assert torch.equal(counts, counts.round())
    assert counts.min() >= 0
    assert abs(counts.mean() - rate) <= 5 * math.sqrt(rate / n) + 1e-3 * (rate > 0)
    assert abs(counts.double().var() - rate) <= 5 * math.sqrt((2 * rate**2 + rate) / n) + 1e-6
    k = torch.arange(int(rate + 12 * math.sqrt(rate) + 3), dtype=torch.float64)
    exact = torch.exp(torch.special.xlogy(k, torch.tensor(rate)) - rate - torch.lgamma(k + 1))
    seen = torch.bincount(counts.flatten().long(), minlength=len(k)).double() / n
    bound = 4 * torch.sqrt(exact / n) + 1e-3 * exact + 2e-5
    assert ((seen - exact).abs() <= bound).all()


def test_blurs_keep_constants_and_mean() -> None:
    flat = torch.full((2, 3, 40, 24), 0.3)
    for name in ("gaussian_blur", "motion_blur", "zoom_blur", "defocus_blur"):
        torch.testing.assert_close(corrupt(flat, name, 3), flat)


def test_gaussian_blur_spreads_a_point() -> None:
    point = torch.zeros(1, 3, 31, 31)
    point[:, :, 15, 15] = 1
    out = corrupt(point, "gaussian_blur", 5)[0, 0]  # sigma 1
    weights = torch.exp(-(torch.arange(-4.0, 5.0) ** 2) / 2)
    weights /= weights.sum()
    torch.testing.assert_close(out[11:20, 11:20], torch.outer(weights, weights))
    assert out.sum().item() == pytest.approx(1, abs=1e-5)


def test_disc_kernels_have_the_published_sums() -> None:
    sums = [sum(map(sum, disc_kernel(radius, 0.5))) for radius in (4, 6, 8, 10)]
    assert sums == pytest.approx([1, 1, 1.013, 1.011], abs=6e-4)


def test_motion_blur_is_one_sided() -> None:
    point = torch.zeros(2, 1, 21, 21)
    point[:, :, 10, 10] = 1
    out = motion_filter(point, 2, 1.5, torch.tensor([0.0, -90.0]))
    weights = torch.exp(-(torch.arange(5.0) ** 2) / 4.5)
    weights /= weights.sum()
    torch.testing.assert_close(out[0, 0, 10, 6:11], weights.flip(0))
    torch.testing.assert_close(out[1, 0, 10:15, 10], weights)
    assert out.sum().item() == pytest.approx(2, abs=1e-5)


def test_rain_whitens_by_half() -> None:
    out = corrupt(torch.zeros(4, 3, 224, 224), "rain", 5)
    assert out.max() == 0.5
    assert 0.02 < (out == 0.5).float().mean() < 0.2
    assert torch.equal(corrupt(torch.ones(1, 3, 32, 32), "rain"), torch.ones(1, 3, 32, 32))


def test_stamp_by_hand() -> None:
    centre = torch.tensor([[2.0]]), torch.tensor([[2.0]])
    one = torch.ones(1)
    mask = stamp((5, 5), *centre, one, disc(1.0), 1.0)[0, 0]
    assert mask[2].tolist() == [0, 0.5, 1, 0.5, 0]
    assert mask[0, 0] == 0
    mask = stamp((5, 5), *centre, one, rhombus(2.0), 2.0)[0, 0]
    assert mask[2].tolist() == [0.5, 1, 1, 1, 0.5]
    assert mask[1, 1] == 0.5
    mask = stamp((5, 5), *centre, one, dash(0.25, 2.0), 2.0)[0, 0]  # half a pixel wide
    assert mask[:, 2].tolist() == [0.5] * 5
    assert mask.sum() == 2.5
    outside = stamp((5, 5), torch.tensor([[-3.0]]), torch.tensor([[9.0]]), one, disc(1.0), 1.0)
    assert (outside == 0).all()


def test_stamp_draws_as_many_as_asked() -> None:
    x = torch.tensor([[2.0, 7.0, 12.0]]).expand(4, 3)
    counts = torch.tensor([0.0, 1.0, 2.0, 3.0])
    mask = stamp((5, 15), x, torch.full((4, 3), 2.0), counts, disc(1.0), 1.0)
    assert (mask == 1).flatten(1).sum(1).tolist() == [0, 1, 2, 3]


def test_elastic_keeps_flat_and_moves_edges() -> None:
    flat = torch.full((4, 3, 32, 32), 0.7)
    for severity in SEVERITIES:
        torch.testing.assert_close(corrupt(flat, "elastic_transform", severity), flat)


def test_glass_blur_swaps_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 20, 24, generator=generator)
    stream = Stream(0, torch.arange(6), "glass")
    for d, iterations in ((1, 1), (2, 3)):
        out = glass_blur(images, stream, 0.05, d, iterations, swap=True)
        # A permutation: every colour survives, which duplication wouldn't give.
        assert torch.equal(out.flatten(2).sort().values, images.flatten(2).sort().values)
        moved = (out != images).any(1)
        assert moved.float().mean() > 0.5
        assert not moved[:, 0].any()
        assert not moved[:, :, 0].any()


def test_jpeg_of_flat_and_smooth_images() -> None:
    levels = torch.tensor([0, 37, 128, 200, 255]) / 255
    grey = levels.view(5, 1, 1, 1).expand(5, 3, 24, 20)
    torch.testing.assert_close(jpeg_compression(grey, 80), grey, rtol=0, atol=1.01 / 255)
    images = picture(4, 48, 40)
    errors = [(jpeg_compression(images, q) - images).abs().mean().item() for q in (95, 50, 10)]
    assert errors == sorted(errors)
    assert errors[0] < 0.01
    out = jpeg_compression(images, 50) * 255
    torch.testing.assert_close(out, out.round(), rtol=0, atol=1e-4)


def test_jpeg_keeps_brightness_and_blurs_colour() -> None:
    stripes = torch.zeros(1, 3, 16, 16)
    stripes[:, 0, :, ::2] = 0.4
    stripes[:, 2, :, 1::2] = 0.4
    stripes += 0.3  # far enough from 0 and 1 that nothing is clipped
    out = jpeg_compression(stripes, 95)
    assert abs(luma(out).mean() - luma(stripes).mean()) < 0.01
    columns = out[0, :, 8, 8:10]
    assert (columns[0, 0] - columns[0, 1]).abs() < 0.25  # 0.4 before: chroma is shared


def test_border_modes() -> None:
    assert border_index(3, 2, 2, "edge") == [0, 0, 0, 1, 2, 2, 2]
    assert border_index(3, 2, 2, "mirror") == [2, 1, 0, 1, 2, 1, 0]
    assert border_index(3, 2, 2, "symmetric") == [1, 0, 0, 1, 2, 2, 1]
    x = torch.rand(1, 3, 4, 4)
    by_index = x[..., border_index(4, 2, 3, "mirror"), :][..., border_index(4, 3, 1, "mirror")]
    assert torch.equal(pad(x, (2, 3), (3, 1), "mirror"), by_index)
    assert pad(x, (6, 6), (9, 9), "mirror").shape == (1, 3, 16, 22)

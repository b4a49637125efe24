from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from robustlib.core.randomness import Stream
from robustlib.corruptions import corrupt, info
from robustlib.corruptions.textures import frost_pictures, plasma
from robustlib.corruptions.weather import _distance, _edges, _equalise

Colour = tuple[int, int, int]


def picture(n: int = 8, h: int = 32, w: int = 32) -> Tensor:
    coarse = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(h, w), mode="bilinear")


# Fog


def test_plasma_spans_the_unit_interval() -> None:
    maps = plasma(Stream(0, torch.arange(20), "plasma"), 64, 2.0)
    assert (maps.amin((1, 2)) == 0).all()
    assert (maps.amax((1, 2)) == 1).all()
    neighbours = (maps - maps.roll(1, 2)).abs().mean()  # cloudy, and closed like a torus
    assert neighbours < 0.06
    edge = (maps[:, :, 0] - maps[:, :, -1]).abs().mean()
    assert edge < 2 * neighbours


def test_plasma_by_hand() -> None:
    """2 x 2 from a point at 0: centre c = u0, sides a = c / 2 + u1 and b = c / 2 + u2."""
    u = Stream(0, torch.arange(3), "plasma").uniform((3,), -1, 1)
    expected = torch.stack((torch.zeros(3), u[:, 0] / 2 + u[:, 1], u[:, 0] / 2 + u[:, 2], u[:, 0]))
    expected = (expected - expected.amin(0)) / (expected.amax(0) - expected.amin(0))
    maps = plasma(Stream(0, torch.arange(3), "plasma"), 2, 2.0)
    torch.testing.assert_close(maps.flatten(1).T, expected)


def test_fog_by_hand() -> None:
    black = torch.zeros(2, 3, 32, 32)
    assert (corrupt(black, "fog", 5) == 0).all()
    white = corrupt(torch.ones(2, 3, 32, 32), "fog", 4)  # (1 + p) / 2
    assert white.min().item() == pytest.approx(0.5)
    assert white.max().item() == pytest.approx(1.0)


# Snow


def test_snow_whitens_and_falls_on_black() -> None:
    images = picture()
    for severity in (1, 5):
        assert (corrupt(images, "snow", severity) >= images - 1e-6).all()
    # Whitened black is 0.5, blended by 1 - 0.95; streaks come on top, the same upside down.
    out = corrupt(torch.zeros(4, 3, 32, 32), "snow", 1)
    assert out.min() >= 0.025 - 1e-6
    assert out.max() > 0.1
    torch.testing.assert_close(out, out.flip(2, 3))


# Spatter


def test_spatter_water_lightens_and_mud_hides() -> None:
    images = picture()
    for severity in (1, 2, 3):
        assert (corrupt(images, "spatter", severity) >= images).all()
    mud = corrupt(images, "spatter", 5)
    assert mud.mean() < images.mean()
    brown = torch.tensor([63.0, 42.0, 20.0]).view(1, 3, 1, 1) / 255
    assert ((mud - brown).abs().amax(1) < 0.01).float().mean() > 0.001


def test_distance_by_hand() -> None:
    edges = torch.zeros(1, 1, 6, 30, dtype=torch.int16)
    edges[0, 0, 1, 2] = 1
    y, x = torch.meshgrid(torch.arange(6), torch.arange(30), indexing="ij")
    expected = ((y - 1.0) ** 2 + (x - 2.0) ** 2).sqrt().clamp_max(20)
    torch.testing.assert_close(_distance(edges)[0, 0], expected)
    assert (_distance(torch.zeros_like(edges)) == 20).all()


@pytest.mark.parametrize("size", [(40, 60), (60, 3), (1, 50)])
def test_distance_of_many_edges(size: tuple[int, int]) -> None:
    edges = torch.rand(3, 1, *size, generator=torch.Generator().manual_seed(1)) > 0.985
    for image, found in zip(edges, _distance(edges.to(torch.int16)), strict=True):
        places = torch.cartesian_prod(torch.arange(size[0]), torch.arange(size[1])).float()
        apart = torch.cdist(places, image[0].nonzero().float().view(-1, 2))
        far = torch.full((len(places), 1), 20.0)
        expected = torch.cat((apart, far), 1).amin(1).view(size)
        torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-3)


def test_equalise_by_hand() -> None:
    levels = torch.tensor([3, 3, 5, 5, 7, 7, 7, 9]).view(1, 1, 2, 4)
    expected = [0, 0, 85, 85, 212, 212, 212, 255]  # (0, 2, 5, 6) / 6 * 255
    assert _equalise(levels).flatten().tolist() == expected
    assert (_equalise(torch.full((1, 1, 2, 2), 20)) == 20).all()


def test_edges_follow_a_square() -> None:
    grey = torch.zeros(1, 1, 16, 16)
    grey[..., 5:11, 5:11] = 200
    edges = _edges(grey, 50, 150)[0, 0]
    for axis in (0, 1):
        hit = edges.sum(axis).nonzero()
        assert (hit.min() in (4, 5), hit.max() in (10, 11)) == (True, True)
    assert not edges[7:9, 7:9].any()
    assert not edges[:3].any()
    assert not _edges(torch.full((1, 1, 8, 8), 90.0), 50, 150).any()


def test_weak_edges_count_where_joined_to_strong_ones() -> None:
    """A step that fades to the right: its edge goes on below the strong threshold."""
    step = torch.linspace(60, 10, 40).round()
    grey = torch.zeros(1, 1, 12, 40)
    grey[..., 6:, :] = step
    edges = _edges(grey, 50, 150)[0, 0].sum(0)
    assert (edges[1:-1] > 0).sum() > (4 * step > 150).sum() + 10
    grey[..., 6:, :] = 30  # 120 at most: weak everywhere
    assert not _edges(grey, 50, 150).any()
    assert _edges(grey, 50, 119).any()


# Frost


def save(folder: Path, name: str, colour: Colour, size: tuple[int, int] = (50, 40)) -> None:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", size, colour).save(folder / name)


def test_frost_pictures() -> None:
    pictures = frost_pictures().float() / 255
    assert torch.equal(frost_pictures(), frost_pictures())
    red, _, blue = pictures.mean((0, 2, 3))
    assert 0.5 < red < blue < 0.7
    assert (pictures.std((2, 3)) > 0.09).all()
    grey = pictures.mean(1)
    assert (grey[:, 1:] - grey[:, :-1]).abs().mean() > 0.02  # ice, not only clouds
    crops = corrupt(torch.zeros(20, 3, 32, 32), "frost", 3)
    assert len({crop.sum().item() for crop in crops}) == 20


@pytest.mark.parametrize(("side", "severity"), [(32, 3), (64, 2), (224, 5)])
def test_frost_of_a_constant_photograph_by_hand(tmp_path: Path, side: int, severity: int) -> None:
    save(tmp_path, "one.png", (255, 51, 102), size=(300, 250))
    images = picture(2, side, side + 3)
    row = info("frost").parameters(side)[severity - 1]
    assert row["photograph_scale"] == {32: 0.2, 64: 0.3, 224: 1}[side]
    f = torch.tensor([1.0, 0.2, 0.4]).view(3, 1, 1)
    expected = (row["image_weight"] * images + row["frost_weight"] * f).clamp(0, 1)
    out = corrupt(images, "frost", severity, photographs=tmp_path)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
    assert torch.equal(out, corrupt(images, "frost", severity, photographs=str(tmp_path)))


def test_frost_crops_photographs(tmp_path: Path) -> None:
    """Full size at 224 px, 0.2 of it at 32 px; every place and every photograph comes up."""
    ramp = torch.arange(240, dtype=torch.uint8).view(1, 240, 1).expand(232, 240, 3)
    Image.fromarray(ramp.numpy()).save(tmp_path / "a.png")
    black = torch.zeros(64, 3, 224, 224)
    out = corrupt(black, "frost", 1, photographs=tmp_path) / 0.4 * 255
    steps = out[..., 1:] - out[..., :-1]
    torch.testing.assert_close(steps, torch.ones_like(steps), rtol=0, atol=1e-3)
    first = out[:, 0, 0, 0].round().long()
    assert (first.min(), first.max()) == (0, 15)  # of 0 .. 16; the last is never drawn
    save(tmp_path, "b.jpg", (255, 255, 255), size=(300, 300))
    small = corrupt(black[..., :32, :32], "frost", 1, photographs=tmp_path) / 0.2 * 255
    white = small.flatten(1).amin(1) > 254
    assert 16 < white.sum() < 48
    steps = small[~white][..., 1:] - small[~white][..., :-1]
    torch.testing.assert_close(steps, torch.full_like(steps, 5), rtol=0, atol=1.01)


def test_frost_enlarges_small_photographs(tmp_path: Path) -> None:
    save(tmp_path, "small.png", (0, 0, 255), size=(7, 400))
    for size in ((16, 16), (33, 16), (100, 61), (1, 1)):
        out = corrupt(torch.zeros(3, 3, *size), "frost", 1, photographs=tmp_path)
        assert (out[:, :2] == 0).all()
        assert (out[:, 2] > 0.1).all()


def test_frost_from_photographs_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    noise = torch.randint(0, 256, (3, 90, 80, 3), generator=torch.Generator().manual_seed(2))
    for i, pixels in enumerate(noise.to(torch.uint8)):
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{i}.png")
    images, ids = picture(), torch.arange(8) + 70
    for shown in (images, picture(8, 48, 70)):
        out = corrupt(shown, "frost", 4, 5, ids, photographs=tmp_path)
        parts = [
            corrupt(part, "frost", 4, 5, part_ids, photographs=tmp_path)
            for part, part_ids in zip(shown.split([1, 4, 3]), ids.split([1, 4, 3]), strict=True)
        ]
        assert torch.equal(torch.cat(parts), out)
        assert not torch.equal(out, corrupt(shown, "frost", 4, 6, ids, photographs=tmp_path))
    drawn = corrupt(images, "frost", "random", photographs=tmp_path)
    assert drawn.shape == images.shape


PUBLISHED = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg", "frost6.jpg")


def published_folder(folder: Path) -> Path:
    """The six files, grey of 40, 80, ... 240, beside what is no photograph of frost."""
    for i, name in enumerate(PUBLISHED, start=1):
        save(folder, name, (40 * i,) * 3)
    save(folder, "another.png", (255, 255, 255))
    (folder / "__init__.py").touch()
    return folder


def test_frost_of_the_published_photographs_leaves_out_the_sixth(tmp_path: Path) -> None:
    black = torch.zeros(500, 3, 8, 8)
    out = corrupt(black, "frost", 5, photographs=published_folder(tmp_path))
    levels = (out[:, 0, 0, 0] / 0.45 * 255).round().long()
    counts = torch.bincount(levels, minlength=256)
    assert counts.nonzero().flatten().tolist() == [40, 80, 120, 160, 200]
    assert (counts[40:201:40] > 60).all()
    (tmp_path / "frost6.jpg").unlink()
    assert torch.equal(corrupt(black, "frost", 5, photographs=tmp_path), out)
    (tmp_path / "frost3.png").unlink()
    (tmp_path / "frost5.jpg").unlink()
    with pytest.raises(ValueError, match=r"lacks frost3\.png, frost5\.jpg"):
        corrupt(black, "frost", 5, photographs=tmp_path)


@pytest.mark.parametrize(("side", "severity", "scale"), [(32, 4, 0.2), (64, 3, 0.3), (120, 5, 1.0)])
def test_frost_is_that_of_imagenet_c(
    tmp_path: Path, side: int, severity: int, scale: float
) -> None:
    """A plain NumPy version, tried at every place, finds the crop of each image."""
    generator = np.random.default_rng(0)
    photograph = generator.integers(0, 256, (side + 3, side + 8, 3)).repeat(math.ceil(1 / scale), 0)
    photograph = photograph.repeat(math.ceil(1 / scale), 1)[: -1 if scale == 0.2 else None]
    Image.fromarray(photograph.astype(np.uint8)).save(tmp_path / "a.png")

    def resized(pixels: np.ndarray) -> np.ndarray:
        """The first axis, bilinear between the pixels at (i + 1/2) / scale - 1/2."""
        places = (np.arange(round(len(pixels) * scale)) + 0.5) / scale - 0.5
        places = places.clip(0, len(pixels) - 1)
        near = np.floor(places).astype(int)
        far = np.minimum(near + 1, len(pixels) - 1)
        weight = (places - near)[:, None, None]
        return pixels[near] * (1 - weight) + pixels[far] * weight

    frost = resized(resized(photograph).swapaxes(0, 1)).swapaxes(0, 1)
    row = info("frost").parameters(side)[severity - 1]
    images = picture(6, side, side)
    seen = set()
    for image, out in zip(
        images, corrupt(images, "frost", severity, photographs=tmp_path), strict=True
    ):
        fits = []
        for top in range(frost.shape[0] - side):
            for left in range(frost.shape[1] - side):
                crop = frost[top : top + side, left : left + side]
                expected = row["image_weight"] * image.permute(1, 2, 0).numpy() * 255
                expected = np.clip(expected + row["frost_weight"] * crop, 0, 255)
                if np.abs(out.permute(1, 2, 0).numpy() * 255 - expected).max() < 0.5:
                    fits.append((top, left))
        assert len(fits) == 1
        seen.update(fits)
    assert len(seen) > 2


def test_frost_notices_a_changed_folder(tmp_path: Path) -> None:
    black = torch.zeros(4, 3, 32, 32)
    save(tmp_path, "a.png", (0, 0, 0))
    assert (corrupt(black, "frost", photographs=tmp_path) == 0).all()
    save(tmp_path, "a.png", (255, 255, 255), size=(60, 60))
    assert (corrupt(black, "frost", photographs=tmp_path) > 0.3).all()
    other = tmp_path / "other.bmp"
    Image.new("RGB", (60, 60)).save(other, "PNG")
    size, times = (tmp_path / "a.png").stat().st_size, (1, 1)
    other.write_bytes(other.read_bytes().ljust(size, b"\0"))
    os.utime(tmp_path / "a.png", times)
    corrupt(black, "frost", photographs=tmp_path)
    os.utime(other, times)
    other.replace(tmp_path / "a.png")  # of the same size and age
    assert (corrupt(black, "frost", photographs=tmp_path) == 0).all()


def test_frost_errors(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    for folder, found in ((tmp_path, "holds none"), (tmp_path / "no", "is not a folder")):
        with pytest.raises(ValueError, match=f"ImageNet-C's frost, .png or .jpg; .* {found}"):
            corrupt(picture(), "frost", photographs=folder)
    with pytest.raises(ValueError, match="photograph"):
        corrupt(picture(), "frost", photograph=tmp_path)
    with pytest.raises(ValueError, match="photographs must be a path"):
        corrupt(picture(), "frost", photographs=3)
    assert torch.equal(corrupt(picture(), "frost", photographs=None), corrupt(picture(), "frost"))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_frost_refuses_photographs_that_are_broken(tmp_path: Path, suffix: str) -> None:
    noise = torch.randint(0, 256, (90, 80, 3), generator=torch.Generator().manual_seed(2))
    path = tmp_path / f"a{suffix}"
    Image.fromarray(noise.to(torch.uint8).numpy()).save(path)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"version https://git-lfs.github.com/spec/v1"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=f"photograph .*a{suffix} can't be read"):
            corrupt(picture(), "frost", photographs=tmp_path)


def test_frost_reads_photographs_of_every_kind(tmp_path: Path) -> None:
    black = torch.zeros(2, 3, 8, 8)
    Image.new("L", (60, 50), 100).save(tmp_path / "a.png")
    grey = corrupt(black, "frost", photographs=tmp_path)
    for mode, colour in (("RGB", (100, 100, 100)), ("RGBA", (100, 100, 100, 0)), ("P", 0)):
        image = Image.new(mode, (60, 50), colour)
        if mode == "P":
            image.putpalette([100, 100, 100])
        image.save(tmp_path / "a.png")
        assert torch.equal(corrupt(black, "frost", photographs=tmp_path), grey)
    Image.new("I;16", (60, 50), 25700).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="more than 8 bits"):
        corrupt(black, "frost", photographs=tmp_path)

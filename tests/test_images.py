"""Image files of every kind: the right pixels, or an error that names file and reason."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image, ImageCms

from robustlib.data import DataError, images, read_image

HEIGHT, WIDTH = 32, 48


def picture() -> np.ndarray:
    """uint8 (32, 48, 3): two ramps, a chequered third channel, and a mark that isn't symmetric."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = [x * 255 // (WIDTH - 1), y * 255 // (HEIGHT - 1), (x // 8 + y // 8) % 2 * 200]
    rgb = np.stack(pixels, -1).astype(np.uint8)
    rgb[3:9, 4:7] = rgb[3:5, 4:12] = 255
    return rgb


RGB = picture()
GREY = np.asarray(Image.fromarray(RGB).convert("L"))
AS_GREY = np.repeat(GREY[..., None], 3, axis=2)
DEEP = GREY.astype(np.uint16) * 257
ALPHA = np.broadcast_to(np.linspace(0, 255, WIDTH).round().astype(np.uint8), (HEIGHT, WIDTH))
RGBA, LA = np.dstack([RGB, ALPHA]), np.dstack([GREY, ALPHA])
PALETTE = Image.fromarray(RGB).quantize(64)
KEY = PALETTE.getpixel((20, 20))
FLIPPED = Image.fromarray(RGB[::-1].copy())
FLOAT = GREY / np.float32(255)


def on_white(pixels: np.ndarray) -> np.ndarray:
    cover = ALPHA[..., None] / 255
    return pixels * cover + 255 * (1 - cover)


def saved(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def png(bits: int, kind: int, rows: np.ndarray, key: tuple[int, ...] = (), size=None) -> bytes:
    """A PNG file, of which Pillow can't write all kinds. rows: (H, W[, channels])."""
    rows = rows.astype(">u2" if bits == 16 else np.uint8)
    width, height = size or rows.shape[1::-1]
    content = b"".join(b"\0" + row.tobytes() for row in rows)
    transparent = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
        + transparent
        + chunk(b"IDAT", zlib.compress(content))
        + chunk(b"IEND", b"")
    )


def tiff(
    content: bytes,
    bits: int,
    white_is_zero: bool = False,
    sample_format: int = 1,
    channels: int = 1,
    order: str = "<",
) -> bytes:
    """An uncompressed TIFF file. sample_format: 1 unsigned, 2 signed, 3 float."""
    size, photometric = len(content), 2 if channels == 3 else 0 if white_is_zero else 1
    entries = [(256, 4, 1, WIDTH), (257, 4, 1, HEIGHT), (258, 4, channels, bits), (259, 4, 1, 1)]
    entries += [(262, 4, 1, photometric), (273, 4, 1, 8), (277, 4, 1, channels)]
    entries += [(278, 4, 1, HEIGHT), (279, 4, 1, size), (339, 4, 1, sample_format)]
    if channels > 1:  # the number of bits stands apart, after the content
        entries[2] = (258, 4, channels, 8 + size)
        content += struct.pack(f"{order}{channels}I", *[bits] * channels)
    directory = b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(content))
    return head + content + struct.pack(f"{order}H", len(entries)) + directory + bytes(4)


def packed_12_bits() -> bytes:
    levels = np.rint(GREY / 255 * 4095).astype(np.uint16).reshape(-1, 2)
    first, second = levels.T
    parts = [first >> 4, (first & 15) << 4 | second >> 8, second & 255]
    return np.stack(parts, -1).astype(np.uint8).tobytes()


def keyed(pixels: np.ndarray, away: np.ndarray) -> np.ndarray:
    return np.where(away[..., None], 255, pixels)


AT_KEY = tuple(int(value) for value in RGB[20, 20])
IS_KEY = (RGB[20, 20] == RGB).all(-1)
FROM_PALETTE = np.asarray(PALETTE.convert("RGB"))
WITHOUT_KEY = keyed(FROM_PALETTE, np.asarray(PALETTE) == KEY)
BLACK_OR_WHITE = Image.fromarray(RGB).convert("1")
TWO_LEVELS = np.asarray(BLACK_OR_WHITE.convert("RGB"))
EXACT = {"quality": 100, "subsampling": "4:4:4"}

READ = {
    "16 bit grey.png": (png(16, 0, DEEP), AS_GREY, 0),
    "16 bit colour.png": (png(16, 2, RGB.astype(np.uint16) * 257), RGB, 0),
    "16 bit grey and alpha.png": (png(16, 4, LA.astype(np.uint16) * 257), on_white(AS_GREY), 1),
    "16 bit colour and alpha.png": (png(16, 6, RGBA.astype(np.uint16) * 257), on_white(RGB), 1),
    "16 bit grey, a value away.png": (
        png(16, 0, DEEP, (int(DEEP[20, 20]),)),
        keyed(AS_GREY, GREY[20, 20] == GREY),
        0,
    ),
    "16 bit colour, one away.png": (
        png(16, 2, RGB.astype(np.uint16) * 257, tuple(v * 257 for v in AT_KEY)),
        keyed(RGB, IS_KEY),
        0,
    ),
    "colour, one away.png": (png(8, 2, RGB, AT_KEY), keyed(RGB, IS_KEY), 0),
    "16 bit.tif": (saved(DEEP, "TIFF"), AS_GREY, 0),
    "16 bit, compressed.tif": (saved(DEEP, "TIFF", compression="tiff_lzw"), AS_GREY, 0),
    "16 bit, other byte order.tif": (
        tiff(DEEP.astype(">u2").tobytes(), 16, order=">"),
        AS_GREY,
        0,
    ),
    "16 bit colour.tif": (
        tiff((RGB.astype("<u2") * 257).tobytes(), 16, channels=3),
        RGB,
        0,
    ),
    "16 bit colour, other byte order.tif": (
        tiff((RGB.astype(">u2") * 257).astype(">u2").tobytes(), 16, channels=3, order=">"),
        RGB,
        0,
    ),
    "16 bit, white is zero.tif": (tiff((65535 - DEEP).tobytes(), 16, True), AS_GREY, 0),
    "8 bit, white is zero.tif": (tiff((255 - GREY).tobytes(), 8, True), AS_GREY, 0),
    "12 bit.tif": (tiff(packed_12_bits(), 12), AS_GREY, 0),
    "16 bit.pgm": (saved(DEEP, "PPM"), AS_GREY, 0),
    "up to 1000.pgm": (
        b"P5 48 32 1000\n" + np.rint(GREY / 255 * 1000).astype(">u2").tobytes(),
        AS_GREY,
        0,
    ),
    "16 bit.ppm": (b"P6 48 32 65535\n" + (RGB.astype(">u2") * 257).tobytes(), RGB, 0),
    "16 bit.jp2": (saved(DEEP, "JPEG2000", irreversible=False), AS_GREY, 0),
    "float.tif": (saved(FLOAT, "TIFF"), AS_GREY, 0),
    "float, white is zero.tif": (tiff((1 - FLOAT).tobytes(), 32, True, 3), AS_GREY, 0),
    "float.pfm": (saved(FLOAT, "PPM"), AS_GREY, 0),
    "alpha.png": (saved(RGBA, "PNG"), on_white(RGB), 1),
    "alpha.webp": (saved(RGBA, "WEBP", lossless=True, exact=True), on_white(RGB), 1),
    "alpha.tga": (saved(RGBA, "TGA"), on_white(RGB), 1),
    "alpha.avif": (saved(RGBA, "AVIF", **EXACT), on_white(RGB), 8),
    "grey and alpha.png": (saved(LA, "PNG"), on_white(AS_GREY), 1),
    "palette.png": (saved(PALETTE, "PNG"), FROM_PALETTE, 0),
    "palette, a colour away.png": (saved(PALETTE, "PNG", transparency=KEY), WITHOUT_KEY, 0),
    "palette, a colour away.gif": (saved(PALETTE, "GIF", transparency=KEY), WITHOUT_KEY, 0),
    "palette with alpha.png": (
        saved(PALETTE, "PNG", transparency=bytes(0 if i == KEY else 255 for i in range(64))),
        WITHOUT_KEY,
        0,
    ),
    "frames.gif": (
        saved(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(180)]),
        FROM_PALETTE,
        0,
    ),
    "frames.webp": (
        saved(RGB, "WEBP", save_all=True, append_images=[FLIPPED], lossless=True),
        RGB,
        0,
    ),
    "frames.apng": (saved(RGB, "PNG", save_all=True, append_images=[FLIPPED]), RGB, 0),
    "pages.tif": (saved(RGB, "TIFF", save_all=True, append_images=[FLIPPED]), RGB, 0),
    "black or white.png": (saved(BLACK_OR_WHITE, "PNG"), TWO_LEVELS, 0),
    "fax.tif": (saved(BLACK_OR_WHITE, "TIFF", compression="group4"), TWO_LEVELS, 0),
    "cmyk.tif": (saved(Image.fromarray(RGB).convert("CMYK"), "TIFF"), RGB, 1),
    "cmyk.jpg": (saved(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=100), RGB, 40),
    "ycbcr.tif": (saved(Image.fromarray(RGB).convert("YCbCr"), "TIFF"), RGB, 4),
    "colour.jfif": (saved(RGB, "JPEG", **EXACT), RGB, 8),
    "colour.avif": (saved(RGB, "AVIF", **EXACT), RGB, 8),
    "colour.jp2": (saved(RGB, "JPEG2000", irreversible=False), RGB, 0),
    "colour.bmp": (saved(RGB, "BMP"), RGB, 0),
    "colour.tga": (saved(RGB, "TGA"), RGB, 0),
    "colour.qoi": (saved(RGB, "QOI"), RGB, 0),
    "colour.sgi": (saved(RGB, "SGI"), RGB, 0),
    "colour.pcx": (saved(RGB, "PCX"), RGB, 0),
    "colour.dds": (saved(RGB, "DDS"), RGB, 0),
    "wrong ending.jpg": (saved(RGB, "PNG"), RGB, 0),
}


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize("name", READ)
def test_the_right_pixels(name, tmp_path) -> None:
    content, expected, tolerance = READ[name]
    assert images.is_image(name)
    found = read_image(written(tmp_path, name, content))
    assert found.dtype == np.uint8
    assert found.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(found - np.asarray(expected, dtype=float)).max() <= tolerance


def test_16_bits_are_rounded_to_8(tmp_path) -> None:
    levels = np.arange(65536).reshape(256, 256)
    found = read_image(written(tmp_path, "all.png", png(16, 0, levels)))[..., 0]
    np.testing.assert_array_equal(found, np.rint(levels / 257))
    colours = png(16, 2, np.repeat(levels[..., None], 3, axis=2))
    found = read_image(written(tmp_path, "colours.png", colours))[..., 0]
    assert np.abs(found - levels / 257).max() < 1, "Pillow takes the upper 8 bits of colours"


def test_lab_colours(tmp_path) -> None:
    rgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    smooth = Image.fromarray(RGB)
    converted = ImageCms.profileToProfile(smooth, rgb, lab, outputMode="LAB")
    found = read_image(written(tmp_path, "lab.tif", saved(converted, "TIFF")))
    assert np.abs(found - RGB.astype(float)).mean() < 5


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("u32.tif", tiff((DEEP.astype("<u4") * 65537).tobytes(), 32), "unknown range"),
        ("s16.tif", tiff((DEEP // 2).astype("<i2").tobytes(), 16, False, 2), "unknown range"),
        ("to255.tif", tiff(GREY.astype("<f4").tobytes(), 32, False, 3), "from 0 to 255, of which"),
        ("below.tif", tiff((FLOAT - 0.5).tobytes(), 32, False, 3), r"from -0\.5 to 0\.5"),
        ("nan.tif", tiff((FLOAT * np.nan).tobytes(), 32, False, 3), "from nan"),
        ("f64.tif", tiff(FLOAT.astype("<f8").tobytes(), 64, False, 3), "doesn't read"),
        ("clear.png", saved(np.dstack([RGB, ALPHA * 0]), "PNG"), "transparent all over"),
        ("none.png", png(8, 0, GREY, size=(0, 5)), "empty, damaged"),
        ("none.ppm", b"P6 0 5 255\n", "empty, damaged"),
        ("none.jpg", b"", "empty, damaged"),
        ("page.jpg", b"<html>404 Not Found</html>", "damaged, or in a format"),
        ("script.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "in a format"),
        ("bomb.png", png(8, 0, GREY, size=(60000, 60000)), "decompression bomb"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path, name, content, reason) -> None:
    with pytest.raises(DataError, match=rf"can't read the image .*{name} \(.*{reason}"):
        read_image(written(tmp_path, name, content))


@pytest.mark.parametrize("name", [name for name in READ if "frames" not in name])
def test_truncated_files_are_refused(name, tmp_path) -> None:
    content = READ[name][0]
    cut = len(content) // 3 if name == "pages.tif" else len(content) * 3 // 5
    with pytest.raises(DataError, match="can't read the image"):
        read_image(written(tmp_path, name, content[:cut]))


def test_a_folder_or_a_forbidden_file_is_named(tmp_path, monkeypatch) -> None:
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(DataError, match=r"folder\.jpg \(.*directory"):
        read_image(tmp_path / "folder.jpg")

    def forbidden(*_arguments, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", forbidden)
    with pytest.raises(DataError, match=r"a\.png \(.*Permission denied"):
        read_image(tmp_path / "a.png")


STORED_AS = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions


@pytest.mark.parametrize("orientation", STORED_AS)
@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("JPEG", {"quality": 100, "subsampling": 0}, 8),
        ("WEBP", {"lossless": True}, 0),
        ("TIFF", {}, 0),
        ("AVIF", EXACT, 8),
    ],
)
def test_orientation_is_applied_once(tmp_path, orientation, kind, options, tolerance) -> None:
    stored, exif = Image.fromarray(RGB), Image.Exif()
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(STORED_AS[orientation]))
    exif[274] = orientation
    path = written(tmp_path, "turned", saved(stored, kind, exif=exif, **options))
    found = read_image(path)
    assert found.shape == RGB.shape
    assert np.abs(found - RGB.astype(float)).max() <= tolerance
    cropped = read_image(path, 28)
    expected = torchvision.transforms.functional.resize(Image.fromarray(found), 32)
    expected = torchvision.transforms.functional.center_crop(expected, 28)
    np.testing.assert_array_equal(cropped, np.asarray(expected))


def test_deep_images_are_turned_too(tmp_path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    content = saved(Image.fromarray(np.rot90(DEEP).copy()), "PNG", exif=exif)
    np.testing.assert_array_equal(read_image(written(tmp_path, "a.png", content)), AS_GREY)


@pytest.mark.parametrize(
    "exif",
    [
        b"garbage",
        b"Exif\0\0garbage!!",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc" + bytes(5),
    ],
)
def test_damaged_exif_data_turn_nothing(tmp_path, exif) -> None:
    plain = read_image(written(tmp_path, "plain.jpg", saved(RGB, "JPEG")))
    found = read_image(written(tmp_path, "odd.jpg", saved(RGB, "JPEG", exif=exif)))
    np.testing.assert_array_equal(found, plain)


# --- Long images --------------------------------------------------------------------------------


@pytest.fixture
def resized(monkeypatch) -> list[int]:
    """How many pixels each resized image had."""
    counts = []
    resize = Image.Image.resize

    def counting(self, size, *arguments, **options):
        counts.append(size[0] * size[1])
        return resize(self, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", counting)
    return counts


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (3, 60000), (20, 30000)])
def test_a_long_image_takes_little_memory(tmp_path, resized, size) -> None:
    path = written(tmp_path, "long.png", saved(Image.new("RGB", size, "teal"), "PNG"))
    assert (read_image(path, 224) == (0, 128, 128)).all()
    (count,) = resized
    assert count < 4 * 256 * 256


@pytest.mark.parametrize("size", [(1, 300), (300, 7), (90, 2000), (2000, 90), (5, 300)])
def test_a_long_image_has_the_pixels_of_torchvision(tmp_path, size) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    found = read_image(written(tmp_path, "long.png", saved(noise, "PNG")), 28).astype(int)
    expected = torchvision.transforms.functional.resize(Image.fromarray(noise), 32)
    expected = torchvision.transforms.functional.center_crop(expected, 28)
    assert np.abs(found - np.asarray(expected)).max() <= 1, "positions are rounded otherwise"


@pytest.mark.parametrize("size", [(50, 400), (400, 50), (33, 47), (28, 100)])
def test_ordinary_images_have_exactly_the_pixels_of_torchvision(tmp_path, size) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    found = read_image(written(tmp_path, "image.png", saved(noise, "PNG")), 28)
    expected = torchvision.transforms.functional.resize(Image.fromarray(noise), 32)
    expected = torchvision.transforms.functional.center_crop(expected, 28)
    np.testing.assert_array_equal(found, np.asarray(expected))


# --- Folders ------------------------------------------------------------------------------------


def test_images_and_others_below_a_folder(tmp_path) -> None:
    for name in ("a.GIF", "deep/b.avif", "deep/c.heic", "deep/er.png/d.jfif", ".hidden/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found, others = images.images_below(tmp_path)
    assert sorted(found) == ["a.GIF", "deep/b.avif", "deep/er.png/d.jfif"]
    assert others == ["deep/c.heic"]
    (tmp_path / "empty.png").mkdir()
    assert sorted(images.images_below(tmp_path)[1]) == ["deep/c.heic", "empty.png"]
    assert sorted(images.images_below(tmp_path / "deep", "x")[0]) == ["x/b.avif", "x/er.png/d.jfif"]


def test_folders_that_lead_back_are_refused(tmp_path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "b" / "x.png").touch()
    assert sorted(images.images_below(tmp_path)[0]) == ["a/b/x.png", "c/b/x.png"], "a link, no loop"
    (tmp_path / "a" / "b" / "loop").symlink_to(tmp_path / "a")
    with pytest.raises(DataError, match="b/loop leads back to"):
        images.images_below(tmp_path)


def test_a_link_to_itself_is_refused(tmp_path) -> None:
    (tmp_path / "self").symlink_to(tmp_path / "self")
    with pytest.raises(DataError, match=r"can't list the folder .*self"):
        images.images_below(tmp_path)


def test_names_that_are_not_utf_8_are_shown(tmp_path) -> None:
    name = os.fsdecode(b"\xff.png")
    try:
        written(tmp_path, name, b"no image")
    except OSError:
        pytest.skip("this disk takes UTF-8 names only")
    with pytest.raises(DataError, match=r"\\xff\.png"):
        read_image(tmp_path / name)
    str(images.unreadable(tmp_path / name, ValueError("x"))).encode()

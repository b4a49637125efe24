"""One image file to RGB pixels: the right ones, or an error that names the file and the reason."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from robustlib.core.identity import digest_of_files

RESIZE_RATIO = 256 / 224
"""The shorter side is resized to this times the crop, torchvision's evaluation convention."""

_PICTURES = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM"),
    *("PSD", "QOI", "SGI", "TIFF", "WEBP", "XBM", "XPM", "TGA"),
)
_ENDINGS = Image.registered_extensions()  # loads Pillow's plugins, too
_FORMATS = tuple(name for name in _PICTURES if name in Image.OPEN)

ENDINGS = tuple(sorted(end for end, name in _ENDINGS.items() if name in (*_FORMATS, "MPO")))
"""Endings of the files that are read, as far as the installed Pillow can read them."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each orientation that EXIF knows."""

_LONG = 8  # times as long as wide: beyond it, only the part that the crop needs is resized
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262


class DataError(ValueError):
    """Data that can't be used. The message names the file or folder and says what to do."""


def decoding_threads() -> int:
    """Threads that decode at a time; PIL decodes without Python's lock."""
    return min(16, os.cpu_count() or 1)


def read_image(file: Path, image_size: int | None = None) -> np.ndarray:
    """The pixels of an image file, uint8 (H, W, 3), RGB, as a viewer shows them.

    The orientation in its EXIF data is applied, transparency is put on white, and of several
    frames the first is read. Of 16 bits the upper 8 count (grey: rounded); floating-point images
    must lie in [0, 1]. Colour profiles are left out, as torchvision does. On white, and the
    treatment of deep images, is this project's choice.

    image_size: None for the image's own height and width. A number gives squares of that side:
    an image of another size has its shorter side resized to `image_size` * 256 / 224 (bilinear,
    antialiased) and is cropped to its centre, with torchvision's pixels.

    Raises `DataError` that names a file that can't be read, or whose values can't be told.
    """
    try:
        with Image.open(file, formats=_FORMATS) as opened:
            opened.load()
            image = _upright(_as_rgb(opened), opened)
    except Exception as error:  # PIL raises many kinds; whichever, the file must be named
        raise unreadable(file, error) from error
    if image_size is not None and image.size != (image_size, image_size):
        image = _resize_and_crop(image, image_size)
    return np.asarray(image)


def unreadable(file: str | Path, error: Exception) -> DataError:
    """The error to raise for an image file that can't be read."""
    reason: object = error
    if isinstance(error, UnidentifiedImageError):
        reason = "empty, damaged, or in a format that Pillow doesn't read here"
    return DataError(f"can't read the image {shown(file)} ({reason}); replace it or remove it.")


def shown(name: str | Path) -> str:
    """A file's name for messages; bytes that aren't UTF-8 as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def digest_of_images(folder: Path, files: Iterable[str]) -> str:
    """A hash of names, sizes and times of files in `folder`; `DataError` if one isn't there."""
    try:
        return digest_of_files(folder, files)
    except OSError as error:  # a broken link, say
        raise unreadable(error.filename or folder, error) from error


def images_below(folder: Path, relative: str = "") -> tuple[list[str], list[str]]:
    """The images at any depth below `folder`, and the files that are none, each in any order.

    Names are relative to `folder`, after `relative`/ if that is given. Hidden files and folders
    are left out. Raises `DataError` for a folder that can't be listed or that leads back to
    itself.
    """
    return _walk(folder, f"{relative}/" if relative else "", ())


def _walk(folder: Path, prefix: str, above: Sequence[str]) -> tuple[list[str], list[str]]:
    images: list[str] = []
    others: list[str] = []
    real = os.path.realpath(folder)
    if real in above:
        raise DataError(f"{shown(folder)} leads back to {shown(real)}, without end; remove it.")
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    inner = _walk(folder / entry.name, f"{name}/", (*above, real))
                    images += inner[0]
                    others += inner[1]
                    if is_image(name) and not any(inner):
                        others.append(name)
                # What can't be found, such as a broken link, is an error when it is read.
                elif is_image(entry.name) and (entry.is_file() or not os.path.exists(entry.path)):
                    images.append(name)
                else:
                    others.append(name)
    except OSError as error:
        raise DataError(f"can't list the folder {shown(folder)} ({error}).") from error
    return images, others


def is_image(name: str) -> bool:
    """Whether a file of this name is read as an image."""
    return name.lower().endswith(ENDINGS)


def warn_of_others(others: Sequence[str | Path], stacklevel: int) -> None:
    """Warn of the files that were passed over, if any: how many, and which."""
    if others:
        names = ", ".join(sorted(map(shown, others))[:10]) + (", ..." if len(others) > 10 else "")
        warnings.warn(
            f"{len(others)} file(s) passed over, as no images that Pillow reads here or outside "
            f"the folders of classes: {names}. Convert or move them if they should count.",
            stacklevel=stacklevel + 1,
        )


def _upright(image: Image.Image, source: Image.Image) -> Image.Image:
    """`image`, turned as the EXIF data of its source say."""
    try:
        turn = _TURNS.get(source.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data, for which PIL raises many kinds
        return image
    return image if turn is None else image.transpose(turn)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _as_grey(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() == (0, 0):
            raise ValueError("it is transparent all over")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _as_grey(image: Image.Image) -> Image.Image:
    """8 bits of an image with one deeper channel, by the range that its format gives it."""
    values = np.asarray(image).astype(np.float64)
    tags = getattr(image, "tag_v2", {})  # those of TIFF
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):  # false for NaN, too
            raise ValueError(
                f"floating-point values from {values.min():g} to {values.max():g}, of which only "
                "those in [0, 1] have a known meaning; save it with 8 bits"
            )
        white = 1.0
    elif image.mode == "I" and image.format != "PPM":
        raise ValueError("whole numbers of unknown range; save it with 8 or 16 bits, unsigned")
    else:
        white = 2.0 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero
        values = white - values
    grey = Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))
    if "transparency" in image.info:
        opaque = np.asarray(image) != image.info["transparency"]
        grey.putalpha(Image.fromarray(opaque.astype(np.uint8) * np.uint8(255)))
    return grey


def _resize_and_crop(image: Image.Image, image_size: int) -> Image.Image:
    shorter = int(image_size * RESIZE_RATIO)
    width, height = image.size
    if width <= height:
        size = [shorter, max(shorter, int(shorter * height / width))]
    else:
        size = [max(shorter, int(shorter * width / height)), shorter]
    corner = [round((side - image_size) / 2) for side in size]
    box = [0.0, 0.0, float(width), float(height)]
    if max(size) > _LONG * shorter:
        long = 0 if width > height else 1
        scale = size[long] / image.size[long]
        margin = math.ceil(max(scale, 1)) + 1  # how far the filter looks
        start = max(0, corner[long] - margin)
        end = min(size[long], corner[long] + image_size + margin)
        box[long], box[long + 2] = start / scale, min(end / scale, image.size[long])
        size[long], corner[long] = end - start, corner[long] - start
    part = (box[0], box[1], box[2], box[3])
    resized = image.resize((size[0], size[1]), Image.Resampling.BILINEAR, part)
    left, top = corner
    return resized.crop((left, top, left + image_size, top + image_size))

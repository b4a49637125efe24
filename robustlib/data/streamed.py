"""Labelled images that stay in their files, for folders that memory can't hold."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustlib.core import tensorfile
from robustlib.data.base import DataError

RESIZE_RATIO = 256 / 224
"""The shorter side is resized to this times the crop, torchvision's evaluation convention."""


@dataclass(frozen=True)
class StreamedSplit:
    """Like `Split`, but decoded whenever images are asked for; the same pixels.

    folder, files  where the images lie: `files` are relative to `folder`
    labels         int64 (N,), in 0 .. classes - 1
    ids            int64 (N,), as in `Split`
    image_size     side of the images in pixels
    """

    folder: Path
    files: tuple[str, ...]
    labels: Tensor
    ids: Tensor
    image_size: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Tensor:
        """One image, uint8 (3, image_size, image_size); what the workers of a loader call."""
        pixels = read_image(self.folder / self.files[index], self.image_size)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def float_images(self, index: slice | Tensor = slice(None)) -> Tensor:
        """The images that `index` selects, as float32 (n, 3, H, W) in [0, 1]."""
        chosen = torch.arange(len(self))[index].tolist()
        if not chosen:
            return torch.empty(0, 3, self.image_size, self.image_size)
        with ThreadPoolExecutor(decoding_threads()) as pool:
            return torch.stack(list(pool.map(self.__getitem__, chosen))).to(torch.float32) / 255.0

    def first(self, n: int) -> StreamedSplit:
        """The first `n` images, or all if there are fewer; balanced over the classes."""
        files, labels, ids = self.files[:n], self.labels[:n], self.ids[:n]
        return StreamedSplit(self.folder, files, labels, ids, self.image_size)

    def digest(self) -> str:
        """SHA-256 (hex) of labels, ids, and the names, sizes and times of the files.

        Unlike that of `Split` it doesn't read the pixels, which would take as long as an epoch.
        Raises `DataError` if a file is gone.
        """
        hasher = hashlib.sha256(f"{self.image_size}".encode())
        hasher.update(tensorfile.digest({"labels": self.labels, "ids": self.ids}).encode())
        for file in self.files:
            size, time = stamp(self.folder / file)
            hasher.update(f"{file} {size} {time}\n".encode())
        return hasher.hexdigest()


def decoding_threads() -> int:
    """Threads that decode at a time; PIL decodes without Python's lock."""
    return min(16, os.cpu_count() or 1)


def stamp(file: Path) -> tuple[int, int]:
    """Size and time of change of a file; `DataError` if there is none, as for a broken link."""
    try:
        stat = os.stat(file)
    except OSError as error:
        raise unreadable(file, error) from error
    return stat.st_size, stat.st_mtime_ns


def read_image(file: Path, image_size: int | None) -> np.ndarray:
    """uint8 (image_size, image_size, 3), RGB, resized and cropped if need be.

    image_size: None for the image's own height and width. Raises `DataError` that names a file
    that can't be read.
    """
    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except Exception as error:  # PIL raises many kinds; whichever, the file must be named
        raise unreadable(file, error) from error
    if image_size is not None and image.size != (image_size, image_size):
        image = _resize_and_crop(image, image_size)
    return np.asarray(image)


def unreadable(file: Path, error: Exception) -> DataError:
    """The error to raise for an image file that can't be read."""
    return DataError(f"can't read the image {file} ({error}); replace it or remove it.")


def _resize_and_crop(image: Image.Image, image_size: int) -> Image.Image:
    shorter = int(image_size * RESIZE_RATIO)
    width, height = image.size
    if width <= height:
        size = (shorter, max(shorter, int(shorter * height / width)))
    else:
        size = (max(shorter, int(shorter * width / height)), shorter)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - image_size) / 2), round((size[1] - image_size) / 2)
    return image.crop((left, top, left + image_size, top + image_size))

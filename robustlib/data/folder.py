"""Any data set laid out in folders: `train/<class>/<image>`, and `test/` or `val/` likewise."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from robustlib.core import paths
from robustlib.data.base import DataError, Dataset, Split, cached, check_count, subset_ids
from robustlib.data.streamed import (
    StreamedSplit,
    decoding_threads,
    read_image,
    stamp,
    unreadable,
)

__all__ = ["images_below", "list_split", "load", "read_image", "unreadable"]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Files with other extensions are no images and are passed over, as torchvision does."""

MEMORY_LIMIT = 8 * 2**30
"""Bytes of images beyond which a folder is streamed by default (this project's choice)."""

_FORMAT = 1  # raise it with every change to how a file becomes pixels: it is part of the key


@dataclass(frozen=True)
class Listing:
    """The images of a folder of class folders."""

    folder: Path
    classes: tuple[str, ...]
    files: list[str]  # relative to `folder`, by class and then by name
    labels: np.ndarray  # int64 (N,)


def load(
    root: str | Path,
    n_train: int = 0,
    n_test: int = 0,
    image_size: int = 32,
    in_memory: bool | None = None,
) -> Dataset:
    """The images below `root`, as RGB of `image_size` x `image_size` pixels.

    root: holds `train/` and `test/` (or `val/`), with one folder of images for each class; a
    relative path is looked for in the working directory, then in the project. Classes are
    numbered in sorted order. An image of another size has its shorter side resized to
    `image_size` * 256 / 224 (bilinear, antialiased) and is cropped to its centre. n_train,
    n_test: sizes of class-balanced subsets (0: everything); only those images are decoded, and
    kept in `cache/` of the data folder until a file's name, size or time changes.

    in_memory: whether all images are decoded at once and held in memory, 3 * image_size^2 bytes
    each (ImageNet-100 at 224: 20 GB), or read from their files whenever they are needed, which
    gives the same pixels. None: in memory up to `MEMORY_LIMIT` bytes.

    Raises `DataError` if folders, classes or images are missing or an image can't be read, and
    `ValueError` for a subset larger than the whole.
    """
    check_count(n_train, "n_train")
    check_count(n_test, "n_test")
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
        raise ValueError(f"image_size must be an integer of at least 1, got {image_size!r}.")
    train, test = _find_splits(_find_root(root))
    _check_same_classes(train, test)
    train_ids = subset_ids(train.labels, n_train, "n_train")
    test_ids = subset_ids(test.labels, n_test, "n_test")
    if in_memory is None:
        count = len(train_ids) + len(test_ids)
        in_memory = 3 * image_size**2 * count <= MEMORY_LIMIT
    load_split = _load_split if in_memory else _stream_split
    return Dataset.build(
        "folder",
        train.classes,
        load_split(train, train_ids, image_size),
        load_split(test, test_ids, image_size),
    )


def _find_root(root: str | Path) -> Path:
    given = Path(root).expanduser()
    for candidate in (given, paths.project_root() / given):
        if candidate.is_dir():
            return candidate.resolve()
    raise DataError(
        f"there is no folder {given.absolute()}; set root to a folder that holds train/ and "
        "test/ (or val/)."
    )


def _find_splits(root: Path) -> tuple[Listing, Listing]:
    if not (root / "train").is_dir():
        raise DataError(f"{root} has no folder train/; it should hold train/<class>/<image>.")
    for name in ("test", "val"):
        if (root / name).is_dir():
            return list_split(root / "train"), list_split(root / name)
    raise DataError(f"{root} has neither test/ nor val/; one of them should hold <class>/<image>.")


def list_split(folder: Path) -> Listing:
    """The images in the class folders of `folder`; `DataError` if there are none."""
    with os.scandir(folder) as entries:
        classes = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not classes:
        raise DataError(f"{folder} has no images: it should hold one folder for each class.")
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(images_below(folder / name, name))
        if not found:
            raise DataError(
                f"{folder / name} has no images ({', '.join(EXTENSIONS)}); add some or remove it."
            )
        files += found
        labels += [label] * len(found)
    return Listing(folder, tuple(classes), files, np.array(labels, dtype=np.int64))


def images_below(folder: Path, relative: str) -> list[str]:
    """The image files at any depth below `folder`, in any order, each as `relative`/path."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            path = f"{relative}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found += images_below(folder / entry.name, path)
            elif entry.name.lower().endswith(EXTENSIONS):
                found.append(path)
    return found


def _check_same_classes(train: Listing, test: Listing) -> None:
    for here, there in ((train, test), (test, train)):
        missing = sorted(set(here.classes) - set(there.classes))
        if missing:
            names = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            raise DataError(
                f"{len(missing)} class(es) of {here.folder} have no folder in {there.folder}: "
                f"{names}. Both must hold the same classes; add or remove the folders."
            )


def _stream_split(listing: Listing, ids: np.ndarray, image_size: int) -> StreamedSplit:
    files = tuple(listing.files[i] for i in ids)
    labels = torch.from_numpy(listing.labels[ids])
    return StreamedSplit(listing.folder, files, labels, torch.from_numpy(ids), image_size)


def _load_split(listing: Listing, ids: np.ndarray, image_size: int) -> Split:
    files = [listing.folder / listing.files[i] for i in ids]
    labels = torch.from_numpy(listing.labels[ids])
    path = paths.data_dir() / "cache" / f"{_key(listing, files, ids, image_size)}.safetensors"

    def make() -> Split:
        images = _decode(files, image_size, f"decoding {listing.folder.name}/")
        return Split(images, labels, torch.from_numpy(ids))

    return cached(path, make)


def _key(listing: Listing, files: Sequence[Path], ids: np.ndarray, image_size: int) -> str:
    hasher = hashlib.sha256(f"{_FORMAT} {image_size} {listing.classes}".encode())
    for file, index in zip(files, ids, strict=True):
        size, time = stamp(file)
        hasher.update(f"{index} {file} {size} {time}\n".encode())
    return hasher.hexdigest()[:32]


def _decode(files: Sequence[Path], image_size: int, title: str) -> torch.Tensor:
    """uint8 (N, 3, image_size, image_size);."""
    images = np.empty((len(files), image_size, image_size, 3), dtype=np.uint8)

    def decode(item: tuple[int, Path]) -> None:
        images[item[0]] = read_image(item[1], image_size)

    with ThreadPoolExecutor(decoding_threads()) as pool:
        results = pool.map(decode, enumerate(files))
        try:
            for _ in tqdm(
                results,
                desc=title,
                total=len(files),
                unit="image",
                delay=1.0,
                mininterval=1.0,
                file=sys.stdout,
            ):
                pass
        except DataError:
            pool.shutdown(cancel_futures=True)
            raise
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

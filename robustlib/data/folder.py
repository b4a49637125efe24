"""Any data set laid out in folders: `train/<class>/<image>`, and `test/` or `val/` likewise."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from robustlib.core import paths
from robustlib.core.checks import check_flag, check_whole
from robustlib.core.identity import fingerprint
from robustlib.data.base import Dataset, Split, cached, subset_ids
from robustlib.data.images import (
    ENDINGS,
    DataError,
    decoding_threads,
    digest_of_images,
    images_below,
    read_image,
    shown,
    warn_of_others,
)
from robustlib.data.streamed import StreamedSplit

MEMORY_LIMIT = 8 * 2**30
"""Bytes of images beyond which a folder is streamed by default (this project's choice)."""


@dataclass(frozen=True)
class Listing:
    """The images of a folder of class folders."""

    folder: Path
    classes: tuple[str, ...]
    files: list[str]  # relative to `folder`, by class and then by name
    labels: np.ndarray  # int64 (N,)
    others: list[Path]  # files that are no images


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

    How a file becomes pixels: `robustlib.data.images.read_image`. Files that are no images, or of
    a kind that Pillow can't read, are passed over, and a warning says which; hidden ones silently.

    Raises `DataError` if folders, classes or images are missing or an image can't be read, and
    `ValueError` for a subset larger than the whole.
    """
    n_train = check_whole(n_train, "n_train", low=0)
    n_test = check_whole(n_test, "n_test", low=0)
    image_size = check_whole(image_size, "image_size", low=1)
    train, test = _find_splits(_find_root(root))
    _check_same_classes(train, test)
    warn_of_others([*train.others, *test.others], stacklevel=3)
    train_ids = subset_ids(train.labels, n_train, "n_train")
    test_ids = subset_ids(test.labels, n_test, "n_test")
    load_split = _way(in_memory, image_size, len(train_ids) + len(test_ids))
    return Dataset.build(
        "folder",
        train.classes,
        load_split(train, train_ids, image_size),
        load_split(test, test_ids, image_size),
    )


def load_images(
    folder: str | Path, *, n: int = 0, image_size: int = 32, in_memory: bool | None = None
) -> tuple[Split | StreamedSplit, tuple[str, ...]]:
    """The images of one folder of class folders, to evaluate on, and the names of the classes.

    folder: holds `<class>/<image>`; the labels number the classes in sorted order, so these must
    come in the order of the model's outputs. n: size of a class-balanced subset (0: everything).
    image_size, in_memory, how a file becomes pixels, and errors: as for a data set "folder" of
    `robustlib.data.load`.
    """
    n = check_whole(n, "n", low=0)
    image_size = check_whole(image_size, "image_size", low=1)
    listing = list_split(_find_root(folder, "class folders, <class>/<image>"))
    warn_of_others(listing.others, stacklevel=2)
    ids = subset_ids(listing.labels, n, "n")
    return _way(in_memory, image_size, len(ids))(listing, ids, image_size), listing.classes


def _way(
    in_memory: bool | None, image_size: int, count: int
) -> Callable[[Listing, np.ndarray, int], Split | StreamedSplit]:
    """How `count` images are to be held."""
    if in_memory is None:
        in_memory = 3 * image_size**2 * count <= MEMORY_LIMIT
    return _load_split if check_flag(in_memory, "in_memory") else _stream_split


def _find_root(root: str | Path, holding: str = "train/ and test/ (or val/)") -> Path:
    given = Path(root).expanduser()
    for candidate in (given, paths.project_root() / given):
        if candidate.is_dir():
            return candidate.resolve()
    raise DataError(f"there is no folder {given.absolute()}; name one that holds {holding}.")


def _find_splits(root: Path) -> tuple[Listing, Listing]:
    if not (root / "train").is_dir():
        raise DataError(f"{root} has no folder train/; it should hold train/<class>/<image>.")
    for name in ("test", "val"):
        if (root / name).is_dir():
            return list_split(root / "train"), list_split(root / name)
    raise DataError(f"{root} has neither test/ nor val/; one of them should hold <class>/<image>.")


def list_split(folder: Path) -> Listing:
    """The images in the class folders of `folder`; `DataError` if there are none."""
    try:
        with os.scandir(folder) as entries:
            visible = sorted((e.name, e.is_dir()) for e in entries if not e.name.startswith("."))
    except OSError as error:
        raise DataError(f"can't list the folder {shown(folder)} ({error}).") from error
    classes = [name for name, is_folder in visible if is_folder]
    others = [folder / name for name, is_folder in visible if not is_folder]
    if not classes:
        raise DataError(f"{shown(folder)} has no images: it should hold one folder for each class.")
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found, rest = images_below(folder / name, name)
        if not found:
            raise DataError(
                f"{shown(folder / name)} has no images ({', '.join(ENDINGS)}); "
                "add some or remove it."
            )
        files += sorted(found)
        labels += [label] * len(found)
        others += [folder / file for file in rest]
    return Listing(folder, tuple(classes), files, np.array(labels, dtype=np.int64), others)


def _check_same_classes(train: Listing, test: Listing) -> None:
    for here, there in ((train, test), (test, train)):
        missing = sorted(set(here.classes) - set(there.classes))
        if missing:
            names = ", ".join(map(shown, missing[:5])) + (" ..." if len(missing) > 5 else "")
            raise DataError(
                f"{len(missing)} class(es) of {here.folder} have no folder in {there.folder}: "
                f"{names}. Both must hold the same classes; add or remove the folders."
            )


def _stream_split(listing: Listing, ids: np.ndarray, image_size: int) -> StreamedSplit:
    files = tuple(listing.files[i] for i in ids)
    labels = torch.from_numpy(listing.labels[ids])
    return StreamedSplit(listing.folder, files, labels, torch.from_numpy(ids), image_size)


def _load_split(listing: Listing, ids: np.ndarray, image_size: int) -> Split:
    names = [listing.files[i] for i in ids]
    path = paths.data_dir() / "cache" / f"{_key(listing, names, ids, image_size)}.safetensors"

    def make() -> Split:
        files = [listing.folder / name for name in names]
        images = _decode(files, image_size, f"decoding {listing.folder.name}/")
        return Split(images, torch.from_numpy(listing.labels[ids]), torch.from_numpy(ids))

    return replace(cached(path, make), files=tuple(names))


def _key(listing: Listing, names: Sequence[str], ids: np.ndarray, image_size: int) -> str:
    files = digest_of_images(listing.folder, names)
    text = f"{image_size} {listing.classes} {ids.tolist()} {files} {fingerprint(read_image)} "
    return hashlib.sha256(text.encode() + os.fsencode(listing.folder)).hexdigest()[:32]


def _decode(files: Sequence[Path], image_size: int, title: str) -> torch.Tensor:
    """uint8 (N, 3, image_size, image_size)."""
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
        except BaseException:  # an interruption, too, drops what waits
            pool.shutdown(cancel_futures=True)
            raise
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

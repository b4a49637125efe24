"""What every data source shares: the data classes, subsets, and a checked cache of tensors."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustlib.core import tensorfile
from robustlib.core.checks import check_ids, check_labels, check_whole, settle
from robustlib.data.images import DataError
from robustlib.data.streamed import StreamedSplit, check_files

SUBSET_SEED = 20190910
"""Fixes the order of images within each class, and so every subset. Never a parameter."""


class DataUnavailableError(DataError):
    """Data that is not here and can't be downloaded. The message says where to put it."""


@dataclass(frozen=True)
class Split:
    """Labelled images held in memory, as bytes: a quarter of the size of float32.

    images  uint8 (N, 3, H, W), RGB
    labels  int64 (N,), in 0 .. classes - 1; given as any whole numbers, in a list or an array too
    ids     int64 (N,), the index of each image in the full split of its source; a subset keeps
            them, so that an image meets the same corruption in every subset; given like labels
    files   names of the N files, relative to the folder that holds the classes; empty if the
            images come from no files
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        images = self.images
        if not isinstance(images, Tensor):
            raise ValueError(f"images must be a uint8 tensor, got {type(images).__name__}.")
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                "a split holds uint8 images of shape (N, 3, H, W), got "
                f"{images.dtype} of {tuple(images.shape)}."
            )
        n = len(images)
        labels = check_labels(self.labels, n).to(images.device)
        ids = check_ids(self.ids, n).to(images.device)
        settle(self, labels=labels, ids=ids, files=check_files(self.files, n))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> int:
        """Height, and width, of the images in pixels."""
        return self.images.shape[-1]

    def float_images(self, index: slice | Tensor = slice(None)) -> Tensor:
        """The images that `index` selects, as float32 (n, 3, H, W) in [0, 1]."""
        return self.images[index].to(torch.float32) / 255.0

    def first(self, n: int) -> Split:
        """The first `n` images, or all if there are fewer; balanced over the classes."""
        n = check_whole(n, "n", low=0)
        return Split(self.images[:n], self.labels[:n], self.ids[:n], self.files[:n])

    def to(self, device: torch.device | str) -> Split:
        """The same split with its tensors on `device`."""
        images, labels, ids = (value.to(device) for value in self.tensors().values())
        return Split(images, labels, ids, self.files)

    def tensors(self) -> dict[str, Tensor]:
        """Images, labels and ids by name."""
        return {"images": self.images, "labels": self.labels, "ids": self.ids}

    def digest(self) -> str:
        """SHA-256 (hex) of shape, pixels, labels and ids."""
        return tensorfile.digest(self.tensors())


@dataclass(frozen=True)
class Dataset:
    """A training and a test split of the same classes. Make one with `Dataset.build`.

    fingerprint  SHA-256 (hex) of the names of the classes and of the pixels, labels and ids of
                 both splits: it changes if any of them does (for a streamed split, if names,
                 sizes or times of its files do)
    """

    name: str
    classes: tuple[str, ...]
    train: Split | StreamedSplit
    test: Split | StreamedSplit
    fingerprint: str

    @classmethod
    def build(
        cls,
        name: str,
        classes: Sequence[str],
        train: Split | StreamedSplit,
        test: Split | StreamedSplit,
    ) -> Dataset:
        """A `Dataset` with its fingerprint computed (about a second for a gigabyte)."""
        text = "\0".join([*classes, "", train.digest(), test.digest()])
        hasher = hashlib.sha256(text.encode("utf-8", "surrogateescape"))  # names as in the files
        return cls(name, tuple(classes), train, test, hasher.hexdigest())

    @property
    def image_size(self) -> int:
        """Height, and width, of the images in pixels."""
        return self.train.image_size


def balanced_order(labels: np.ndarray) -> np.ndarray:
    """A fixed order of a labelled set whose every beginning is balanced over the classes.

    labels: int (N,). Returns int64 (N,), a permutation: each class in a fixed random order, one
    image of each class in turn until a class runs out. The first n entries are a subset of the
    first m > n, so smaller data sets are nested in larger ones. The order of a class depends
    on its size and its label only.
    """
    labels = np.asarray(labels)
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        generator = np.random.Generator(np.random.Philox(key=[SUBSET_SEED, int(label)]))
        rank[generator.permutation(members)] = np.arange(len(members))
    return np.lexsort((labels, rank))


def subset_ids(labels: np.ndarray, n: int, what: str) -> np.ndarray:
    """The ids of a class-balanced subset of `n` images (0: all), in their fixed order.

    labels: int (N,), of the full split. Returns int64 (n,).
    Raises `ValueError` if there are fewer than `n`.
    """
    n = check_whole(n, what, low=0)
    if n > len(labels):
        raise ValueError(f"{what}={n}, but there are only {len(labels)} such images.")
    return balanced_order(labels)[: n or len(labels)]


def cached(path: Path, make: Callable[[], Split]) -> Split:
    """The split stored in `path`, or else the one that `make` returns, which is then stored.

    A damaged file is made again, with a warning. Where nothing can be written, a warning says
    so and no cache is kept.
    """
    if path.is_file():
        try:
            found = tensorfile.read(path)[0]
            return Split(found["images"], found["labels"], found["ids"])
        except tensorfile.DamagedFileError as error:
            warnings.warn(f"{path} is damaged ({error}); making it again.", stacklevel=2)
        except OSError as error:
            warnings.warn(f"can't read {path} ({error}); making it again.", stacklevel=2)
    split = make()
    try:
        tensorfile.write(path, split.tensors(), {})
    except OSError as error:
        warnings.warn(f"can't keep data in {path.parent}: {error}.", stacklevel=2)
    return split

"""Labelled images from four sources behind one function, `load`."""

from __future__ import annotations

from pathlib import Path

from robustlib.core.checks import check_flag, check_name, check_whole
from robustlib.data import cifar, folder, shapes10
from robustlib.data.base import Dataset, DataUnavailableError, Split
from robustlib.data.folder import load_images
from robustlib.data.images import DataError, read_image
from robustlib.data.streamed import StreamedSplit

DATASETS = ("shapes10", "cifar10", "cifar100", "folder")

__all__ = [
    "DATASETS",
    "DataError",
    "DataUnavailableError",
    "Dataset",
    "Split",
    "StreamedSplit",
    "load",
    "load_images",
    "read_image",
]


def load(
    name: str,
    *,
    n_train: int = 0,
    n_test: int = 0,
    root: str | Path | None = None,
    image_size: int = 32,
    in_memory: bool | None = None,
) -> Dataset:
    """Load, download or make a data set.

    name: one of `DATASETS`.
    n_train, n_test: how many images; 0 is the whole split, for shapes10 10,000 and 2,000.
        Subsets are balanced over the classes, always the same, and nested: the first 5,000
        of the 10,000. Images come in this fixed order, whatever their number.
    root: for `folder`, the folder that holds `train/` and `test/` or `val/`; for CIFAR, where
        the archive lies or goes if not in the data folder; not for `shapes10`.
    image_size: side in pixels for `folder`; the other sources have 32 only.
    in_memory: for `folder`: True decodes all images at once, False leaves them in their files
        until they are needed (`StreamedSplit`), None decides by size. The others are in memory.

    Raises `UnknownNameError` for an unknown name, `DataError` if data are missing, damaged or
    ill-arranged (`DataUnavailableError` if a download failed), and `ValueError` for other
    arguments out of range. All name what was found and what to do.
    """
    check_name(name, DATASETS, "data set")
    image_size = check_whole(image_size, "image_size", low=1)
    if in_memory is not None:
        in_memory = check_flag(in_memory, "in_memory")
    if name == "folder":
        if not root:
            raise DataError("dataset 'folder' needs root, a folder with train/ and test/ or val/.")
        return folder.load(root, n_train, n_test, image_size, in_memory)
    if in_memory is False:
        raise ValueError(f"{name} is held in memory; only 'folder' takes in_memory=False.")
    if image_size != 32:
        raise ValueError(f"{name} has images of 32 pixels only, got image_size={image_size}.")
    if name == "shapes10":
        if root:
            raise ValueError(f"shapes10 is generated and takes no root, got {str(root)!r}.")
        return shapes10.load(n_train, n_test)
    return cifar.load(name, n_train, n_test, root)

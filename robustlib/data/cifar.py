"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), read and downloaded by torchvision.

torchvision reads the archives' pickled batches: the one place where this project unpickles
anything. It does so only after each file has passed the MD5 checksum recorded in torchvision.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from robustlib.core import paths
from robustlib.core.checks import check_whole
from robustlib.data.base import Dataset, DataUnavailableError, Split, subset_ids

_SOURCES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}


def load(name: str, n_train: int = 0, n_test: int = 0, root: str | Path | None = None) -> Dataset:
    """CIFAR-10 (`name` is `"cifar10"`) or CIFAR-100 (`"cifar100"`), at 32x32 pixels.

    root: where torchvision's archive lies or goes, `<data folder>/<name>` if None; downloaded
    there (170 MB) and checked on first use. n_train, n_test: sizes of class-balanced subsets
    (0: everything).

    Raises `DataUnavailableError` if the data are not there and can't be downloaded, `ValueError`
    for a subset larger than the whole.
    """
    n_train = check_whole(n_train, "n_train", low=0)
    n_test = check_whole(n_test, "n_test", low=0)
    folder = Path(root) if root else paths.data_dir() / name
    import torchvision  # takes seconds, which users of other data need not wait for

    source = getattr(torchvision.datasets, _SOURCES[name])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        train, test = (source(folder, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError, EOFError) as error:
        raise DataUnavailableError(
            f"{name} is not in {folder} and could not be downloaded ({error}). Either connect to "
            f"the network and try again; or fetch {source.filename} (MD5 {source.tgz_md5}) from "
            f"{source.url} elsewhere and put it, still packed, into that folder; or "
            "use dataset='folder' with images of your own, or dataset='shapes10', which needs "
            "no download."
        ) from error
    return Dataset.build(
        name,
        tuple(train.classes),
        _subset(train.data, train.targets, n_train, "n_train"),
        _subset(test.data, test.targets, n_test, "n_test"),
    )


def _subset(pixels: np.ndarray, targets: list[int], n: int, what: str) -> Split:
    """pixels: uint8 (N, 32, 32, 3)."""
    labels = np.asarray(targets, dtype=np.int64)
    ids = subset_ids(labels, n, what)
    images = np.ascontiguousarray(pixels[ids].transpose(0, 3, 1, 2))
    return Split(torch.from_numpy(images), torch.from_numpy(labels[ids]), torch.from_numpy(ids))

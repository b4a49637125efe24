"""Labelled images that stay in their files, for folders that memory can't hold."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustlib.core import tensorfile
from robustlib.core.checks import check_ids, check_labels, check_whole, settle
from robustlib.core.identity import fingerprint
from robustlib.data.images import decoding_threads, digest_of_images, read_image


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

    def __post_init__(self) -> None:
        n = len(self.files)
        settle(self, folder=Path(self.folder), files=check_files(self.files, n))
        settle(self, labels=check_labels(self.labels, n), ids=check_ids(self.ids, n))
        settle(self, image_size=check_whole(self.image_size, "image_size", low=1))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Tensor:
        """One image, uint8 (3, image_size, image_size); what the workers of a loader call."""
        pixels = read_image(self.folder / self.files[index], self.image_size)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def float_images(self, index: slice | Tensor = slice(None)) -> Tensor:
        """The images that `index` selects, as float32 (n, 3, H, W) in [0, 1]."""
        chosen = torch.arange(len(self), device="cpu")[index].tolist()
        if not chosen:
            side = self.image_size
            return torch.empty(0, 3, side, side, dtype=torch.float32, device="cpu")
        with ThreadPoolExecutor(decoding_threads()) as pool:
            return torch.stack(list(pool.map(self.__getitem__, chosen))).to(torch.float32) / 255.0

    def first(self, n: int) -> StreamedSplit:
        """The first `n` images, or all if there are fewer; balanced over the classes."""
        n = check_whole(n, "n", low=0)
        files, labels, ids = self.files[:n], self.labels[:n], self.ids[:n]
        return StreamedSplit(self.folder, files, labels, ids, self.image_size)

    def digest(self) -> str:
        """SHA-256 (hex) of labels, ids, names, sizes and times of the files, and how they are read.

        Unlike that of `Split` it doesn't read the pixels, which would take as long as an epoch.
        Raises `DataError` if a file is gone.
        """
        files = digest_of_images(self.folder, self.files)
        hasher = hashlib.sha256(f"{self.image_size} {files} {fingerprint(read_image)}".encode())
        hasher.update(tensorfile.digest({"labels": self.labels, "ids": self.ids}).encode())
        return hasher.hexdigest()


def check_files(files: Sequence[str], n: int) -> tuple[str, ...]:
    """Return the names of a split's files: none, or one for each of its `n` images."""
    names = tuple(map(str, files))
    if isinstance(files, str) or len(names) not in (0, n):
        raise ValueError(f"files must name {n} files, one for each image, or none; got {files!r}.")
    return names

"""What reading and writing share: decoding in threads, and files as part of a key."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustlib.data.folder import read_image, unreadable


def threads() -> ThreadPoolExecutor:
    """A pool to decode and encode in: PIL works without Python's lock."""
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1))


def decode(files: Sequence[Path], image_size: int | None, pool: ThreadPoolExecutor) -> Tensor:
    """uint8 (N, 3, H, W) of images of one size."""
    pixels = np.stack(list(pool.map(partial(read_image, image_size=image_size), files)))
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def digest_of_files(folder: Path, files: Iterable[str]) -> str:
    """A hash of names, sizes and times of modification."""
    hasher = hashlib.sha256()
    for file in files:
        try:
            stat = os.stat(folder / file)
        except OSError as error:  # a broken link, say
            raise unreadable(folder / file, error) from error
        hasher.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return hasher.hexdigest()[:16]

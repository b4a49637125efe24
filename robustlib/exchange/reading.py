"""Corrupted images read from files, as a perturbation."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from robustlib import corruptions
from robustlib.core.checks import SEVERITIES, check_name, check_severity
from robustlib.core.identity import fingerprint
from robustlib.data import DataError
from robustlib.data.folder import Listing, list_split
from robustlib.exchange.files import decode, digest_of_files, threads


@dataclass(frozen=True)
class Stored:
    """A perturbation whose images come from files: CIFAR-10-C, ImageNet-C and their like.

        cells = [Stored("fog", severity, "CIFAR-10-C") for severity in range(1, 6)]
        evaluate(models, dataset.test, cells, store=store)

    folder: holds `<name>.npy` and `labels.npy`, which are mapped into memory, or
    `<name>/<severity>/<class>/<image>`, decoded when wanted; see `stored_names`.

    An image is found by its id, so the files must be of the split's data set: row i, or the i-th
    image sorted by class and then by name, is the image of id i (with `ids.npy`: of the id that
    it says). Labels are compared, which reveals another order of the images.

    Raises `DataError` if there is no such folder or no such severity in it, `ValueError` for
    another severity than 1 to 5, and `UnknownNameError` for a name that is not there.
    """

    name: str
    severity: int
    folder: str | Path
    needs_model: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        check_severity(self.severity)
        check_name(self.name, stored_names(self.folder), f"perturbation in {self.folder}:")
        if not (self._array.is_file() or self._images.is_dir()):
            raise DataError(f"severity {self.severity} is missing: there is no {self._images}.")

    @property
    def family(self) -> str:
        """The family of the corruption of that name, or "stored" if there is none."""
        known = self.name in corruptions.names()
        return corruptions.info(self.name).family if known else "stored"

    @property
    def label(self) -> str:
        """The name."""
        return self.name

    @property
    def options(self) -> str:
        """Where the images come from, for tables."""
        return f"stored in {Path(self.folder).name}"

    def key(self) -> dict[str, object]:
        """Name, severity, the files, and the code that reads them."""
        return {
            "perturbation": f"stored {self.name}",
            "severity": self.severity,
            "files": self.digest(),
            "code": fingerprint(Stored.apply, Stored._from_array, Stored._from_images),
        }

    @property
    def _array(self) -> Path:
        return Path(self.folder) / f"{self.name}.npy"

    @property
    def _images(self) -> Path:
        return Path(self.folder) / self.name / str(self.severity)

    def digest(self) -> str:
        """A hash of names, sizes and times of the files, for the key of an evaluation.

        Not of their content, which would cost a pass over gigabytes: a copy that doesn't keep
        the times counts as another file.
        """
        if self._array.is_file():
            files = (self._array.name, "labels.npy", "ids.npy")
            folder = self._array.parent
            return digest_of_files(folder, [f for f in files if (folder / f).is_file()])
        _listing.cache_clear()
        return digest_of_files(self._images, _listing(self._images).files)

    def apply(
        self, images: Tensor, labels: Tensor, ids: Tensor, model: nn.Module | None, seed: int
    ) -> Tensor:
        """The stored images of these ids, float32 (N, 3, H, W) in [0, 1].

        Of `images` only size and device matter. Images in folders are resized and cropped to
        that size as `robustlib.data.load` does; arrays must have it.

        Raises `DataError` for files that can't be read or aren't in the layout, and `ValueError`
        if they are not of these images: another size, too few, other labels.
        """
        read = self._from_array if self._array.is_file() else self._from_images
        pixels, found = read(ids.cpu().numpy(), (images.shape[2], images.shape[3]))
        wrong = np.flatnonzero(found != labels.cpu().numpy())
        if len(wrong):
            i = wrong[0]
            raise ValueError(
                f"{self.name} in {self.folder} labels image {int(ids[i])} as {found[i]}, the split "
                f"as {int(labels[i])} ({len(wrong)} of {len(ids)} differ): it holds other images, "
                "or in another order."
            )
        return pixels.to(images.device).to(torch.float32) / 255.0

    def _from_array(self, ids: np.ndarray, size: tuple[int, int]) -> tuple[Tensor, np.ndarray]:
        pixels = _open_array(self._array)
        labels = _open_array(self._array.with_name("labels.npy"))
        rows, n = ids, len(pixels) // 5
        if pixels.dtype != np.uint8 or pixels.shape != (5 * n, *pixels.shape[1:3], 3):
            raise DataError(
                f"{self._array} must be uint8 (5 n, H, W, 3), five severities of n images, got "
                f"{pixels.dtype} {pixels.shape}."
            )
        if labels.dtype.kind not in "iu" or labels.shape != (5 * n,):
            raise DataError(
                f"{self._array.with_name('labels.npy')} must be integers ({5 * n},), one for each "
                f"image, got {labels.dtype} {labels.shape}."
            )
        if pixels.shape[1:3] != size:
            raise ValueError(
                f"{self._array} has images of {pixels.shape[1:3]} pixels, the split of {size}."
            )
        if self._array.with_name("ids.npy").is_file():
            stored = _open_array(self._array.with_name("ids.npy"))
            rows = np.searchsorted(stored, ids)
            rows[stored[rows.clip(max=n - 1)] != ids] = -1
        self._check_rows(rows, ids, n)
        rows = rows + (self.severity - 1) * n
        chosen = torch.from_numpy(np.asarray(pixels[rows]))
        return chosen.permute(0, 3, 1, 2).contiguous(), np.asarray(labels[rows])

    def _from_images(self, ids: np.ndarray, size: tuple[int, int]) -> tuple[Tensor, np.ndarray]:
        if size[0] != size[1]:
            raise ValueError(f"{self._images} is read as squares, but the split has {size} pixels.")
        listing = _listing(self._images)
        self._check_rows(ids, ids, len(listing.files))
        with threads() as pool:
            files = [self._images / listing.files[i] for i in ids]
            return decode(files, size[0], pool), listing.labels[ids]

    def _check_rows(self, rows: np.ndarray, ids: np.ndarray, n: int) -> None:
        outside = ids[(rows < 0) | (rows >= n)]
        if len(outside):
            raise ValueError(
                f"{self.name} in {self.folder} has {n} images at each severity, and none of id "
                f"{outside[0]}: it was made from another data set, or from a part of this one."
            )


def stored_names(folder: str | Path) -> tuple[str, ...]:
    """The perturbations found in a folder, in either layout, sorted; see `Stored`.

    Raises `DataError` if there are none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}.")
    arrays = {path.stem for path in folder.glob("*.npy")} - {"labels", "ids"}
    severities = [path for s in SEVERITIES for path in folder.glob(f"*/{s}") if path.is_dir()]
    names = sorted(arrays | {path.parent.name for path in severities})
    if not names:
        raise DataError(f"{folder} has neither <name>.npy nor <name>/<severity>/.")
    return tuple(names)


@lru_cache(maxsize=2)
def _listing(folder: Path) -> Listing:
    return list_split(folder)


def _open_array(path: Path) -> np.ndarray:
    """A memory map of the file, which stays open until the file changes."""
    try:
        stat = os.stat(path)
        return _map_array(path, stat.st_size, stat.st_mtime_ns)
    except (OSError, ValueError) as error:
        raise DataError(f"can't read {path} as a NumPy array ({error}).") from error


@lru_cache(maxsize=16)
def _map_array(path: Path, size: int, time: int) -> np.ndarray:
    return np.lib.format.open_memmap(path, mode="r")

"""Corrupted images read from files, as a perturbation."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlib import corruptions
from robustlib.core.checks import (
    SEVERITIES,
    check_ids,
    check_labels,
    check_name,
    check_severity,
    settle,
)
from robustlib.core.identity import fingerprint
from robustlib.data import DataError, Split, StreamedSplit
from robustlib.data.images import digest_of_images, images_below, shown
from robustlib.exchange.files import (
    MANIFEST,
    checksums,
    decode,
    exported_name,
    read_record,
    stem,
    threads,
)


@dataclass(frozen=True)
class Stored:
    """A perturbation whose images come from files: CIFAR-10-C, ImageNet-C and their like.

        cells = [Stored("fog", severity, "CIFAR-10-C") for severity in range(1, 6)]
        evaluate(models, dataset.test, cells, store=store)

    folder: holds `<name>.npy` and `labels.npy`, which are mapped into memory, or
    `<name>/<severity>/<class>/<image>`, decoded when wanted; see `stored_names`. label: what
    tables show, by default the name.

    Which image belongs to which, in the layout of ImageNet-C: the one of the same name, but for
    its ending. That takes a split that knows the names of its files, such as `load("folder", ...)`
    gives, and `for_split`, which `evaluate` calls. A split without names is served from exports of
    `export_imagenet_c` only, whose manifest lists the names by id. In the layout of CIFAR-10-C,
    row i is the image of id i (with `ids.npy`: of the id that it says). Wherever names aren't
    compared, labels are, which reveals another order of the images; and the clean images with
    what `export_cifar_c` has noted of them.

    Raises `DataError` if there is no such folder or no such severity in it, `ValueError` for
    another severity than 1 to 5, and `UnknownNameError` for a name that is not there.
    """

    name: str
    severity: int
    folder: str | Path
    label: str = field(default="", kw_only=True)
    needs_model: bool = field(default=False, init=False)
    _paired: Mapping[int, str] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        severity, folder = check_severity(self.severity), Path(self.folder)
        check_name(self.name, stored_names(folder), f"perturbation in {shown(folder)}:")
        settle(self, severity=severity, folder=folder, label=self.label or self.name)
        if not (self._array.is_file() or self._images.is_dir()):
            raise DataError(f"severity {severity} is missing: there is no {shown(self._images)}.")

    @property
    def family(self) -> str:
        """The family of the corruption of that name, or "stored" if there is none."""
        known = self.name in corruptions.names()
        return corruptions.info(self.name).family if known else "stored"

    @property
    def options(self) -> str:
        """Where the images come from, for tables."""
        return f"stored in {Path(self.folder).name}"

    def key(self) -> dict[str, Any]:
        """Name, severity, the files, and the code that reads them."""
        reading = (Stored._from_array, Stored._rows, Stored._from_images, Stored._by_id)
        return {
            "perturbation": f"stored {self.name}",
            "severity": self.severity,
            "files": self.digest(),
            "code": fingerprint(Stored.apply, Stored.for_split, *reading),
        }

    def for_split(self, split: Split | StreamedSplit) -> Stored:
        """This perturbation for the images of `split`, each paired with a file by its name.

        Raises `DataError` if an image has no file of its own, and `ValueError` if the names show
        that the files were made from other images. Names that are not known, of the split or of
        an array's images, are not compared.
        """
        if not split.files:
            return self
        names = dict(zip(split.ids.tolist(), split.files, strict=True))
        if len(names) < len(split):
            raise ValueError("the split has images of the same id, which can't be told apart.")
        if self._array.is_file():
            self._check_sources(names)
            return self
        bound = copy.copy(self)
        settle(bound, _paired=self._by_name(names))
        return bound

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
            return digest_of_images(folder, [f for f in files if (folder / f).is_file()])
        if self._paired is not None:  # in the order of the split, and so the pairing counts
            return digest_of_images(self._images, self._paired.values())
        return digest_of_images(self._images, self._by_id()[0])

    def apply(
        self, images: Tensor, labels: Tensor, ids: Tensor, model: nn.Module | None, seed: int
    ) -> Tensor:
        """The stored images of these ids, float32 (N, 3, H, W) in [0, 1].

        images: the clean ones. Images in folders are resized and cropped to their size as
        `robustlib.data.load` does; arrays must have it.

        Raises `DataError` for files that can't be read or aren't in the layout, and `ValueError`
        if they are not of these images: another size, too few, other labels, or made by
        `export_cifar_c` from other images.
        """
        wanted = check_ids(ids, len(images)).cpu().numpy()
        labels = check_labels(labels, len(images)).cpu()
        read = self._from_array if self._array.is_file() else self._from_images
        pixels, found = read(wanted, labels.numpy(), (images.shape[2], images.shape[3]))
        wrong = np.flatnonzero(found != labels.numpy())
        if len(wrong):
            i = wrong[0]
            raise ValueError(
                f"{self.name} in {shown(self.folder)} labels image {wanted[i]} as {found[i]}, the "
                f"split as {int(labels[i])} ({len(wrong)} of {len(wanted)} differ): it holds other "
                "images, or in another order."
            )
        if self._array.is_file():
            self._check_clean(images, wanted)
        return pixels.to(images.device).to(torch.float32) / 255.0

    def _from_array(
        self, ids: np.ndarray, labels: np.ndarray, size: tuple[int, int]
    ) -> tuple[Tensor, np.ndarray]:
        """Pixels, uint8 (N, 3, H, W), and labels as stored."""
        pixels = _open_array(self._array)
        stored = _open_array(self._array.with_name("labels.npy"))
        n = len(pixels) // 5
        if pixels.dtype != np.uint8 or pixels.shape != (5 * n, *pixels.shape[1:3], 3):
            raise DataError(
                f"{shown(self._array)} must be uint8 (5 n, H, W, 3), five severities of n images, "
                f"got {pixels.dtype} {pixels.shape}."
            )
        if stored.dtype.kind not in "iu" or stored.shape != (5 * n,):
            raise DataError(
                f"{shown(self._array.with_name('labels.npy'))} must be integers ({5 * n},), one "
                f"for each image, got {stored.dtype} {stored.shape}."
            )
        if pixels.shape[1:3] != size:
            raise ValueError(
                f"{shown(self._array)} has images of {pixels.shape[1:3]} pixels, the split of "
                f"{size}."
            )
        rows = self._rows(ids, n) + (self.severity - 1) * n
        chosen = torch.from_numpy(np.asarray(pixels[rows]))
        return chosen.permute(0, 3, 1, 2).contiguous(), np.asarray(stored[rows])

    def _rows(self, ids: np.ndarray, n: int) -> np.ndarray:
        """Where the images of these ids are among the `n` of a severity."""
        rows, path = ids, self._array.with_name("ids.npy")
        if path.is_file():
            stored = _open_array(path)
            if stored.dtype.kind not in "iu" or stored.shape != (n,) or (np.diff(stored) < 1).any():
                raise DataError(
                    f"{shown(path)} must hold {n} ascending integers, one for each image, got "
                    f"{stored.dtype} {stored.shape}."
                )
            rows = np.searchsorted(stored, ids)
            rows[stored[rows.clip(max=n - 1)] != ids] = -1
        self._check_rows(rows, ids, n)
        return rows

    def _check_sources(self, names: Mapping[int, str]) -> None:
        """Compare names by id with those that the manifest lists by row, if it does."""
        sources = _manifest(Path(self.folder)).get("sources")
        if not sources:
            return
        rows = self._rows(np.array(list(names)), len(sources)).tolist()
        for row, (i, name) in zip(rows, names.items(), strict=True):
            if sources[row] != name:
                raise ValueError(
                    f"image {i} of the split is {shown(name)}, but {shown(self.folder)} was made "
                    f"with {shown(sources[row])} in its place: files were added, removed or "
                    "renamed since. Export them again."
                )

    def _check_clean(self, images: Tensor, ids: np.ndarray) -> None:
        """Compare images with those that the manifest has checksums of, if it does."""
        recorded = _manifest(Path(self.folder)).get("checksums")
        if not recorded:
            return
        rows = self._rows(ids, len(recorded)).tolist()
        found = checksums((images * 255).round().to(torch.uint8))
        wrong = [i for i, row in enumerate(rows) if recorded[row] != found[i]]
        if wrong:
            raise ValueError(
                f"image {ids[wrong[0]]} of the split is not the one that {shown(self.folder)} was "
                f"made from ({len(wrong)} of {len(ids)} differ): evaluate the split that was "
                "exported, or export this one."
            )

    def _from_images(
        self, ids: np.ndarray, labels: np.ndarray, size: tuple[int, int]
    ) -> tuple[Tensor, np.ndarray]:
        """Pixels, uint8 (N, 3, H, W), and labels: those given, where the name has said enough."""
        if size[0] != size[1]:
            raise ValueError(
                f"{shown(self._images)} is read as squares, but the split has {size} pixels."
            )
        if self._paired is None:
            files, found = self._by_id()
            self._check_rows(ids, ids, len(files))
            chosen, labels = [files[i] for i in ids], found[ids]
        else:
            strange = [i for i in ids.tolist() if i not in self._paired]
            if strange:
                raise ValueError(f"id {strange[0]} is not in the split that for_split was given.")
            chosen = [self._paired[i] for i in ids.tolist()]
        with threads() as pool:
            return decode([self._images / file for file in chosen], size[0], pool), labels

    def _by_id(self) -> tuple[list[str], np.ndarray]:
        """The files and their labels, int64 (N,), in the order of ids, as the manifest has them."""
        manifest = _manifest(Path(self.folder))
        sources = manifest.get("sources")
        if not sources or any("/" not in source for source in sources):
            raise DataError(
                f"which image is which in {shown(self.folder)} can only be told by name: it has no "
                f"{MANIFEST} that lists images in folders of classes, and the split has no names. "
                'Load the split with robustlib.data.load("folder", ...), or give it its names, '
                "Split(..., files=[...])."
            )
        top = [source.split("/")[0] for source in sources]
        labels = np.unique(top, return_inverse=True)[1]
        return [exported_name(source, manifest["image_format"]) for source in sources], labels

    def _by_name(self, names: Mapping[int, str]) -> dict[int, str]:
        """For each id the file of that name, whatever its ending."""
        by_stem: dict[str, list[str]] = {}
        for file in images_below(self._images)[0]:
            by_stem.setdefault(stem(file), []).append(file)
        paired: dict[int, str] = {}
        for i, name in names.items():
            found = by_stem.get(stem(name), [])
            same = [file for file in found if file == name] or found
            if len(same) != 1:
                raise DataError(
                    f"{shown(self._images)} has {len(same) or 'no'} images for {shown(name)} of "
                    "the split; there must be one of that name, but for the ending. Complete the "
                    "folder, or take the images that it was made from."
                )
            paired[i] = same[0]
        _check_apart(paired, names, self._images)
        return paired

    def _check_rows(self, rows: np.ndarray, ids: np.ndarray, n: int) -> None:
        outside = ids[(rows < 0) | (rows >= n)]
        if len(outside):
            raise ValueError(
                f"{self.name} in {shown(self.folder)} has {n} images at each severity, and none of "
                f"id {outside[0]}: it was made from another data set, or from a part of this one."
            )


def stored_names(folder: str | Path) -> tuple[str, ...]:
    """The perturbations found in a folder, in either layout, sorted; see `Stored`.

    Raises `DataError` if there are none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder {shown(folder)}.")
    arrays = {path.stem for path in folder.glob("*.npy")} - {"labels", "ids"}
    severities = [path for s in SEVERITIES for path in folder.glob(f"*/{s}") if path.is_dir()]
    names = sorted(arrays | {path.parent.name for path in severities})
    if not names:
        raise DataError(f"{shown(folder)} has neither <name>.npy nor <name>/<severity>/.")
    return tuple(names)


def stored_places(folder: str | Path) -> dict[str, Path]:
    """The perturbations found in a folder, or in its subfolders, and where each lies.

    Many keep ImageNet-C by category, `blur/defocus_blur/1/...`, as its archives are named.
    Raises `DataError` if there are none, or one of a name in two subfolders.
    """
    folder = Path(folder)
    try:
        return dict.fromkeys(stored_names(folder), folder)
    except DataError:
        subfolders = sorted(path for path in folder.glob("*") if path.is_dir())
        found: dict[str, Path] = {}
        for place in subfolders:
            try:
                names = stored_names(place)
            except DataError:
                continue
            if twice := found.keys() & set(names):
                raise DataError(
                    f"{min(twice)} is both in {shown(found[min(twice)])} and {shown(place)}; "
                    "name one of these folders."
                ) from None
            found |= dict.fromkeys(names, place)
        if not found:
            raise
        return found


def _check_apart(paired: Mapping[int, str], names: Mapping[int, str], folder: Path) -> None:
    """Raise `DataError` if one file would stand for two images, such as a.jpg and a.png."""
    taken: dict[str, int] = {}
    for i, file in paired.items():
        if file in taken:
            raise DataError(
                f"{shown(file)} in {shown(folder)} would stand for both {shown(names[i])} and "
                f"{shown(names[taken[file]])}; rename one of them and export again."
            )
        taken[file] = i


def _manifest(folder: Path) -> dict[str, Any]:
    """What an export of ours records; nothing of others."""
    path = folder / MANIFEST
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return {}
    try:
        return _read_manifest(path, stat.st_size, stat.st_mtime_ns)
    except ValueError as error:
        raise DataError(str(error)) from error


@lru_cache(maxsize=4)
def _read_manifest(path: Path, size: int, time: int) -> dict[str, Any]:
    return read_record(path)


def _open_array(path: Path) -> np.ndarray:
    """A memory map of the file, which stays open until the file changes."""
    try:
        stat = os.stat(path)
        return _map_array(path, stat.st_size, stat.st_mtime_ns)
    except (OSError, ValueError) as error:
        raise DataError(f"can't read {shown(path)} as a NumPy array ({error}).") from error


@lru_cache(maxsize=16)
def _map_array(path: Path, size: int, time: int) -> np.ndarray:
    return np.lib.format.open_memmap(path, mode="r")

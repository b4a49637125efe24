"""Corrupted images written to files, in the layouts of CIFAR-10-C and ImageNet-C.

Pixels are rounded to 8 bit; the published code truncates, which makes its files half a level
darker. Everything is written elsewhere in the same folder and moved into place, so whatever has
its final name is complete, and a second call goes on where an interrupted one stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from itertools import groupby, product
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from robustlib import corruptions
from robustlib.core.checks import SEVERITIES, check_name, check_nonempty, check_severity
from robustlib.data import DataError, Split
from robustlib.data.folder import EXTENSIONS, images_below, unreadable
from robustlib.exchange.files import decode, digest_of_files, threads

MANIFEST = "robustlib.json"
"""The file in an exported folder that records what its images were made from."""

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": (".png", {"compress_level": 1}),  # a quarter of the default's time, 15 % more bytes
    "jpeg": (".jpg", {"quality": 85, "optimize": True}),  # as in the ImageNet-C release
}
_BATCH_VALUES = 2**22  # held at a time: 27 images of 224 pixels, 1365 of 32


def export_cifar_c(
    folder: str | Path, split: Split, names: Sequence[str], *, seed: int = 0, progress: bool = True
) -> int:
    """Write corrupted copies of `split` in the layout of CIFAR-10-C.

    `<folder>/<name>.npy` is uint8 (5 n, H, W, 3): n images at severity 1, then at severity 2,
    and so on; `labels.npy`, uint8 (5 n,), holds their labels five times. Images come in the
    order of their ids, so the row of an image is its id, as in CIFAR-10-C. Of a part of a data
    set that part is written, and `ids.npy`, int64 (n,), says which image is where.

    folder: made if missing; files that are there already are kept, and the others added. names:
    of corruptions. seed: as in `corrupt`, which runs on the device of the split.

    Returns how many images it wrote. Raises `ValueError` if the folder holds anything made
    from another split, seed or version, for labels outside 0 .. 255, and for other bad arguments.
    """
    folder = Path(folder)
    _check_names(names)
    order = split.ids.argsort()
    ids, labels = split.ids[order], split.labels[order].cpu().numpy()
    n, (height, width) = len(split), split.images.shape[2:]
    if not n or (ids.diff() == 0).any():
        raise ValueError("the split must hold at least one image, and each id only once.")
    if labels.min() < 0 or labels.max() > 255:
        raise ValueError(
            f"labels.npy holds classes 0 .. 255, got {labels.min()} .. {labels.max()}; "
            "the layout of ImageNet-C has no such limit."
        )
    record = _record("cifar-c", seed, split=split.digest()[:16], n=n, height=height, width=width)
    record["device"] = split.images.device.type
    batch = _batch_size(height, width)

    def corrupted(name: str) -> Iterator[np.ndarray]:
        bar.set_description(name, refresh=False)
        for severity in SEVERITIES:
            for start in range(0, n, batch):
                part = slice(start, start + batch)
                images = split.float_images(order[part])
                yield _as_bytes(corruptions.corrupt(images, name, severity, seed, ids[part]))
                bar.update(len(images))

    with _unfinished(folder, record) as place:
        _write_array(folder / "labels.npy", place, 5 * n, [labels.astype(np.uint8)] * 5)
        if not torch.equal(ids.cpu(), torch.arange(n)):
            _write_array(folder / "ids.npy", place, n, [ids.cpu().numpy()])
        missing = [name for name in names if not (folder / f"{name}.npy").exists()]
        with _bar(len(missing) * 5 * n, progress) as bar:
            for name in missing:
                _write_array(folder / f"{name}.npy", place, 5 * n, corrupted(name))
    return len(missing) * 5 * n


def export_imagenet_c(
    source: str | Path,
    folder: str | Path,
    names: Sequence[str],
    *,
    severities: Sequence[int] = SEVERITIES,
    image_size: int | None = None,
    image_format: str = "png",
    seed: int = 0,
    progress: bool = True,
) -> int:
    """Write corrupted copies of a folder's images in the layout of ImageNet-C.

    The image `a/b.jpg` of `source` becomes `<folder>/<name>/<severity>/a/b.png`. Its id is its
    position among the images of `source`, sorted by top folder (the class) and then by name, as
    `robustlib.data.load` numbers them. Grey, transparent and other images become RGB.

    source: a folder of images at any depth, with or without folders for classes. folder: made if
    missing; files that are there already are kept, and the others added. names: of corruptions.
    image_size: None keeps the size of every image; a number resizes the shorter side to
    `image_size` * 256 / 224 and crops to the centre. image_format: "png" (lossless) or "jpeg"
    (quality 85, as the ImageNet-C release). seed: as in `corrupt`.

    Returns how many images it wrote. Raises `DataError` for an image that can't be read (what
    was written stays), and `ValueError` if two images would get one name, if the folder holds
    anything made otherwise or from images since changed, and for other bad arguments.
    """
    source, folder = Path(source), Path(folder)
    _check_names(names)
    check_nonempty(severities, "severities")
    for severity in severities:
        check_severity(severity)
    if image_size is not None:
        check_image_size(image_size)
    check_name(image_format, FORMATS, "image format")
    files = _list_images(source, folder)
    targets = _renamed(files, FORMATS[image_format][0])
    record = _record("imagenet-c", seed, image_size=image_size, image_format=image_format)
    record |= {"files": digest_of_files(source, files), "pillow": PIL.__version__}
    written = 0
    with _unfinished(folder, record) as place, threads() as pool:
        if image_size is None:
            sizes = list(pool.map(_size_of, [source / file for file in files]))
        else:
            sizes = [(image_size, image_size)] * len(files)
        with _bar(len(files) * len(names) * len(severities), progress) as bar:
            for batch in _batches(sizes):
                images: Tensor | None = None
                for name, severity in product(names, severities):
                    bar.set_description(name, refresh=False)
                    paths = [folder / name / str(severity) / targets[i] for i in batch]
                    rows = [row for row, path in enumerate(paths) if not path.exists()]
                    if rows:
                        if images is None:
                            images = decode([source / files[i] for i in batch], image_size, pool)
                        ids = torch.tensor([batch[row] for row in rows])
                        floats = images[rows].to(torch.float32) / 255.0
                        done = _as_bytes(corruptions.corrupt(floats, name, severity, seed, ids))
                        save = partial(_write_image, place, image_format)
                        list(pool.map(save, [paths[row] for row in rows], done))
                    written += len(rows)
                    bar.update(len(batch))
    return written


def _check_names(names: Sequence[str]) -> None:
    check_nonempty(names, "names")
    for name in names:
        check_name(name, corruptions.names(), "corruption")


def check_image_size(image_size: int) -> None:
    """Raise `ValueError` unless `image_size` is an integer of at least 1."""
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
        raise ValueError(f"image_size must be an integer of at least 1, got {image_size!r}.")


def _batch_size(height: int, width: int) -> int:
    return max(1, _BATCH_VALUES // (3 * height * width))


def _batches(sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Positions of images of the same size, as many as one batch may hold."""
    for size, group in groupby(sorted(range(len(sizes)), key=sizes.__getitem__), sizes.__getitem__):
        same, count = list(group), _batch_size(*size)
        yield from (same[start : start + count] for start in range(0, len(same), count))


def _as_bytes(images: Tensor) -> np.ndarray:
    """uint8 (N, H, W, 3) of float32 (N, 3, H, W) in [0, 1], rounded."""
    return (images * 255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _bar(total: int, progress: bool) -> tqdm[Any]:
    return tqdm(
        total=total,
        unit="image",
        delay=1.0,
        mininterval=1.0,
        file=sys.stdout,
        disable=not progress,
    )


def check_source(source: Path, folder: Path) -> None:
    """Raise `DataError` if there is no `source`, `ValueError` if `folder` lies in it."""
    if not source.is_dir():
        raise DataError(f"there is no folder {source}.")
    if folder.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{folder} lies in {source}, whose images it would join; name another.")


def _list_images(source: Path, folder: Path) -> list[str]:
    check_source(source, folder)
    files = [path.removeprefix("./") for path in images_below(source, ".")]
    if not files:
        raise DataError(f"{source} holds no images ({', '.join(EXTENSIONS)}).")
    return sorted(files, key=lambda path: (path.split("/")[0], path))


def _renamed(files: Sequence[str], suffix: str) -> list[str]:
    origin: dict[str, str] = {}
    for file in files:
        target = str(PurePath(file).with_suffix(suffix))
        if target in origin:
            raise ValueError(f"{origin[target]} and {file} would both become {target}; rename one.")
        origin[target] = file
    return list(origin)


def _size_of(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as image:
            return image.size
    except Exception as error:  # PIL raises many kinds; whichever, the file must be named
        raise unreadable(file, error) from error


def _record(layout: str, seed: int, **settings: Any) -> dict[str, Any]:
    """What determines the content of an exported folder, for its manifest."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be an int, got {seed!r}.")
    return {
        "layout": layout,
        "seed": seed,
        **settings,
        "robustlib": metadata.version("robustlib"),
        "torch": str(torch.__version__),
        "code": corruptions.code_of(corruptions.names()),
    }


@contextmanager
def _unfinished(folder: Path, record: dict[str, Any]) -> Iterator[Path]:
    """A place in `folder` for unfinished files, once its manifest is there and agrees."""
    folder.mkdir(parents=True, exist_ok=True)
    host = platform.node()
    ours = re.compile(rf"\.unfinished-(\d+)-{re.escape(host)}-\w+")
    for path in folder.iterdir():
        found = ours.fullmatch(path.name)
        if found and not _is_running(int(found[1])):
            shutil.rmtree(path, ignore_errors=True)
    place = Path(tempfile.mkdtemp(prefix=f".unfinished-{os.getpid()}-{host}-", dir=folder))
    try:
        _claim(folder, record, place)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _claim(folder: Path, record: dict[str, Any], place: Path) -> None:
    manifest = folder / MANIFEST
    if not manifest.exists():
        for path in folder.iterdir():
            if not path.name.startswith(".") and path != manifest:
                raise ValueError(
                    f"{folder} holds {path.name} and other files of unknown origin (no "
                    f"{MANIFEST}); name another folder, or an empty one."
                )
        (place / MANIFEST).write_text(json.dumps(record, indent=2) + "\n")
        os.replace(place / MANIFEST, manifest)
    try:
        found = json.loads(manifest.read_text())
    except ValueError as error:
        raise ValueError(f"{manifest} is damaged ({error}); name another folder.") from None
    differing = [key for key in {**found, **record} if found.get(key) != record.get(key)]
    if differing:
        raise ValueError(
            f"{folder} was made otherwise: "
            + ", ".join(f"{k} {found.get(k)!r} there, {record.get(k)!r} now" for k in differing)
            + ". Name another folder, or delete this one."
        )


def _write_array(path: Path, place: Path, rows: int, blocks: Iterable[np.ndarray]) -> None:
    """Write an array of `rows` rows from consecutive blocks of them, unless it is there."""
    if path.exists():
        return
    with open(place / path.name, "wb") as file:
        for i, block in enumerate(blocks):
            if i == 0:
                header = np.lib.format.header_data_from_array_1_0(block)
                header["shape"] = (rows, *block.shape[1:])
                np.lib.format.write_array_header_1_0(file, header)
            file.write(block.data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(place / path.name, path)


def _write_image(place: Path, image_format: str, path: Path, pixels: np.ndarray) -> None:
    temporary = place / hashlib.sha256(os.fsencode(path)).hexdigest()
    Image.fromarray(pixels).save(temporary, format=image_format, **FORMATS[image_format][1])
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(temporary, path)

"""Corrupted images written to files, in the layouts of CIFAR-10-C and ImageNet-C.

Pixels are rounded to 8 bit; the published code truncates, which makes its files half a level
darker. Everything is written elsewhere in the same folder and moved into place, so whatever has
its final name is complete, and a second call goes on where an interrupted one stopped.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from robustlib import corruptions
from robustlib.core.checks import (
    SEVERITIES,
    check_name,
    check_names,
    check_nonempty,
    check_seed,
    check_severity,
    check_whole,
)
from robustlib.data import DataError, Split
from robustlib.data.images import (
    ENDINGS,
    digest_of_images,
    images_below,
    read_image,
    shown,
    warn_of_others,
)
from robustlib.exchange.files import (
    MANIFEST,
    SUFFIXES,
    check_agrees,
    checksums,
    claim,
    decode,
    exported_name,
    threads,
)
from robustlib.perturbations import Corruption, corruption_grid

SAVING: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 1},  # a quarter of the default's time, 15 % more bytes
    "jpeg": {"quality": 85, "optimize": True},  # as in the ImageNet-C release
}
_BATCH_VALUES = 2**22  # held at a time: 27 images of 224 pixels, 1365 of 32

OptionsOf = Mapping[str, Mapping[str, Any]]


def export_cifar_c(
    folder: str | Path,
    split: Split,
    names: Sequence[str],
    *,
    options: OptionsOf | None = None,
    seed: int = 0,
    progress: bool = True,
) -> int:
    """Write corrupted copies of `split` in the layout of CIFAR-10-C.

    `<folder>/<name>.npy` is uint8 (5 n, H, W, 3): n images at severity 1, then at severity 2,
    and so on; `labels.npy`, uint8 (5 n,), holds their labels five times. Images come in the
    order of their ids, so the row of an image is its id, as in CIFAR-10-C. Of a part of a data
    set that part is written, and `ids.npy`, int64 (n,), says which image is where.

    folder: made if missing; files that are there already are kept, and the others added. names:
    of corruptions. options: of corruptions, by name, as in `corruption_grid`. seed: as in
    `corrupt`, which runs on the device of the split.

    `robustlib.json` records what the folder was made from, `<name>.json` how a corruption was.
    Returns how many images it wrote. Raises `ValueError` if the folder holds anything made
    from another split, seed or version, or one of these corruptions with other code or options;
    for labels outside 0 .. 255, and for other bad arguments.
    """
    folder, seed = _new_folder(folder), check_seed(seed)
    cells = _cells(names, SEVERITIES, options)
    if not isinstance(split, Split):
        raise ValueError(
            f"the split must be in memory, a Split, got {type(split).__name__}; load it with "
            "in_memory=True, or write image files with export_imagenet_c."
        )
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
    record["sources"] = [split.files[i] for i in order.tolist()] if split.files else []
    record["checksums"] = checksums(split.images[order])
    batch = _batch_size(height, width)

    def corrupted(name: str) -> Iterator[np.ndarray]:
        bar.set_description(name, refresh=False)
        for cell in (cell for cell in cells if cell.name == name):
            for start in range(0, n, batch):
                part = slice(start, start + batch)
                yield _corrupted(cell, split.float_images(order[part]), ids[part], seed)
                bar.update(len(ids[part]))

    with _unfinished(folder, record) as place:
        for name in names:
            _claim_corruption(folder / f"{name}.json", [folder / f"{name}.npy"], cells, name, place)
        _write_array(folder / "labels.npy", place, 5 * n, [labels.astype(np.uint8)] * 5)
        if not np.array_equal(ids.cpu().numpy(), np.arange(n)):
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
    severities: Sequence[int] | Mapping[str, Sequence[int]] = SEVERITIES,
    options: OptionsOf | None = None,
    image_size: int | None = None,
    image_format: str = "png",
    seed: int = 0,
    progress: bool = True,
) -> int:
    """Write corrupted copies of a folder's images in the layout of ImageNet-C.

    The image `a/b.jpg` of `source` becomes `<folder>/<name>/<severity>/a/b.png`. Its id is its
    position among the images of `source`, sorted by top folder (the class) and then by name, as
    `robustlib.data.load` numbers them. How a file becomes RGB: `robustlib.data.read_image`.

    source: a folder of images at any depth, with or without folders for classes. folder: made if
    missing; files that are there already are kept, and the others added. names: of corruptions.
    severities: of all, or by name. options: by name, as in `corruption_grid`. image_size: None
    keeps the size of every image; a number resizes the shorter side to `image_size` * 256 / 224
    and crops to the centre. image_format: "png" (lossless) or "jpeg" (quality 85, as the ImageNet-C
    release). seed: as in `corrupt`.

    `robustlib.json` records what the folder was made from, with the names of the images in the
    order of their ids; `<name>/robustlib.json` how a corruption was made.
    Returns how many images it wrote. Raises `DataError` for an image that can't be read, before
    anything is written; and `ValueError` if two images would get one name, if the folder holds
    anything made otherwise or from images since changed, or one of these corruptions made with
    other code or options, and for other bad arguments. Warns of files that are no images.
    """
    source, folder, seed = Path(source), _new_folder(folder), check_seed(seed)
    cells = _cells(names, severities, options)
    if image_size is not None:
        image_size = check_whole(image_size, "image_size", low=1)
    check_name(image_format, SUFFIXES, "image format")
    files = _list_images(source, folder)
    targets = _renamed(files, image_format)
    record = _record("imagenet-c", seed, image_size=image_size, image_format=image_format)
    record |= {"files": digest_of_images(source, files), "pillow": PIL.__version__}
    record["sources"] = files
    check_agrees(folder / MANIFEST, record, shown(folder))

    def path(cell: Corruption, i: int) -> Path:
        return folder / cell.name / str(cell.severity) / targets[i]

    def missing(i: int) -> int:
        return sum(not path(cell, i).exists() for cell in cells)

    def shape(i: int) -> tuple[int, ...]:
        return read_image(source / files[i], image_size).shape[:2]

    with threads() as pool:
        todo = {i: count for i in range(len(files)) if (count := missing(i))}
        with _bar(len(todo), progress) as bar:
            bar.set_description("checking the images", refresh=False)
            shapes = {}
            for i, found in zip(todo, pool.map(shape, todo), strict=True):
                shapes[i] = found
                bar.update()
        with _unfinished(folder, record) as place, _bar(sum(todo.values()), progress) as bar:
            for name in names:
                (folder / name).mkdir(exist_ok=True)
                others = (folder / name).iterdir()
                _claim_corruption(folder / name / MANIFEST, others, cells, name, place)
            written = 0
            for batch in _batches(shapes):
                images = decode([source / files[i] for i in batch], image_size, pool)
                for cell in cells:
                    bar.set_description(cell.name, refresh=False)
                    rows = [row for row, i in enumerate(batch) if not path(cell, i).exists()]
                    if rows:
                        ids = torch.from_numpy(np.array(batch)[rows])
                        floats = images[rows].to(torch.float32) / 255.0
                        save = partial(_write_image, place, image_format)
                        paths = [path(cell, batch[row]) for row in rows]
                        list(pool.map(save, paths, _corrupted(cell, floats, ids, seed)))
                    written += len(rows)
                    bar.update(len(rows))
    return written


def _new_folder(folder: str | Path) -> Path:
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"{shown(folder)} is a file, but a folder is wanted; name another.")
    return Path(folder)


def _cells(
    names: Sequence[str],
    severities: Sequence[int] | Mapping[str, Sequence[int]],
    options: OptionsOf | None,
) -> list[Corruption]:
    check_names(names, corruptions.names(), "corruption")
    for some in severities.values() if isinstance(severities, Mapping) else [severities]:
        check_nonempty([check_severity(severity) for severity in some], "severities")
    return corruption_grid(names, severities, options)


def _corrupted(cell: Corruption, images: Tensor, ids: Tensor, seed: int) -> np.ndarray:
    """uint8 (N, H, W, 3), rounded, of float32 (N, 3, H, W) in [0, 1]."""
    done = cell.apply(images, ids, ids, None, seed)
    return (done * 255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _batch_size(height: int, width: int) -> int:
    return max(1, _BATCH_VALUES // (3 * height * width))


def _batches(shapes: Mapping[int, tuple[int, ...]]) -> Iterator[list[int]]:
    """Ids of images of the same height and width, as many as one batch may hold."""
    for shape, group in groupby(sorted(shapes, key=shapes.__getitem__), shapes.__getitem__):
        same, count = list(group), _batch_size(*shape)
        yield from (same[start : start + count] for start in range(0, len(same), count))


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
        raise DataError(f"there is no folder {shown(source)}.")
    if folder.resolve().is_relative_to(source.resolve()):
        raise ValueError(
            f"{shown(folder)} lies in {shown(source)}, whose images it would join; name another."
        )


def _list_images(source: Path, folder: Path) -> list[str]:
    check_source(source, folder)
    files, others = images_below(source)
    warn_of_others([source / name for name in others], stacklevel=3)
    if not files:
        raise DataError(f"{shown(source)} holds no images ({', '.join(ENDINGS)}).")
    return sorted(files, key=lambda path: (path.split("/")[0], path))


def _renamed(files: Sequence[str], image_format: str) -> list[str]:
    origin: dict[str, str] = {}
    for file in files:
        target = exported_name(file, image_format)
        if target in origin:
            raise ValueError(
                f"{shown(origin[target])} and {shown(file)} would both become {shown(target)}; "
                "rename one."
            )
        origin[target] = file
    return list(origin)


def _record(layout: str, seed: int, **settings: Any) -> dict[str, Any]:
    """What determines the content of an exported folder, whatever the corruption."""
    return {
        "layout": layout,
        "seed": seed,
        **settings,
        "robustlib": metadata.version("robustlib"),
        "torch": str(torch.__version__),
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
        _check_origin(folder / MANIFEST, folder.iterdir())
        claim(folder / MANIFEST, record, place, shown(folder))
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _check_origin(record: Path, others: Iterable[Path]) -> None:
    """Raise `ValueError` if there is one of `others` without the record, which is made first."""
    found = [path for path in others if not path.name.startswith(".") and path.exists()]
    if found and not record.exists():
        raise ValueError(
            f"{shown(record.parent)} holds {shown(found[0].name)} and other files of unknown "
            f"origin (no {record.name}); name another folder, or an empty one."
        )


def _claim_corruption(
    path: Path, others: Iterable[Path], cells: Sequence[Corruption], name: str, place: Path
) -> None:
    """Record how a corruption is made; others: what only that record accounts for."""
    _check_origin(path, others)
    options = next(cell.options for cell in cells if cell.name == name).for_key()
    code = corruptions.code_of([name])
    record = {"corruption": name, "options": options, "code": code}
    claim(path, record, place, f"{name} in {shown(place.parent)}")


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
    Image.fromarray(pixels).save(temporary, format=image_format, **SAVING[image_format])
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(temporary, path)

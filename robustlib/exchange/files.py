"""What reading and writing share: decoding in threads, and records beside the images."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustlib.data.images import decoding_threads, read_image, shown

MANIFEST = "robustlib.json"
"""The file in an exported folder that records what its images were made from."""

SUFFIXES = {"png": ".png", "jpeg": ".jpg"}


@contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """A pool to decode and encode in; an error or an interruption drops what waits in it."""
    with ThreadPoolExecutor(decoding_threads()) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def decode(files: Sequence[Path], image_size: int | None, pool: ThreadPoolExecutor) -> Tensor:
    """uint8 (N, 3, H, W) of images of one size."""
    pixels = np.stack(list(pool.map(partial(read_image, image_size=image_size), files)))
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def checksums(images: Tensor) -> list[int]:
    """The CRC-32 of each image, uint8 (N, 3, H, W): to find mix-ups, not to be hard to forge."""
    return [zlib.crc32(image.tobytes()) for image in images.cpu().numpy()]


def stem(file: str) -> str:
    """The name of an image without its ending, by which images and their copies are paired."""
    return os.path.splitext(file)[0]


def exported_name(source: str, image_format: str) -> str:
    """Where the copy of an image lies below `<name>/<severity>/`: as it did, but for the ending."""
    return stem(source) + SUFFIXES[image_format]


def read_record(path: Path) -> dict[str, Any]:
    """The record in a file; `ValueError` if it is damaged, `OSError` if it can't be read."""
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
        raise ValueError("it is no JSON object")
    except ValueError as error:
        raise ValueError(f"{shown(path)} is damaged ({error}); name another folder.") from None


def check_agrees(path: Path, record: Mapping[str, Any], what: str) -> None:
    """Raise `ValueError` if there is a record at `path` that says otherwise about `what`."""
    if not path.exists():
        return
    found, wanted = read_record(path), json.loads(json.dumps(record))
    differing = [
        f"{key} {_brief(found.get(key))} there, {_brief(wanted.get(key))} now"
        for key in {**found, **wanted}
        if found.get(key) != wanted.get(key)
    ]
    if differing:
        raise ValueError(
            f"{what} was made otherwise: {', '.join(differing)}. Name another folder, or delete "
            "what is there."
        )


def _brief(value: object) -> str:
    return f"of {len(value)} images" if isinstance(value, list) else repr(value)


def claim(path: Path, record: Mapping[str, Any], place: Path, what: str) -> None:
    """Make `record` the content of `path`, unless another process was faster with the same one.

    place: an own folder on the same disk, for the unfinished file. Of several processes exactly
    one wins; for the others, `ValueError` if the winner's record says otherwise.
    """
    text = json.dumps(record, indent=2) + "\n"
    unfinished = place / f"{path.name}.claim"
    unfinished.write_text(text)
    try:
        os.link(unfinished, path)  # fails if the file exists, unlike a replacement
    except FileExistsError:
        pass
    except OSError:  # a disk without hard links: as exclusive, but not written in one step
        try:
            with open(path, "x") as file:
                file.write(text)
        except FileExistsError:
            pass
    unfinished.unlink()
    check_agrees(path, record, what)

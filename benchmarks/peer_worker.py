"""Times a package beside ours, in an environment of its own: `peer_worker.py PACKAGE`.

A line of JSON in, a line of JSON out. At the start: {"python": ..., "packages": {name: version}}.
Then for each request {"images": path of a uint8 array (n, H, W, 3), "corruption": name,
"severity": 1 to 5, "seconds": s} how long an image took: {"milliseconds": ..., "images": count},
or {"milliseconds": null, "images": 0} if the package lacks the corruption. It goes through the
images once, and stops early after s seconds; what takes a batch gets all images at once.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import numpy as np

# What the package gets, one after another, and what corrupts one of them. None if it can't.
Work = tuple[Sequence[Any], Callable[[Any], object]] | None


def imagecorruptions(images: np.ndarray, corruption: str, severity: int) -> Work:
    import imagecorruptions as package

    return images, lambda image: package.corrupt(
        image, corruption_name=corruption, severity=severity
    )


def corrupt_tta(images: np.ndarray, corruption: str, severity: int) -> Work:
    import corrupt_tta as package

    return images, lambda image: package.corrupt(
        image, corruption_name=corruption, severity=severity
    )


def torch_uncertainty(images: np.ndarray, corruption: str, severity: int) -> Work:
    """Its images are float (3, H, W), or (n, 3, H, W) for the transforms that take batches."""
    import torch
    from torch_uncertainty.transforms import corruption as package

    others = {
        "elastic_transform": "Elastic",
        "jpeg_compression": "JPEGCompression",
        "saturate": "Saturation",
    }
    found = getattr(package, others.get(corruption, corruption.title().replace("_", "")), None)
    if found is None:
        return None
    pixels = torch.from_numpy(images).movedim(3, 1).float().div_(255)
    return (pixels[None] if getattr(found, "batchable", False) else pixels), found(severity)


PACKAGES = {work.__name__: work for work in (imagecorruptions, corrupt_tta, torch_uncertainty)}


def milliseconds(work: Work, count: int, seconds: float) -> dict[str, float | None]:
    """Milliseconds for each of `count` images, which come in len(work[0]) calls."""
    if work is None:
        return {"milliseconds": None, "images": 0}
    inputs, corrupt = work
    calls, taken, start = 0, 0.0, time.perf_counter()
    while calls < len(inputs) and taken <= seconds:
        corrupt(inputs[calls])
        calls, taken = calls + 1, time.perf_counter() - start
    images = calls * count // len(inputs)
    return {"milliseconds": 1000 * taken / images, "images": images}


def main() -> None:
    prepare = PACKAGES[sys.argv[1]]
    answers, sys.stdout = sys.stdout, sys.stderr
    packages: dict[str, str] = {}
    for found in metadata.distributions():  # those on the path first; setuptools brings copies
        packages.setdefault(found.metadata["Name"].lower().replace("_", "-"), found.version)
    print(
        json.dumps({"python": platform.python_version(), "packages": packages}),
        file=answers,
        flush=True,
    )
    loaded: dict[str, np.ndarray] = {}
    for line in sys.stdin:
        request = json.loads(line)
        path, seconds = request.pop("images"), request.pop("seconds")
        if path not in loaded:
            loaded[path] = np.load(path)
        work = prepare(loaded[path], **request)
        print(json.dumps(milliseconds(work, len(loaded[path]), seconds)), file=answers, flush=True)


if __name__ == "__main__":
    main()

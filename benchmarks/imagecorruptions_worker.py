"""Times imagecorruptions, image by image, in an environment of its own.

A line of JSON in, a line of JSON out. At the start: {"python": ..., "packages": {name: version}}.
Then for each request {"images": path of a uint8 array (n, H, W, 3), "corruption": name,
"severity": 1 to 5, "seconds": s} how long an image took: {"milliseconds": ..., "images": count}.
It goes through the images once, and stops early after s seconds.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from importlib import metadata

import imagecorruptions
import numpy as np


def milliseconds(
    images: np.ndarray, corruption: str, severity: int, seconds: float
) -> dict[str, float]:
    count, taken, start = 0, 0.0, time.perf_counter()
    while count < len(images) and taken <= seconds:
        imagecorruptions.corrupt(images[count], corruption_name=corruption, severity=severity)
        count, taken = count + 1, time.perf_counter() - start
    return {"milliseconds": 1000 * taken / count, "images": count}


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    packages: dict[str, str] = {}
    for found in metadata.distributions():  # those on the path first; setuptools brings copies
        packages.setdefault(found.metadata["Name"].lower(), found.version)
    print(
        json.dumps({"python": platform.python_version(), "packages": packages}),
        file=answers,
        flush=True,
    )
    loaded: dict[str, np.ndarray] = {}
    for line in sys.stdin:
        request = json.loads(line)
        path = request.pop("images")
        if path not in loaded:
            loaded[path] = np.load(path)
        print(json.dumps(milliseconds(loaded[path], **request)), file=answers, flush=True)


if __name__ == "__main__":
    main()

"""CIFAR-10 as a folder of JPEG files, as the runs of record read it, from torchvision's original.

    python -m benchmarks.cifar10_jpeg data/cifar10-jpeg

Files are `train/<class>/0000.jpg` and so on, numbered within their class in the order of the
original, at quality 75 with 4:2:0 chroma. The runs of record took such a folder made elsewhere,
whose order within a class may differ: compare the fingerprint in `results/cifar10/`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from PIL import Image

from robustlib import data
from robustlib.data import Dataset, Split


def write_folder(dataset: Dataset, folder: Path) -> None:
    """Write both splits of a data set as JPEG files, a folder for each class.

    Raises:
        ValueError: the folder is there already.
    """
    if folder.exists():
        raise ValueError(f"{folder} is there already; name another folder, or delete it.")
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        assert isinstance(split, Split)
        written: Counter[str] = Counter()
        for pixels, label in zip(split.images, split.labels.tolist(), strict=True):
            kind = dataset.classes[label]
            place = folder / name / kind
            place.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            image.save(place / f"{written[kind]:04}.jpg", quality=75)
            written[kind] += 1


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cifar10_jpeg",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where the images go")
    folder = parser.parse_args().folder
    write_folder(data.load("cifar10"), folder)
    print(f"fingerprint {data.load('folder', root=folder, image_size=32).fingerprint}")


if __name__ == "__main__":
    main()

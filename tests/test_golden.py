"""The pixels of every corruption, pinned: a change of theirs must be meant.

`python -m tests.test_golden` writes the checksums anew. They are sums of pixels with pseudo-random
signs over the root of their number: one pixel changed by 0.2 is noticed, the last bits of another
processor are not.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustlib.core.randomness import derive_seed
from robustlib.corruptions import corrupt, names

FILE = Path(__file__).with_name("golden_corruptions.csv")
SIDES = (32, 64, 224)
SEVERITIES = (1, 3, 5)
TOLERANCE = 1e-3


def picture(side: int) -> Tensor:
    """Ramps, a square and a grating, exact in float32: two images (2, 3, side, side)."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    square = (x > side // 4) & (x < side // 2) & (y > side // 3)
    channels = (x * 5 + y, x + y * 3, 255 - x * 2 - y)
    image = torch.stack([c % 256 for c in channels]) * torch.where(square, 1, 2) // 2
    return torch.stack((image, image.flip(2) ^ ((x // 2) % 2 * 32))).float() / 255


def checksums(images: Tensor) -> tuple[float, float]:
    """Two signed sums, each the same to rounding wherever it is computed."""
    values = images.double().flatten()
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (2, len(values)), generator=generator).double() * 2 - 1
    first, second = (signs @ values / len(values) ** 0.5).tolist()
    return first, second


def entry(name: str, side: int, severity: int) -> tuple[float, float]:
    seed = derive_seed("golden", side)
    return checksums(corrupt(picture(side), name, severity, seed, torch.tensor([3, 2**40])))


def read() -> dict[tuple[str, int, int], tuple[float, float]]:
    with FILE.open(newline="") as file:
        return {
            (row["name"], int(row["side"]), int(row["severity"])): (
                float(row["first"]),
                float(row["second"]),
            )
            for row in csv.DictReader(file)
        }


def write() -> None:
    with FILE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("name", "side", "severity", "first", "second"))
        for name in names():
            for side in SIDES:
                for severity in SEVERITIES:
                    first, second = entry(name, side, severity)
                    writer.writerow((name, side, severity, f"{first:.5f}", f"{second:.5f}"))


@pytest.mark.parametrize("name", names())
def test_pixels_are_as_before(name: str) -> None:
    golden = read()
    for side in SIDES:
        for severity in SEVERITIES:
            expected = golden[name, side, severity]
            found = entry(name, side, severity)
            assert found == pytest.approx(expected, abs=TOLERANCE), (side, severity)


def test_a_single_pixel_is_noticed() -> None:
    images = picture(32)
    before = checksums(images)
    images[1, 2, 7, 9] += 0.2
    assert abs(checksums(images)[0] - before[0]) > TOLERANCE


if __name__ == "__main__":
    write()

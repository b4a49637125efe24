"""Small pictures of corruptions: generated images, clean and at five severities."""

from __future__ import annotations

import functools
import io

import torch
from PIL import Image
from torch import Tensor

from robustlib import corruptions
from robustlib.data import Split, shapes10

SHOWN = (14, 16, 37)
"""Which test images of shapes10."""

SEVERITIES = (1, 2, 3, 4, 5)


def clean() -> bytes:
    """The images as they are, one below the other: PNG, 32 px wide."""
    return png(_sample().float_images())


def corrupted(name: str, severity: int) -> bytes:
    """The same corrupted. Raises `UnknownNameError` for an unknown corruption."""
    return png(_corrupted(name, severity))


def thumbnail(name: str) -> bytes:
    """The first of the images, corrupted at severity 3: PNG, 32 by 32 px."""
    return png(_corrupted(name, 3)[:1])


def png(images: Tensor) -> bytes:
    """Images (N, 3, H, W), float32 in [0, 1], one below the other as PNG."""
    column = torch.cat(list(images), dim=1)
    pixels = (column * 255).round().to(torch.uint8).permute(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, format="PNG", optimize=True)
    return file.getvalue()


@functools.cache
def _sample() -> Split:
    return shapes10.generate("test", SHOWN)


def _corrupted(name: str, severity: int) -> Tensor:
    sample = _sample()
    return corruptions.corrupt(sample.float_images(), name, severity, ids=sample.ids)

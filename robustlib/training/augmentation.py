"""What every recipe does to its images first: random views of each, by name.

Flips and shifts suit photographs of small objects. A flip changes what digits, text and signs
say, so for these there are shifts alone; for larger images, crops of random size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from robustlib.core.devices import sent
from robustlib.core.identity import Registry
from robustlib.core.randomness import derive_seed
from robustlib.corruptions.filters import sample_affine


def unchanged(images: Tensor, *, seed: int) -> Tensor:
    """`images` themselves."""
    return images


def flip_and_shift(images: Tensor, *, seed: int, flip: bool = True) -> Tensor:
    """Random horizontal flips and shifts.

    Each image is mirrored with probability 1/2 and moved by up to an eighth of its side on both
    axes, edges reflected (He et al. 2016 pad with zeros; reflection is this project's choice).

    Args:
        images: (N, 3, H, W), float32 or uint8.
        seed: source of the draws.
        flip: whether images are mirrored.

    Returns the same type, (N, 3, H, W), channels last.
    """
    count, _, height, width = images.shape
    generator = torch.Generator().manual_seed(derive_seed("flip_and_shift", seed))
    rows = sent(_source_index(count, height, False, generator), images.device)
    columns = sent(_source_index(count, width, flip, generator), images.device)
    plane = torch.arange(3 * count, device=images.device).view(count, 3, 1)
    lines = images.reshape(-1, width).index_select(0, (height * plane + rows[:, None]).flatten())
    moved = lines.view_as(images).gather(3, columns[:, None, None].expand(images.shape))
    return moved.contiguous(memory_format=torch.channels_last)


def _source_index(count: int, side: int, flip: bool, generator: torch.Generator) -> Tensor:
    reach = side // 8
    shift = torch.randint(-reach, reach + 1, (count, 1), generator=generator)
    index = torch.arange(side) + shift
    index = side - 1 - (side - 1 - index.abs()).abs()  # reflected at both edges
    if flip:
        flipped = torch.randint(2, (count, 1), generator=generator).bool()
        index = torch.where(flipped, side - 1 - index, index)
    return index


def shift(images: Tensor, *, seed: int) -> Tensor:
    """`flip_and_shift` without the flips."""
    return flip_and_shift(images, seed=seed, flip=False)


def resized_crop(images: Tensor, *, seed: int) -> Tensor:
    """A crop of random area and shape, enlarged to the whole image, and a random flip.

    8 to 100 % of the area, sides in a ratio of 3/4 to 4/3, evenly on a logarithmic scale (Szegedy
    et al. 2015, as in torchvision's RandomResizedCrop; a side that would be too long is cut to
    the image's, where torchvision draws again). Bilinear. A crop never shrinks, so it needs no
    antialiasing.

    Args:
        images: (N, 3, H, W), float32 in [0, 1] or uint8.
        seed: source of the draws.

    Returns float32 (N, 3, H, W), in [0, 1] or, for uint8, in [0, 255].
    """
    count, _, height, width = images.shape
    generator = torch.Generator().manual_seed(derive_seed("resized_crop", seed))
    area, shape, down, across, mirror = torch.rand(
        5, count, generator=generator, dtype=torch.float32
    )
    area = 0.08 + 0.92 * area
    ratio = torch.exp(math.log(4 / 3) * (2 * shape - 1))
    crop_height = (area / ratio).sqrt().mul(math.sqrt(height * width)).clamp(1, height)
    crop_width = (area * ratio).sqrt().mul(math.sqrt(height * width)).clamp(1, width)
    top, left = down * (height - crop_height), across * (width - crop_width)
    sign = torch.where(mirror < 0.5, -1.0, 1.0).float()
    zero = torch.zeros(count, dtype=torch.float32)
    matrix = (
        *(sign * crop_width / width, zero, zero, crop_height / height),
        *(left + (crop_width - width) / 2, top + (crop_height - height) / 2),
    )
    placed = sent(torch.stack(matrix), images.device).unbind()
    return sample_affine(images.to(torch.float32), placed, "mirror")


AUGMENTATIONS: Registry[Callable[..., Tensor]] = Registry(
    none=unchanged,
    shift=shift,
    flip_and_shift=flip_and_shift,
    resized_crop=resized_crop,
)
"""Functions of images (N, 3, H, W), uint8, and a seed, by the name in `Budget.augmentation`."""

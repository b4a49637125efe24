"""Common corruptions: batched, seeded, without dependencies besides torch.

    corrupted = corrupt(images, "fog", severity=3, seed=0)

A batch is float32, (N, 3, H, W), RGB, in [0, 1]. What an image becomes depends on
(seed, image id, name, severity) and nothing else: not on the batch, its order or the worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from robustlib.checks import (
    check_images,
    check_name,
    check_nonempty,
    check_option,
    check_severity,
)
from robustlib.corruptions import blur, digital, geometric, light, noise, occlusion, weather
from robustlib.corruptions.registry import (
    FAMILIES,
    OVERLAP,
    REGISTRY,
    AmountRange,
    CorruptionInfo,
)
from robustlib.randomness import Stream, derive_seed

__all__ = [
    "CorruptionInfo",
    "Severity",
    "augment",
    "check_strength",
    "corrupt",
    "families",
    "info",
    "names",
    "suites",
]

_IMAGENET_C_15 = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
_IMAGENET_C_EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
_NOC = (
    *("shear", "rain", "hue", "quantization"),
    *("laugros_brightness", "border", "blur", "vertical_artifacts"),
)

# Importing a family's module enters its corruptions into the registry.
_MODULES = (noise, blur, weather, digital, geometric, light, occlusion)

# On a CPU images go through in pieces that stay in the cache.
_CPU_PIECE = 2**21
_GROUPS = 4

Severity = int | Literal["random"]


def _suites() -> dict[str, tuple[str, ...]]:
    order = {family: i for i, family in enumerate(FAMILIES)}
    every = tuple(sorted(REGISTRY, key=lambda name: order[REGISTRY[name].family]))
    return {
        "all": every,
        "imagenet_c": _IMAGENET_C_15 + _IMAGENET_C_EXTRA,
        "imagenet_c_15": _IMAGENET_C_15,
        "imagenet_c_extra": _IMAGENET_C_EXTRA,
        "laugros": tuple(name for name in every if REGISTRY[name].source == OVERLAP),
        "noc": _NOC,
    }


_SUITES = _suites()


def suites() -> tuple[str, ...]:
    """Return the names that `names` takes."""
    return tuple(_SUITES)


def names(suite: str = "all") -> tuple[str, ...]:
    """Return the corruption names of a suite, in a fixed order.

    "all"; "imagenet_c", the nineteen of Hendrycks and Dietterich (2019); "imagenet_c_15", its
    fifteen main ones; "imagenet_c_extra", its four extra ones; "laugros", the candidates of
    Laugros et al. (2021); "noc", the eight of them in ImageNet-NOC. Where both papers have a
    name, that of ImageNet-C keeps it: the others are laugros_brightness, laugros_contrast and
    laugros_pixelate.
    Raises `UnknownNameError` for another suite.
    """
    return _SUITES[check_name(suite, _SUITES, "suite")]


def info(name: str) -> CorruptionInfo:
    """Return family, source, randomness and severities of a corruption.

    Raises `UnknownNameError` for a name that isn't registered.
    """
    return REGISTRY[check_name(name, REGISTRY, "corruption")]


def families() -> dict[str, tuple[str, ...]]:
    """Return the names of every family, in the order of `names()`."""
    return {
        family: tuple(name for name in _SUITES["all"] if REGISTRY[name].family == family)
        for family in FAMILIES
    }


def _check_ids(ids: Tensor | None, images: Tensor) -> Tensor:
    n = images.shape[0]
    if ids is None:
        return torch.arange(n, device=images.device)
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.shape != (n,):
        found = f"{ids.dtype} of {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids)
        raise ValueError(f"ids must be int64 of shape ({n},), one for each image, got {found}.")
    return ids.to(images.device)


def _check_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be an int, got {seed!r}.")
    return seed


def check_strength(severity: Severity) -> None:
    """Raise `ValueError` unless `severity` is 1 to 5 or "random"."""
    if isinstance(severity, str) and severity != "random":
        raise ValueError(f"severity must be 1 to 5 or 'random', got {severity!r}.")
    if not isinstance(severity, str):
        check_severity(severity)


@torch.no_grad()
def _apply(
    images: Tensor,
    name: str,
    severity: Severity,
    seed: int,
    ids: Tensor,
    severities_for: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Tensor:
    if images.numel() == 0:
        return images.clone()
    side = severities_for or min(images.shape[2:])
    if severity == "random" and not isinstance(REGISTRY[name].strengths, AmountRange):
        drawn = Stream(seed, ids, name).integers(1, 6)
        out = torch.empty_like(images)
        for level in drawn.unique().tolist():
            chosen = (drawn == level).nonzero().squeeze(1)
            out[chosen] = _apply(images[chosen], name, level, seed, ids[chosen], side, options)
        return out
    piece = len(images)
    if images.device.type == "cpu":
        piece = max(1, _CPU_PIECE // images[0].numel())
    images = images.contiguous()
    out = torch.empty_like(images)
    for part, part_ids, target in zip(*(x.split(piece) for x in (images, ids, out)), strict=True):
        result = _apply_piece(part, name, severity, seed, part_ids, side, options or {})
        torch.clamp(result, 0, 1, out=target)
    return out


def _apply_piece(
    images: Tensor,
    name: str,
    severity: Severity,
    seed: int,
    ids: Tensor,
    side: int,
    options: Mapping[str, Any],
) -> Tensor:
    corruption = REGISTRY[name]
    level = 0 if severity == "random" else severity
    stream = Stream(seed, ids, name, level)
    if isinstance(corruption.strengths, AmountRange):
        if level:
            fraction = torch.full((len(images),), (level - 1) / 4, device=images.device)
        else:
            fraction = stream.uniform()
        parameters = {corruption.strengths.name: corruption.strengths.amount(fraction, side)}
    else:
        parameters = corruption.parameters(side)[level - 1]
    arguments = (images, stream) if corruption.random else (images,)
    return corruption.function(*arguments, **parameters, **options)


def corrupt(
    images: Tensor,
    name: str,
    severity: Severity = 3,
    seed: int = 0,
    ids: Tensor | None = None,
    *,
    severities_for: int | None = None,
    **options: Any,
) -> Tensor:
    """Return a corrupted copy of a batch.

    images: float32 (N, 3, H, W) in [0, 1], on any device; never modified. name: one of
    `names()`. severity: 1 to 5, or "random" for one drawn for each image: evenly from 1 to 5 for
    the corruptions of ImageNet-C, an amount even over the published range for those of
    Laugros et al. seed: any int. ids: int64 (N,), the identity of each image, say its index in
    the test set; positions 0 .. N - 1 if None, which ties the result to the order of the batch.
    severities_for: take the severities meant for images of this side in pixels; None for that
    of these images, which is the shorter one (see `CorruptionInfo.parameters` and
    `CorruptionInfo.table_side`). options: those of the corruption, `info(name).options`:
    `legacy=True` for the pixels that the published glass_blur duplicates instead of swapping
    them, `photographs=folder` for a frost from photographs.
    Returns float32 (N, 3, H, W) in [0, 1], without gradient.

    An image's pixels depend on (seed, id, name, severity) only, to the bit on one device and
    to rounding across devices.
    Raises `UnknownNameError` for an unknown name or option, `ValueError` for any other bad
    argument.
    """
    check_name(name, REGISTRY, "corruption")
    check_strength(severity)
    _check_seed(seed)
    for option in options:
        check_option(option, info(name).options, "corruption", name)
    if severities_for is not None:
        info(name).parameters(severities_for)
    check_images(images)
    return _apply(images, name, severity, seed, _check_ids(ids, images), severities_for, options)


def augment(
    images: Tensor,
    names: Sequence[str],
    *,
    seed: int,
    ids: Tensor,
    severity: Severity = "random",
    groups: int | None = _GROUPS,
) -> Tensor:
    """Return a corrupted copy of a training batch, with corruptions and severities drawn.

    The batch is cut into `groups` consecutive parts of about equal size. Each part gets one name
    of `names`, drawn evenly from `seed`, and one severity from 1 to 5; those of Laugros et al.
    get an amount for each image, even over the published range. Four groups are this project's
    choice: they keep the work batched. groups=None draws name and severity for each image by
    itself, as `corrupt(..., severity="random")` does, and takes several times as long on small
    images. A number as `severity` fixes it. So that the draws change, pass another seed at each
    step. Other arguments and errors as in `corrupt`.
    """
    check_nonempty(names, "names")
    for name in names:
        check_name(name, REGISTRY, "corruption")
    check_strength(severity)
    _check_seed(seed)
    if groups is not None and (isinstance(groups, bool) or groups < 1):
        raise ValueError(f"groups must be at least 1, or None for each image, got {groups!r}.")
    check_images(images)
    ids = _check_ids(ids, images)
    if images.numel() == 0:
        return images.clone()
    out = torch.empty_like(images)
    if groups is None:
        picks = Stream(seed, ids, "augment").integers(0, len(names))
        for pick in picks.unique().tolist():
            chosen = (picks == pick).nonzero().squeeze(1)
            out[chosen] = _apply(images[chosen], names[pick], severity, seed, ids[chosen])
        return out
    groups = min(groups, len(images))
    for i, (part, part_ids, target) in enumerate(
        zip(*(x.tensor_split(groups) for x in (images, ids, out)), strict=True)
    ):
        draw = derive_seed("augment", seed, i)
        name = names[draw // 5 % len(names)]
        level = severity
        if severity == "random" and not isinstance(REGISTRY[name].strengths, AmountRange):
            level = draw % 5 + 1
        target.copy_(_apply(part, name, level, seed, part_ids))
    return out

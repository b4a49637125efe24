"""Common corruptions: batched, seeded, without dependencies besides torch.

    corrupted = corrupt(images, "fog", severity=3, seed=0)

A batch is float32, (N, 3, H, W), RGB, in [0, 1]. What an image becomes depends on
(seed, image id, name, severity) and nothing else: not on the batch, its order or the worker.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustlib.checks import check_images, check_name, check_nonempty, check_severity
from robustlib.corruptions import blur, digital, geometric, light, noise, occlusion, weather
from robustlib.corruptions.registry import FAMILIES, OVERLAP, REGISTRY, CorruptionInfo
from robustlib.randomness import Stream, derive_seed

__all__ = ["CorruptionInfo", "augment", "corrupt", "families", "info", "names"]

_IMAGENET_C_15 = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
_IMAGENET_C_EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")

# Importing a family's module enters its corruptions into the registry.
_MODULES = (noise, blur, weather, digital, geometric, light, occlusion)

# On a CPU images go through in pieces that stay in the cache.
_CPU_PIECE = 2**18
_MAX_GROUPS = 4


def _suites() -> dict[str, tuple[str, ...]]:
    order = {family: i for i, family in enumerate(FAMILIES)}
    every = tuple(sorted(REGISTRY, key=lambda name: order[REGISTRY[name].family]))
    suites = {
        "all": every,
        "imagenet_c": _IMAGENET_C_15 + _IMAGENET_C_EXTRA,
        "imagenet_c_15": _IMAGENET_C_15,
        "imagenet_c_extra": _IMAGENET_C_EXTRA,
        "laugros": tuple(name for name in every if REGISTRY[name].source == OVERLAP),
    }
    return {suite: members for suite, members in suites.items() if set(members) <= set(every)}


_SUITES = _suites()


def names(suite: str = "all") -> tuple[str, ...]:
    """Return the corruption names of a suite, in a fixed order.

    "all"; "imagenet_c", the nineteen of Hendrycks and Dietterich (2019); "imagenet_c_15", its
    fifteen main ones; "imagenet_c_extra", its four extra ones; "laugros", those candidates of
    Laugros et al. (2021) that are implemented here, not all of theirs.
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


@torch.no_grad()
def _apply(images: Tensor, name: str, severity: int, seed: int, ids: Tensor) -> Tensor:
    if images.numel() == 0:
        return images.clone()
    images = images.contiguous()
    corruption = REGISTRY[name]
    parameters = corruption.parameters(min(images.shape[2:]))[severity - 1]
    piece = len(images)
    if images.device.type == "cpu":
        piece = max(1, _CPU_PIECE // images[0].numel())
    results = []
    for part, part_ids in zip(images.split(piece), ids.split(piece), strict=True):
        if corruption.random:
            result = corruption.function(part, Stream(seed, part_ids, name, severity), **parameters)
        else:
            result = corruption.function(part, **parameters)
        results.append(result.clamp_(0, 1))
    return results[0] if len(results) == 1 else torch.cat(results)


def corrupt(
    images: Tensor, name: str, severity: int = 3, seed: int = 0, ids: Tensor | None = None
) -> Tensor:
    """Return a corrupted copy of a batch.

    images: float32 (N, 3, H, W) in [0, 1], on any device; never modified. name: one of
    `names()`. severity: 1 to 5. seed: any int. ids: int64 (N,), the identity of each image,
    say its index in the test set; positions 0 .. N - 1 if None, which ties the result to the
    order of the batch. Returns float32 (N, 3, H, W) in [0, 1], without gradient.

    An image's pixels depend on (seed, id, name, severity) only, to the bit on one device and
    to rounding across devices. Severities for other sides than the published 32, 64 and 224: see
    `CorruptionInfo.parameters`.
    Raises `UnknownNameError` for an unknown name, `ValueError` for any other bad argument.
    """
    check_name(name, REGISTRY, "corruption")
    check_severity(severity)
    _check_seed(seed)
    check_images(images)
    return _apply(images, name, severity, seed, _check_ids(ids, images))


def augment(images: Tensor, names: Sequence[str], *, seed: int, ids: Tensor) -> Tensor:
    """Return a corrupted copy of a training batch, with corruption and severity drawn.

    The batch is cut into at most four consecutive groups of about equal size. Each group gets
    one name of `names` and one severity from 1 to 5, drawn evenly from `seed`. Groups, rather
    than a draw for each image, are this project's choice: they keep the work batched. So that
    the draws change, pass another seed at each step. Arguments and errors as in `corrupt`.
    """
    check_nonempty(names, "names")
    for name in names:
        check_name(name, REGISTRY, "corruption")
    _check_seed(seed)
    check_images(images)
    ids = _check_ids(ids, images)
    if images.numel() == 0:
        return images.clone()
    groups = min(_MAX_GROUPS, len(images))
    results = []
    for i, (part, part_ids) in enumerate(
        zip(images.tensor_split(groups), ids.tensor_split(groups), strict=True)
    ):
        draw = derive_seed("augment", seed, i)
        severity, pick = draw % 5 + 1, draw // 5 % len(names)
        results.append(_apply(part, names[pick], severity, seed, part_ids))
    return torch.cat(results)

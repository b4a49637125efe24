"""Common corruptions: batched and seeded, on any device.

    corrupted = corrupt(images, "fog", severity=3, seed=0)

A batch is float32, (N, 3, H, W), RGB, in [0, 1]. What an image becomes depends on
(seed, image id, name, severity) and nothing else: not on the batch, its order or the worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from robustlib.core.checks import (
    check_ids,
    check_images,
    check_name,
    check_names,
    check_options,
    check_seed,
    check_severity,
    check_whole,
)
from robustlib.core.identity import Registry, fingerprint
from robustlib.core.randomness import Stream, derive_seed
from robustlib.corruptions import (
    blur,
    digital,
    geometric,
    light,
    noise,
    occlusion,
    patterns,
    weather,
)
from robustlib.corruptions.registry import (
    FAMILIES,
    IMAGENET_C,
    IMAGENET_C_BAR,
    OVERLAP,
    REGISTRY,
    AmountRange,
    CorruptionInfo,
)

__all__ = [
    "CorruptionInfo",
    "Severity",
    "augment",
    "check_options_by_name",
    "check_strength",
    "code_of",
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
_MODULES = (noise, blur, weather, digital, geometric, light, occlusion, patterns)

# On a CPU images go through in pieces, so that each thread's values stay in its cache.
_CPU_PIECE = 2**18
_GROUPS = 4

Severity = int | Literal["random"]


def _suites() -> dict[str, tuple[str, ...]]:
    order = {family: i for i, family in enumerate(FAMILIES)}
    every = tuple(sorted(REGISTRY, key=lambda name: order[REGISTRY[name].family]))

    def of(*sources: str) -> tuple[str, ...]:
        return tuple(name for name in every if REGISTRY[name].source in sources)

    return {
        "all": every,
        "study": of(IMAGENET_C, OVERLAP),
        "imagenet_c": _IMAGENET_C_15 + _IMAGENET_C_EXTRA,
        "imagenet_c_15": _IMAGENET_C_15,
        "imagenet_c_extra": _IMAGENET_C_EXTRA,
        "imagenet_c_bar": of(IMAGENET_C_BAR),
        "laugros": of(OVERLAP),
        "noc": _NOC,
    }


_SUITES = Registry(_suites())


def suites() -> tuple[str, ...]:
    """Return the names that `names` takes."""
    return tuple(_SUITES)


def names(suite: str = "all") -> tuple[str, ...]:
    """Return the corruption names of a suite, in a fixed order.

    "all"; "imagenet_c", the nineteen of Hendrycks and Dietterich (2019); "imagenet_c_15", its
    fifteen main ones; "imagenet_c_extra", its four extra ones; "laugros", the candidates of
    Laugros et al. (2021); "noc", the eight of them in ImageNet-NOC; "study", the 42 of
    "imagenet_c" and "laugros", which this project trains on and compares; "imagenet_c_bar", the
    ten of Mintun et al. (2021), chosen to be unlike ImageNet-C. Where the first two papers have a
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


def check_strength(severity: Severity) -> Severity:
    """Return `severity` if it is 1 to 5 or "random"; raise `ValueError` otherwise."""
    if isinstance(severity, str):
        if severity != "random":
            raise ValueError(f"severity must be 1 to 5 or 'random', got {severity!r}.")
        return severity
    return check_severity(severity)


def check_options_by_name(
    options: Mapping[str, Mapping[str, Any]] | None, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return options by corruption, as {"glass_blur": {"swap": True}}, coerced; none for None.

    Raises `UnknownNameError` for a corruption that isn't among `names` or an unknown option, and
    `ValueError` for a bad value.
    """
    return {
        check_name(name, names, "corruption with options; named are"): check_options(
            given, info(name).options, "corruption", name
        )
        for name, given in (options or {}).items()
    }


def code_of(names: Iterable[str]) -> str:
    """A hash of all that determines the pixels of these corruptions, but for seeds and options.

    See `robustlib.core.identity`. Raises `UnknownNameError`.
    """
    return fingerprint(corrupt, *(info(name) for name in names))


def _apply(
    images: Tensor,
    name: str,
    severity: Severity,
    seed: int,
    ids: Tensor,
    options: Mapping[str, Any],
    severities_for: int | None = None,
) -> Tensor:
    if images.numel() == 0:
        return images.clone()
    side = severities_for or min(images.shape[2:])
    if severity == "random" and not isinstance(REGISTRY[name].strengths, AmountRange):
        drawn = Stream(seed, ids, name).integers(1, 6)
        out = torch.empty_like(images)
        for level in drawn.unique().tolist():
            chosen = (drawn == level).nonzero().squeeze(1)
            out[chosen] = _apply(images[chosen], name, level, seed, ids[chosen], options, side)
        return out
    piece = len(images)
    if images.device.type == "cpu":
        piece = max(1, _CPU_PIECE * torch.get_num_threads() // images[0].numel())
    images = images.contiguous()
    out = torch.empty_like(images)
    level = 0 if severity == "random" else severity
    streams = Stream(seed, ids, name, level).split(piece)
    with torch.autocast(images.device.type, enabled=False):
        for part, stream, target in zip(
            images.split(piece), streams, out.split(piece), strict=True
        ):
            torch.clamp(_apply_piece(part, name, level, stream, options, side), 0, 1, out=target)
    return out


def _apply_piece(
    images: Tensor, name: str, level: int, stream: Stream, options: Mapping[str, Any], side: int
) -> Tensor:
    """level: severity, or 0 for a random amount."""
    corruption = REGISTRY[name]
    if isinstance(corruption.strengths, AmountRange):
        n = len(images)
        fraction = images.new_full((n,), (level - 1) / 4) if level else stream.uniform()
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
    ids: Tensor | Sequence[int] | None = None,
    *,
    severities_for: int | None = None,
    **options: Any,
) -> Tensor:
    """Return a corrupted copy of a batch.

    images: float32 (N, 3, H, W) in [0, 1], on any device; never modified. name: one of
    `names()`. severity: 1 to 5, or "random" for one drawn for each image: an amount even over
    the published range for the corruptions of Laugros et al., evenly from 1 to 5 for the others.
    seed: any int. ids: (N,) whole numbers, the identity of each image, say its index in the test
    set; positions 0 .. N - 1 if None, which ties the result to the order of the batch.
    severities_for: take the severities meant for images of this side in pixels; None for that
    of these images, which is the shorter one (see `CorruptionInfo.parameters` and
    `CorruptionInfo.table_side`). options: those of the corruption, `info(name).options`:
    `swap=True` for a glass_blur that swaps pixels instead of duplicating them, as ImageNet-C and
    CIFAR-10-C do, `photographs=folder` for their frost.
    Returns float32 (N, 3, H, W) in [0, 1], without gradient.

    An image's pixels depend on (seed, id, name, severity) only, to the bit on one device and
    to rounding across devices.
    Raises `UnknownNameError` for an unknown name or option, `ValueError` for any other bad
    argument.
    """
    check_name(name, REGISTRY, "corruption")
    severity, seed = check_strength(severity), check_seed(seed)
    options = check_options(options, info(name).options, "corruption", name)
    if severities_for is not None:
        severities_for = check_whole(severities_for, "severities_for", low=1)
    images = check_images(images).detach()
    ids = check_ids(ids, len(images)).to(images.device)
    return _apply(images, name, severity, seed, ids, options, severities_for)


def augment(
    images: Tensor,
    names: Sequence[str],
    *,
    seed: int,
    ids: Tensor | Sequence[int],
    severity: Severity = "random",
    groups: int | None = _GROUPS,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Tensor:
    """Return a corrupted copy of a training batch, with corruptions and severities drawn.

    The batch is cut into `groups` consecutive parts of about equal size. Each part gets one name
    of `names`, drawn evenly from `seed`, and one severity from 1 to 5; those of Laugros et al.
    get an amount for each image, even over the published range. Four groups are this project's
    choice: they keep the work batched. groups=None draws name and severity for each image by
    itself, as `corrupt(..., severity="random")` does, and takes several times as long on small
    images. A number as `severity` fixes it. So that the draws change, pass another seed at each
    step. options: by corruption, as {"glass_blur": {"swap": True}}. Other arguments and errors as
    in `corrupt`.
    """
    names = check_names(names, REGISTRY, "corruption")
    options = check_options_by_name(options, names)
    severity, seed = check_strength(severity), check_seed(seed)
    if groups is not None:
        groups = check_whole(groups, "groups, if not None for each image,", low=1)
    images = check_images(images).detach()
    ids = check_ids(ids, len(images)).to(images.device)
    return augment_unchecked(images, names, seed, ids, severity, groups, options)


def augment_unchecked(
    images: Tensor,
    names: Sequence[str],
    seed: int,
    ids: Tensor,
    severity: Severity = "random",
    groups: int | None = _GROUPS,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Tensor:
    """`augment` of what is known to be right, without the checks, which wait for a GPU."""
    options = options or {}
    if images.numel() == 0:
        return images.clone()
    out = torch.empty_like(images)
    if groups is None:
        picks = Stream(seed, ids, "augment").integers(0, len(names))
        for pick in picks.unique().tolist():
            chosen = (picks == pick).nonzero().squeeze(1)
            given = options.get(names[pick], {})
            out[chosen] = _apply(images[chosen], names[pick], severity, seed, ids[chosen], given)
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
        target.copy_(_apply(part, name, level, seed, part_ids, options.get(name, {})))
    return out

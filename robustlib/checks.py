"""Checks of user input, shared by every layer. Each raises before any work starts."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

SEVERITIES = (1, 2, 3, 4, 5)


class UnknownNameError(ValueError):
    """A name that is not in a registry. The message suggests the nearest one."""


def check_name(name: str, allowed: Iterable[str], kind: str) -> str:
    """Return `name` if it is one of `allowed`.

    `kind` says in the message what is being named, for example "corruption".
    Raises `UnknownNameError` with the nearest allowed name and the whole list.
    """
    allowed = list(allowed)
    if name in allowed:
        return name
    near = difflib.get_close_matches(str(name), allowed, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UnknownNameError(f"unknown {kind} {name!r}.{hint} Allowed: {', '.join(allowed)}.")


def keyword_options(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters of a registered function, with their defaults."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def check_option(option: str, allowed: Iterable[str], kind: str, owner: str) -> str:
    """Return `option` if it is one of those `allowed` for `owner`, a registered name.

    `kind` says in the message what `owner` is, for example "attack".
    Raises `ValueError` where no option is allowed, `UnknownNameError` otherwise.
    """
    allowed = list(allowed)
    if not allowed:
        raise ValueError(f"the {kind} {owner!r} takes no options, got {option!r}.")
    return check_name(option, allowed, f"option of {owner!r}")


def check_severity(severity: int) -> int:
    """Return `severity` if it is an integer from 1 to 5; raise `ValueError` otherwise."""
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise ValueError(f"severity must be an integer from 1 to 5, got {severity!r}.")
    return int(severity)


def check_images(images: Tensor) -> Tensor:
    """Return `images` if it is an image batch: float32, (N, 3, H, W), RGB, in [0, 1].

    Raises `ValueError` that says what was found and how to convert it.
    """
    if not isinstance(images, Tensor):
        raise ValueError(
            f"images must be a torch.Tensor, got {type(images).__name__}; "
            "convert a NumPy array with torch.from_numpy(array)."
        )
    if images.ndim != 4 or images.shape[1] != 3:
        hint = ""
        if images.ndim == 4 and images.shape[3] == 3:
            hint = " It looks like (N, H, W, 3): use images.permute(0, 3, 1, 2)."
        elif images.ndim == 3:
            hint = " For a single image use images.unsqueeze(0)."
        raise ValueError(f"images must have shape (N, 3, H, W), got {tuple(images.shape)}.{hint}")
    if images.dtype != torch.float32:
        hint = "images.float() / 255" if images.dtype == torch.uint8 else "images.float()"
        raise ValueError(f"images must be float32 in [0, 1], got {images.dtype}: use {hint}.")
    if images.numel() == 0:
        return images
    low, high = (value.item() for value in torch.aminmax(images))
    if not (low >= 0.0 and high <= 1.0):  # false for NaN, too
        raise ValueError(
            f"images must lie in [0, 1] without NaN, found values from {low:g} to {high:g}; "
            "divide by 255 or undo the normalisation (models here normalise inside)."
        )
    return images


def check_labels(labels: Tensor, n: int, classes: int) -> Tensor:
    """Return `labels` if it is int64 of shape (`n`,) in 0 .. `classes` - 1; else `ValueError`."""
    if labels.dtype != torch.int64 or labels.shape != (n,):
        raise ValueError(
            f"labels must be int64 of shape ({n},), got {labels.dtype} of {tuple(labels.shape)}."
        )
    if n and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise ValueError(
            f"labels must lie in 0 .. {classes - 1}, found {int(labels.min())} to "
            f"{int(labels.max())}."
        )
    return labels


def check_nonempty(values: Sequence[object], what: str) -> None:
    """Raise `ValueError` if `values` is empty or repeats an entry."""
    if not values:
        raise ValueError(f"{what} is empty; name at least one.")
    if len(set(values)) != len(values):
        raise ValueError(f"{what} repeats an entry: {list(values)}.")
